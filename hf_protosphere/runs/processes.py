"""Several processes: whether the launcher's are what training takes, and how they fail alike."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, broadcast_object_list

from ..errors import ArgumentError, UserError
from ..plots import text as voice
from .signals import end_with_launcher

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
_stores: list[dist.TCPStore] = []  # the first process serves it as long as it lives


def join_processes(launcher: int) -> None:
    """Of several, started by a launcher, which has that id, or by hand: end with the launcher, `meet` the others."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a shell's background job shall outlive the shell
        end_with_launcher(launcher)
    # Other launchers connect the processes in their own way.
    known = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if known and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        meet(os.environ)


def meet(environment: Mapping[str, str], patience: float = 60.0) -> None:
    """Wait until all processes are there, and say who is not: torch would wait without a word.

    Args:
        environment: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
        patience: seconds from message to message; after thirty of them it is over, after one without the launcher.
    """
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    of_launcher = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank == 0 and not of_launcher

    def wait(missing: Callable[[], list[int]], times: int = 30) -> None:
        started = said = time.monotonic()
        while absent := missing():
            text = (
                f"process {rank} of {size} waits for {', '.join(map(str, absent))}: start each "
                f"with MASTER_ADDR={address[0]}, MASTER_PORT={address[1]} and its own RANK"
            )
            if (now := time.monotonic()) - started > times * patience:
                raise ArgumentError(f"{text}. None came in {now - started:.0f} s.")
            if now - said > patience:
                said = now
                voice.say(text, file=sys.stderr)
            time.sleep(min(patience, 0.2))

    if not serves:
        # The launcher of the first machine was there before its processes, or has been killed.
        started_by_first = of_launcher and environment.get("GROUP_RANK") == "0"
        wait(lambda: [] if _answers(address) else [0], times=1 if started_by_first else 30)
    store = dist.TCPStore(*address, is_master=serves, wait_for_workers=False, multi_tenant=True)
    _stores.append(store)
    # A launcher's store outlives restarts. Ours is new, and one that comes back has counted none of them.
    key = f"protosphere/{environment.get('TORCHELASTIC_RESTART_COUNT', 0) if of_launcher else ''}"
    store.set(f"{key}/{rank}", "here")
    if rank == 0:
        wait(lambda: [other for other in range(size) if not store.check([f"{key}/{other}"])])


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def check_processes(accelerator: Accelerator, *, accumulates: bool = False) -> None:
    """Refuse those that do not know of each other, and sharding that is not supported."""
    started = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    if started != accelerator.num_processes:
        raise ArgumentError(f"no GPUs for {started} processes: set ACCELERATE_USE_CPU=true to train on CPUs.")
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ArgumentError("FSDP works in its second version only: give --fsdp_version 2.")
    if deepspeed := accelerator.state.deepspeed_plugin:
        if deepspeed.deepspeed_config["zero_optimization"]["stage"] > 2:
            raise ArgumentError("DeepSpeed works up to --zero_stage 2, but got 3: use FSDP2 to shard parameters.")
        if accumulates:
            raise ArgumentError("--gradient_accumulation_steps must be 1 with DeepSpeed: use FSDP2 or more processes.")


@contextmanager
def main_process_first(accelerator: Accelerator, *, local: bool = False) -> Iterator[None]:
    """The main process, then the others; with `local`, the main process of each machine first.

    In Accelerate's the others wait for one that failed. Here they go on, to the same error."""
    first = accelerator.is_local_main_process if local else accelerator.is_main_process
    if not first:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if first:
            accelerator.wait_for_everyone()


def on_main_process(accelerator: Accelerator | PartialState, job: Callable[[], object]) -> None:
    """Do the job on the main process; the others wait for it, and raise its `UserError`."""
    errors: list[UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            job()
        except UserError as error:
            errors = [error]
    broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]


def announce(text: str, file: TextIO | None = None) -> None:
    """Say something to people, once of all processes: standard output is for results, and training's log."""
    if os.environ.get("RANK", "0") == "0" and not voice.is_quiet:
        voice.say(text, file=file or sys.stderr)


@contextmanager
def own_accelerate_state() -> Iterator[None]:
    """For a job: Accelerate's state in this process, of which the first Accelerator decides the
    precision, as if there had been none before; thereafter as it was. Processes stay connected."""
    states = [kind._shared_state for kind in (AcceleratorState, GradientState)]
    if PartialState._shared_state.get("distributed_type") in SHARDED:
        # What an earlier job's Accelerator made of the launcher's; another one asks that again.
        states.append(PartialState._shared_state)
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, before):
            state.clear()
            state.update(values)


def own_device() -> torch.device:
    """For a job by itself, as Accelerate chooses it: ACCELERATE_USE_CPU=true is obeyed."""
    with own_accelerate_state():
        return Accelerator().device
