"""Two machines, which are network namespaces of this one: as in scripts/accelerate/multi_node.yaml, and one lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from hf_protosphere.cli import main
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training import finish as finishing
from hf_protosphere.training import setup as assembly
from tests import ROOT

from .test_processes import TRAININGS, assert_same_training
from .trainings import in_float64, no_pictures

NAMES, ADDRESSES = [f"protosphere-{os.getpid()}-{i}" for i in (0, 1)], ("10.77.0.1", "10.77.0.2")
pytestmark = pytest.mark.slow  # three real launchers of two processes each: two minutes


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def lose(name):
    """All processes of a machine, at once."""
    for process in ip("netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


@pytest.fixture
def machines():
    """Each sees the other through its `eth0`, and nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", NAMES[0], "type", "veth", "peer", "name", "eth0", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield NAMES
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    finally:
        for name in NAMES:
            with suppress(subprocess.CalledProcessError):
                lose(name)
                ip("netns", "delete", name)


@pytest.fixture
def start(machines, tmp_path):
    """A launcher on a machine: its process, whose words are in `tmp_path`."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "eth0",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip

    def launch(rank, *command):
        words = ["ip", "netns", "exec", machines[rank], sys.executable, "-m", *map(str, command)]
        with (tmp_path / f"machine_{rank}").open("a") as log:
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)

    return launch


def test_two_machines_and_one_that_is_lost_and_comes_back(machines, start, digits_folder, tmp_path, monkeypatch):
    def job(folder, images, *more):
        flags = [
            "--dataset_name", str(digits_folder), "--output_dir", str(tmp_path / folder), "--batch_size", str(images),
            "--backbone", "test_vit", "--epochs", "40", "--num_workers", "0", "--report_to", "none", *more,
        ]  # fmt: skip
        return json.dumps({"trainings": [flags]})

    def words():
        return [(tmp_path / f"machine_{rank}").read_text()[-3000:] for rank in (0, 1)]

    monkeypatch.setattr(assembly, "build_model", in_float64)
    monkeypatch.setattr(finishing, "draw_run", no_pictures)
    main(["train", *json.loads(job("one", 16))["trainings"][0]])
    accelerate = (
        "accelerate.commands.launch", "--config_file", ROOT / "scripts/accelerate/multi_node.yaml",
        "--num_processes", 4, "--main_process_ip", ADDRESSES[0], "--machine_rank",
    )  # fmt: skip
    both = [start(rank, *accelerate, rank, TRAININGS, job("whole", 4)) for rank in (0, 1)]
    assert [one.wait(200) for one in both] == [0, 0], words()
    records, others = (read_metrics(tmp_path / folder / "metrics.jsonl") for folder in ("one", "whole"))
    for ours, theirs in zip(records[:5], others):  # rounding grows, to 1e-6 by the fortieth
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], abs=1e-10)

    torchrun = (
        "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 2, "--max-restarts", 3, "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"{ADDRESSES[0]}:29500", "--rdzv-id", "any-name",
    )  # fmt: skip
    # Machines with names of their own need not be told.
    own = [("--local-addr", ADDRESSES[i], "--rdzv-conf", f"is_host={1 - i}") for i in (0, 1)]
    first, second = (start(i, *torchrun, *own[i], TRAININGS, job("lost", 4, "--resume")) for i in (0, 1))
    end, metrics = time.monotonic() + 150, tmp_path / "lost" / "metrics.jsonl"
    while not (metrics.exists() and len(read_metrics(metrics)) > 2) and time.monotonic() < end:
        assert first.poll() is None, words()
        time.sleep(0.1)
    lose(machines[1])
    assert second.wait(10) == -signal.SIGKILL
    assert len(read_metrics(metrics)) < 40, words()
    time.sleep(3)  # what is left notices
    again = start(1, *torchrun, *own[1], TRAININGS, job("lost", 4, "--resume"))
    assert [first.wait(200), again.wait(30)] == [0, 0], words()
    assert "Resuming at step" in (tmp_path / "machine_0").read_text()
    assert_same_training(
        tmp_path / "whole", tmp_path / "lost", 1e-4
    )  # ranks may have changed, and so sums their order
