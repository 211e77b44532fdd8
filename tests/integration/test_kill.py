"""Killed at any moment and resumed, a run ends with exactly what it would have had."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

KILLS = 20


def start(digits_folder, folder, *more):
    command = [
        *(sys.executable, "-m", "hf_protosphere.cli", "train"),
        *("--dataset_name", digits_folder, "--output_dir", folder, "--backbone", "test_resnet"),
        *("--objective", "scl", "--augmentation", "contrastive", "--epochs", 40),
        *("--batch_size", 16, "--optimizer", "adamw", "--num_workers", 0, "--nc_every", 2),
        *("--report_to", "none", *more),
    ]
    log = Path(folder).with_suffix(".log").open("a")
    return subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)


@pytest.mark.slow  # 22 processes with imports of their own: minutes
def test_sigkill_at_twenty_random_moments(digits_folder, tmp_path):
    assert start(digits_folder, tmp_path / "whole").wait() == 0

    rng, log = random.Random(0), tmp_path / "killed.log"
    for _ in range(KILLS):
        process = start(digits_folder, tmp_path / "killed", "--resume")
        before = log.stat().st_size
        while b"epochs of" not in log.read_bytes()[before:] and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.9))  # within steps, evaluations, checkpoints, the end
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(digits_folder, tmp_path / "killed", "--resume").wait() == 0

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()
    for name in ("model.safetensors", "best/model.safetensors"):
        expected, weights = load_file(whole / name), load_file(killed / name)
        assert expected.keys() == weights.keys()
        assert all(torch.equal(value, weights[key]) for key, value in expected.items())
    (last,) = (whole / "checkpoints").iterdir()
    states = [
        torch.load(run / "checkpoints" / last.name / "optimizer.bin", weights_only=True)["state"]
        for run in (whole, killed)
    ]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][key]) for key, value in state.items())
    assert not list(killed.rglob("*.unfinished"))
    assert (killed / "results.json").exists()
