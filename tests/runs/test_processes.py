"""What one process can see of several; the rest is in integration/test_processes.py."""

from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType

from hf_protosphere.errors import ArgumentError, UserError
from hf_protosphere.runs.processes import check_processes, on_main_process, own_accelerate_state


def sharded(kind, stage=None):
    config = {"zero_optimization": {"stage": stage}}
    plugin = SimpleNamespace(deepspeed_config=config) if stage else None
    return SimpleNamespace(
        num_processes=1, distributed_type=kind, is_fsdp2=False,
        state=SimpleNamespace(deepspeed_plugin=plugin),
    )  # fmt: skip


def test_processes_that_do_not_know_of_each_other(monkeypatch):
    check_processes(Accelerator(cpu=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(Accelerator(cpu=True))  # somebody else's: no launcher started us
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ArgumentError, match=r"started 2 processes.*ACCELERATE_USE_CPU=true"):
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
