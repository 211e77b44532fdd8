"""Two processes of a stock Trainer measure what one does, and one of them writes it."""

from pathlib import Path

import pytest

from hf_protosphere.metrics.neural_collapse import METRICS
from hf_protosphere.runs.metrics_log import read_metrics
from tests.forked import TORCHRUN

SCRIPT = Path(__file__).with_name("trainer_with_callback.py")


def test_two_processes_equal_one(python, tmp_path):
    def run(*command):
        result = python(*command, env={"ACCELERATE_USE_CPU": "true"})
        assert result.returncode == 0, result.stderr[-3000:]

    run(SCRIPT, tmp_path / "one", 32)
    # 203 images: the last batches are uneven
    run(*TORCHRUN, 2, SCRIPT, tmp_path / "two", 9)
    one, two = (read_metrics(tmp_path / n / "neural_collapse.jsonl") for n in ("one", "two"))
    assert [r["step"] for r in two] == [r["step"] for r in one]
    assert len({r["step"] for r in two}) == len(two)  # written once
    for split in ("train", "eval"):
        before, after = (r[0][f"{split}_neural_collapse"] for r in (one, two))
        for info in METRICS:
            assert after[info.name] == pytest.approx(before[info.name], rel=1e-4), info.name
    assert (tmp_path / "two" / "sphere.png").exists()
