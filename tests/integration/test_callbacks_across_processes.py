"""Two processes of a stock Trainer measure what one does, and one of them writes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_protosphere.metrics.neural_collapse import METRICS
from hf_protosphere.runs.metrics_log import read_metrics

SCRIPT = Path(__file__).with_name("trainer_with_callback.py")


def run(*command):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]


def test_two_processes_equal_one(tmp_path):
    run(SCRIPT, tmp_path / "one", 32)
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", 2)
    address = ("--master_addr", "127.0.0.1", "--master_port", 29521)
    run(*launcher, *address, SCRIPT, tmp_path / "two", 9)  # 203 images: the last batches are uneven
    one, two = (read_metrics(tmp_path / n / "neural_collapse.jsonl") for n in ("one", "two"))
    assert [r["step"] for r in two] == [r["step"] for r in one]
    assert len({r["step"] for r in two}) == len(two)  # written once
    for split in ("train", "eval"):
        before, after = (r[0][f"{split}_neural_collapse"] for r in (one, two))
        for info in METRICS:
            assert after[info.name] == pytest.approx(before[info.name], rel=1e-4), info.name
    assert (tmp_path / "two" / "sphere.png").exists()
