"""What one process can see of several; the rest is in integration/test_processes.py."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from hf_protosphere.errors import ArgumentError, UserError
from hf_protosphere.runs.processes import (
    check_processes,
    join_processes,
    meet,
    on_main_process,
    own_accelerate_state,
    own_device,
)


def sharded(kind, stage=None):
    config = {"zero_optimization": {"stage": stage}}
    plugin = SimpleNamespace(deepspeed_config=config) if stage else None
    return SimpleNamespace(
        num_processes=1, distributed_type=kind, is_fsdp2=False, state=SimpleNamespace(deepspeed_plugin=plugin)
    )


def test_processes_that_do_not_know_of_each_other(monkeypatch):
    check_processes(Accelerator(cpu=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(Accelerator(cpu=True))  # somebody else's: no launcher started us
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ArgumentError, match=r"no GPUs for 2 processes.*ACCELERATE_USE_CPU=true"):
        check_processes(Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        (sharded(DistributedType.FSDP), "--fsdp_version 2"),
        (sharded(DistributedType.DEEPSPEED, stage=3), "--zero_stage 2, but got 3"),
        (sharded(DistributedType.DEEPSPEED, stage=2), "--gradient_accumulation_steps must be 1"),
    ],
)
def test_sharding_that_would_train_something_else(accelerator, message):
    with pytest.raises(ArgumentError, match=message):
        check_processes(accelerator, accumulates=True)


def test_a_job_of_the_main_process():
    done = []
    on_main_process(Accelerator(cpu=True), lambda: done.append(1))
    assert done == [1]

    def refuse():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        on_main_process(Accelerator(cpu=True), refuse)


def test_a_job_has_a_state_of_its_own():
    with own_accelerate_state():
        outer = Accelerator(cpu=True, mixed_precision="bf16")
        with own_accelerate_state():
            assert Accelerator(cpu=True).mixed_precision == "no"
            assert Accelerator(cpu=True, mixed_precision="no").gradient_state.sync_gradients
        assert outer.mixed_precision == Accelerator(cpu=True).mixed_precision == "bf16"


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def test_processes_that_do_not_come_are_named(capsys):
    place = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    errors = []

    def start(rank):
        def run():
            try:
                meet({**place, "RANK": str(rank)}, patience=0.5)
            except ArgumentError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def said(text):
        end, seen = time.monotonic() + 20, ""
        while text not in seen and time.monotonic() < end:
            seen += capsys.readouterr().err
            time.sleep(0.05)
        return text in seen

    processes = [start(1)]
    assert said("process 1 of 3 waits for 0: start each with MASTER_ADDR=127.0.0.1")
    processes.append(start(0))
    assert said("process 0 of 3 waits for 2: start")
    processes.append(start(2))
    for process in processes:
        process.join(20)
        assert not process.is_alive()
    assert not errors


def test_waiting_has_an_end_and_other_launchers_are_left_alone(monkeypatch):
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with pytest.raises(ArgumentError, match=r"process 0 of 2 waits for 1: .* None came in"):
        meet({**place, "RANK": "0"}, patience=0.01)
    for name, value in place.items():  # without a rank
        monkeypatch.setenv(name, value)
    join_processes(1)


def test_without_its_launcher_a_process_does_not_wait_for_long():
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "0"}
    started = time.monotonic()
    with pytest.raises(ArgumentError, match=r"process 1 of 2 waits for 0: .* None came in"):
        meet(place, patience=0.1)
    assert time.monotonic() - started < 2


def test_the_device_is_that_of_accelerate(monkeypatch):
    for use_cpu, device in (("false", "cuda"), ("true", "cpu")):
        monkeypatch.setattr(PartialState, "_shared_state", {})
        monkeypatch.setattr(PartialState, "default_device", property(lambda state: torch.device("cuda")))
        monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu)
        assert own_device().type == device
