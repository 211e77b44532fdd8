"""Several processes under real launchers: together they train what one does, and end together."""

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_protosphere.cli import main
from hf_protosphere.runs.checkpoints import newest_checkpoint
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training import finish as finishing
from hf_protosphere.training import setup as assembly
from tests import ROOT, forked

from .trainings import in_float64, no_pictures

TRAININGS = Path(__file__).with_name("trainings.py")
TORCHRUN = ("torch.distributed.run", "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--nproc_per_node")
ACCELERATE = ("accelerate.commands.launch", "--main_process_port", "0", "--num_processes", "2")
IMAGES_PER_STEP = 32
CASES = {
    "nonl": ("--objective", "nonl", "--backbone", "test_efficientnet_gn"),
    "scl": ("--objective", "scl", "--augmentation", "contrastive", "--backbone", "test_vit"),
    "cross_entropy": ("--objective", "cross_entropy", "--backbone", "test_vit"),
}


@pytest.fixture(scope="module", autouse=True)
def _as_in_the_script():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "build_model", in_float64)
        patch.setattr(finishing, "draw_run", no_pictures)
        yield


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("cache")),
    }  # fmt: skip


@pytest.fixture(scope="module")
def launch_forking(python):
    """`launch_trainings` for two processes that need not import torch again."""

    def launch(trainings, **interference):
        job = json.dumps({"trainings": trainings, **interference})
        variables = {"ACCELERATE_USE_CPU": "true"}
        return ended(python(*forked.TORCHRUN, 2, TRAININGS, job, env=variables))

    return launch


@pytest.fixture(scope="module")
def flags(digits_folder):
    def make(folder, num_processes, *more, images_per_step=IMAGES_PER_STEP):
        return [
            "--dataset_name", str(digits_folder), "--output_dir", str(folder),
            "--batch_size", str(images_per_step // num_processes), "--eval_batch_size", "7",
            "--epochs", "2", "--num_workers", "0", "--report_to", "none", *more,
        ]  # fmt: skip

    return make


def launch(environment, *command, timeout=300):
    command = [sys.executable, "-m", *map(str, command)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    return ended(result)


def ended(result):
    """With all its processes."""
    for pid in re.findall(r"^process (\d+)$", result.stdout, re.MULTILINE):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    return result


def launch_trainings(environment, launcher, trainings, **interference):
    job = json.dumps({"trainings": trainings, **interference})
    return launch(environment, *launcher, TRAININGS, job)


def assert_same_training(one, other, tolerance=1e-10):
    records, others = (read_metrics(run / "metrics.jsonl") for run in (one, other))
    for ours, theirs in zip(records, others, strict=True):
        assert theirs["step"] == ours["step"]
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], abs=tolerance)
        assert theirs["train_accuracy"] == pytest.approx(ours["train_accuracy"])
        assert theirs["validation_accuracy"] == pytest.approx(ours["validation_accuracy"])
    weights, others = (load_file(run / "model.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert (others[name] - weight).abs().max() < tolerance, name


@pytest.fixture(scope="module")
def one(flags, tmp_path_factory):
    """What one process trains: folders of runs, one in each, by case."""
    folder = tmp_path_factory.mktemp("one")
    for name, case in CASES.items():
        main(["train", *flags(folder / name, 1, *case)])
    return folder


STOPPED = ("--objective", "nonl", "--backbone", "test_vit")
STOPPED_STEP = {"images_per_step": 8}  # 13 steps an epoch: the loop looks for signals at every 10th


@pytest.fixture(scope="module")
def two(flags, launch_forking, tmp_path_factory):
    """What two processes train, with batch norm as well, and one that SIGTERM stops at the end."""
    folder = tmp_path_factory.mktemp("two")
    trainings = [flags(folder / name, 2, *case) for name, case in CASES.items()]
    trainings.append(flags(folder / "batch_norm", 2, "--backbone", "test_resnet"))
    trainings.append(flags(folder / "stopped", 2, *STOPPED, **STOPPED_STEP))
    result = launch_forking(trainings, stop_at=5)
    return folder, result


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(one, two, case):
    assert_same_training(one / case, two[0] / case)


def test_one_process_writes_and_every_image_counts_once(one, two):
    folder, result = two
    assert result.stdout.count(": the model, results.json") == len(CASES) + 1
    assert len(re.findall(r"^\w+ on test_", result.stdout, re.MULTILINE)) == len(CASES) + 2
    for name in CASES:
        assert len(read_metrics(folder / name / "metrics.jsonl")) == 2
        results = [json.loads((run / name / "results.json").read_text()) for run in (one, folder)]
        for split, images in (("validation", 12), ("test", 45)):
            ours, theirs = (report[split] for report in results)
            assert theirs["num_images"] == ours["num_images"] == images
            assert theirs["accuracy"] == ours["accuracy"]
            for metric in ("nc1_cdnv", "nc2_equiangular"):
                value = ours["neural_collapse"][metric]
                assert theirs["neural_collapse"][metric] == pytest.approx(value, rel=1e-3)


def test_what_is_measured_is_what_is_saved(two):
    """Each process has its own running statistics of batch norm."""
    run = two[0] / "batch_norm"
    results = json.loads((run / "results.json").read_text())
    record = read_metrics(run / "metrics.jsonl")[results["best_epoch"] - 1]
    measured, saved = record["validation_neural_collapse"], results["validation"]["neural_collapse"]
    assert measured["nc1_cdnv"] == pytest.approx(saved["nc1_cdnv"], rel=1e-4)


def test_sigterm_to_launcher_and_processes_leaves_a_checkpoint(two):
    folder, result = two
    assert result.returncode == 1  # torchrun's and accelerate launch's, whatever ended it
    assert result.stderr.count("stopped after step 10;") == 1
    assert "got signal: 15" in result.stderr
    (checkpoint,) = (folder / "stopped" / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000010"


def test_one_process_goes_on_with_what_two_began(two, flags, tmp_path, capsys):
    stopped = two[0] / "stopped"
    with pytest.raises(SystemExit):
        main(["train", *flags(stopped, 1, *STOPPED, "--resume", images_per_step=4)])
    assert "a step had 8 images, has 4 (--batch_size x" in capsys.readouterr().err
    main(["train", *flags(tmp_path / "whole", 1, *STOPPED, **STOPPED_STEP)])
    main(["train", *flags(stopped, 1, *STOPPED, "--resume", **STOPPED_STEP)])
    assert_same_training(tmp_path / "whole", stopped)


def test_an_error_on_one_process_ends_all(flags, launch_forking, tmp_path):
    job = flags(tmp_path / "run", 2, *STOPPED)
    started = time.monotonic()
    result = launch_forking([job], fail_at=[1, 4])
    assert time.monotonic() - started < 120
    assert result.returncode == 1
    # The launcher's summary; of failures in the same second it calls the lowest rank the first.
    summary = result.stderr.split("FAILED")[1]
    assert "rank      : 1" in summary
    assert "RuntimeError: process 1 fails in step 4" in summary
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-00000003"


@pytest.mark.slow  # eleven starts: a minute
def test_ten_killed_processes_change_nothing(flags, python, launch_forking, tmp_path):
    """By torchrun's restarts and --resume, which is there from the start."""
    more = (*STOPPED, "--epochs", "90")
    launch_forking([flags(tmp_path / "whole", 2, *more)])
    chance = random.Random(0)
    kills = [[chance.randrange(2), chance.uniform(0, 1.5)] for _ in range(10)]
    job = json.dumps({"trainings": [flags(tmp_path / "killed", 2, *more, "--resume")], "kills": kills})
    launcher = (*forked.TORCHRUN[:2], "--max_restarts", 10, *forked.TORCHRUN[2:], 2)
    variables = {"ACCELERATE_USE_CPU": "true", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    result = ended(python(*launcher, TRAININGS, job, env=variables, timeout=400))
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(re.findall(r"^process \d+$", result.stdout, re.MULTILINE)) == 2 * (len(kills) + 1)
    assert "Resuming at step" in result.stdout
    assert_same_training(tmp_path / "whole", tmp_path / "killed", 1e-15)


@pytest.mark.slow  # a real torchrun, twice: 40 seconds
@pytest.mark.parametrize("moment", ["imports", "training"])
def test_processes_end_with_a_launcher_that_is_killed(flags, environment, tmp_path, moment):
    # A script that says when it begins, which the launcher then survives by less than torch takes to import.
    begin = "import os; os.write(1, b'process %d\\n' % os.getpid())\nfrom hf_protosphere.cli import main\n"  # at once
    script = TRAININGS if moment == "training" else tmp_path / "script.py"
    (tmp_path / "script.py").write_text(f"{begin}import sys, json; main(['train', *json.loads(sys.argv[1])])")
    job = flags(tmp_path / "run", 2, "--epochs", "4000")
    job = json.dumps({"trainings": [job]} if moment == "training" else job)
    command = [sys.executable, "-m", *TORCHRUN, "2", str(script), job]
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as launcher:
        lines = (re.match(r"process (\d+)$", line) for line in launcher.stdout)
        processes = [int(next(filter(None, lines))[1]) for _ in range(2)]
        log, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while moment == "training" and not (log.exists() and read_metrics(log)) and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(1)
        launcher.kill()
    end = time.monotonic() + 60
    while any(map(is_alive, processes)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any(map(is_alive, processes))
    assert moment == "imports" or newest_checkpoint(tmp_path / "run" / "checkpoints")


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow  # four processes with imports of their own: a minute
def test_four_processes_train_what_one_does(one, flags, environment, tmp_path):
    trainings = [flags(tmp_path / name, 4, *case) for name, case in CASES.items()]
    accumulated = ("--gradient_accumulation_steps", "2", *CASES["nonl"])
    trainings.append(flags(tmp_path / "accumulated", 8, *accumulated))
    result = launch_trainings(environment, (*TORCHRUN, 4), trainings)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in CASES:
        assert_same_training(one / name, tmp_path / name)
    assert_same_training(one / "nonl", tmp_path / "accumulated")


@pytest.mark.slow  # a real torchrun for each: 20 seconds
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch_size", "999"), "--batch_size 999, 2 of them per step, is larger"),
        (("--no_such_flag",), "unrecognized arguments: --no_such_flag. Did you mean"),
        (("--dataset_name", "/no/such"), "--dataset_name /no/such: there is no such file"),
        (("--output_dir", "mine"), "is not empty: --resume goes on"),
    ],
)
def test_what_the_user_can_mend_is_said_once(flags, environment, tmp_path, more, message):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    more = [str(tmp_path / word) if word == "mine" else word for word in more]
    script = ROOT / "scripts" / "train.py"
    result = launch(environment, *TORCHRUN, 2, script, *flags(tmp_path / "run", 2, *more))
    assert result.returncode == 1
    assert result.stderr.count("protosphere train: error: ") == 1
    assert message in result.stderr
    assert "hf_protosphere/" not in result.stderr  # no traceback of ours


@pytest.mark.slow  # a real launcher, twice: a minute
def test_accelerate_launch(one, flags, environment, tmp_path):
    launcher = (*ACCELERATE, "--config_file", ROOT / "scripts/accelerate/two_processes_cpu.yaml")
    trainings = [flags(tmp_path / "nonl", 2, *CASES["nonl"])]
    trainings.append(flags(tmp_path / "stopped", 2, *STOPPED, **STOPPED_STEP))
    result = launch_trainings(environment, launcher, trainings, stop_at=5)
    assert_same_training(one / "nonl", tmp_path / "nonl")
    assert result.returncode == 1
    assert result.stderr.count("stopped after step 10;") == 1

    script = ROOT / "scripts" / "train.py"
    more = (*STOPPED, "--resume")
    resumed = flags(tmp_path / "stopped", 2, *more, **STOPPED_STEP)
    result = launch(environment, *launcher, script, *resumed)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Resuming at step 10 (epoch 1)." in result.stdout
    assert json.loads((tmp_path / "stopped" / "results.json").read_text())


@pytest.mark.slow  # trains twelve models, half of them sharded: minutes
@pytest.mark.parametrize(
    ("sharding", "tolerance"),
    [("fsdp2", 1e-10), ("deepspeed_zero2", 1e-4)],  # DeepSpeed makes the weights float32
)
def test_sharded_models(one, flags, environment, tmp_path, sharding, tolerance):
    if sharding == "deepspeed_zero2":
        pytest.importorskip("deepspeed")
    config = ROOT / "scripts" / "accelerate" / f"{sharding}.yaml"
    launcher = (*ACCELERATE, "--config_file", config)
    environment = {k: v for k, v in environment.items() if k != "ACCELERATE_USE_CPU"}
    cases = {name: (*case, "--backbone", "test_vit") for name, case in CASES.items()}
    cases["clipped"] = (*STOPPED, "--max_grad_norm", "0.5")
    learned = ("--objective", "ntce", "--learn_temperature", "--backbone", "test_vit")
    cases["learned"] = learned
    for name, case in cases.items():
        main(["train", *flags(tmp_path / "one" / name, 1, *case)])
    main(["train", *flags(tmp_path / "one" / "stopped", 1, *STOPPED, **STOPPED_STEP)])

    trainings = [flags(tmp_path / name, 2, *case) for name, case in cases.items()]
    stopped = flags(tmp_path / "stopped", 2, *STOPPED, **STOPPED_STEP)
    result = launch_trainings(environment, launcher, [*trainings, stopped], stop_at=5)
    assert result.stderr.count("stopped after step 10;") == 1, result.stderr[-3000:]
    result = launch_trainings(environment, launcher, [[*stopped, "--resume"]])
    assert result.returncode == 0, result.stderr[-3000:]
    for name in (*cases, "stopped"):
        assert_same_training(tmp_path / "one" / name, tmp_path / name, tolerance)
        files = {path.name for path in (tmp_path / name / "best").iterdir()}
        assert files == {path.name for path in (one / "nonl" / "best").iterdir()}


@pytest.mark.slow  # a real torchrun, twice, and 40 epochs
def test_a_job_of_slurm_is_stopped_and_queued_again(flags, environment, tmp_path):
    """The batch script for real; programs of SLURM that do what it expects of them on one node."""
    programs = {
        "srun": f'shift 2; echo $$ > {tmp_path}/srun; exec "$@"',
        "scancel": f"kill -TERM $(cat {tmp_path}/srun)",
        "scontrol": f'if [ $1 = show ]; then echo 127.0.0.1; else echo "$@" > {tmp_path}/told; fi',
    }
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **environment, "PORT": port, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "one",
        "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "1",
        "PATH": os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent),
                                 os.environ["PATH"]]),
    }  # fmt: skip
    run = tmp_path / "run"
    command = ["bash", "scripts/slurm/train.sbatch", *flags(run, 2, *STOPPED, "--epochs", "40")]
    job = subprocess.Popen(command, env=environment, cwd=ROOT)
    while len(read_metrics(run / "metrics.jsonl")) < 2:
        time.sleep(0.2)
        assert job.poll() is None
    job.terminate()
    assert job.wait(60) == 1
    assert (tmp_path / "told").read_text() == "requeue 7\n"
    stopped = newest_checkpoint(run / "checkpoints").name
    assert stopped < f"step-{40 * 3:08d}"

    (tmp_path / "told").unlink()
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Resuming at step {int(stopped[5:])} " in result.stdout
    assert len(read_metrics(run / "metrics.jsonl")) == 40
    assert not (tmp_path / "told").exists()
