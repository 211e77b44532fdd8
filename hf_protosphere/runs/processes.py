"""Several processes: whether the launcher's are what training takes, and how they fail alike."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, broadcast_object_list

from ..errors import ArgumentError, UserError
from ..plots.text import say


def check_processes(accelerator: Accelerator, *, accumulates: bool = False) -> None:
    """
    Args:
        accumulates: gradients, over several batches.

    Raises:
        ArgumentError: processes that do not know of each other, or sharding that is not supported.
    """
    started = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    if started != accelerator.num_processes:
        raise ArgumentError(
            f"the launcher started {started} processes, but Accelerate found no GPUs for them: set "
            "ACCELERATE_USE_CPU=true to train on CPUs."
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ArgumentError("FSDP works in its second version only: give --fsdp_version 2.")
    if deepspeed := accelerator.state.deepspeed_plugin:
        if deepspeed.deepspeed_config["zero_optimization"]["stage"] > 2:
            raise ArgumentError(
                "DeepSpeed works up to --zero_stage 2, but got 3: use FSDP2 to shard parameters."
            )
        if accumulates:
            raise ArgumentError(
                "--gradient_accumulation_steps must be 1 with DeepSpeed, which takes a step after "
                "every batch: use FSDP2, or more processes."
            )


@contextmanager
def main_process_first(accelerator: Accelerator, *, local: bool = False) -> Iterator[None]:
    """The main process, then the others; with `local`, the main process of each machine first.

    In Accelerate's the others wait for one that failed. Here they go on, to the same error.
    """
    first = accelerator.is_local_main_process if local else accelerator.is_main_process
    if not first:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if first:
            accelerator.wait_for_everyone()


def on_main_process(accelerator: Accelerator | PartialState, job: Callable[[], object]) -> None:
    """Do the job on the main process; the others wait for it, and raise what it raises.

    Raises:
        UserError: the job's, on every process.
    """
    errors: list[UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            job()
        except UserError as error:
            errors = [error]
    broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]


def announce(text: str) -> None:
    """Say something to people, once of all processes: standard output is for results."""
    if os.environ.get("RANK", "0") == "0":
        say(text, file=sys.stderr)


@contextmanager
def own_accelerate_state() -> Iterator[None]:
    """For a job: Accelerate's state in this process, of which the first Accelerator decides the
    precision, as if there had been none before; thereafter as it was. Processes stay connected."""
    states = [kind._shared_state for kind in (AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, before):
            state.clear()
            state.update(values)
