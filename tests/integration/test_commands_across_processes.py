"""Two processes do what one does: calibrate, tell unknown images, transfer, measure a Trainer's."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.evaluation import callbacks
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.metrics.neural_collapse import METRICS
from hf_protosphere.open_set.arguments import CalibrateArguments
from hf_protosphere.open_set.calibrate import calibrate
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.runs.snapshots import SNAPSHOT
from hf_protosphere.transfer.arguments import FinetuneArguments
from hf_protosphere.transfer.finetune import finetune
from tests.forked import TORCHRUN

from . import trainer_with_callback

TRANSFER = {"epochs": 1, "shots": "4", "trials": 1, "min_steps": 2}


pytestmark = pytest.mark.slow  # two processes that run seven commands: 20 s


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with what one process works on, and then writes."""
    folder = tmp_path_factory.mktemp("one")
    torch.manual_seed(0)
    names = {i: f"digit_{i}" for i in range(3)}
    for name, labels in (("model", {"id2label": names}), ("source", {"num_labels": 2})):
        config = ProtoSphereConfig(backbone="test_resnet", image_size=32, **labels)
        ProtoSphereForImageClassification(config).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def two(one, digits_folder, python, tmp_path_factory):
    """A folder with what two processes write, one command after another."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(one / "model", folder / "model")
    data = ["--dataset_name", digits_folder, "--num_workers", "0"]
    model = ["--model", folder / "model", "--batch_size", "7", *data]
    flags = [word for name, value in TRANSFER.items() for word in (f"--{name}", value)]
    commands = [
        ["calibrate", *model, "--split", "test"],
        ["evaluate", *model, "--ood_dataset", digits_folder, "--ood_split", "train",
         "--output", folder / "report", "--compare", one / "model", "--by_layer", "--pictures", folder / "seen"],
        ["finetune", "--model", one / "source", *data, *flags, "--compare", "head,full,prototypes",
         "--no_pictures", "--report_to", "none", "--output_dir", folder / "transfer"],
        ["trainer_with_callback", folder / "trainer", 9],  # 203 images: uneven last batches
    ]  # fmt: skip
    commands = [list(map(str, command)) for command in commands]
    script = Path(__file__).with_name("commands.py")
    variables = {"ACCELERATE_USE_CPU": "true"}
    result = python(*TORCHRUN, 2, script, json.dumps(commands), env=variables)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_calibrate(one, two, digits_folder):
    options = {"model": str(one / "model"), "dataset_name": str(digits_folder), "num_workers": 0}
    expected = calibrate(CalibrateArguments(**options, split="test"))
    found = json.loads((two / "model" / "calibration.json").read_text())
    assert found["num_images"] == expected["num_images"] == 45
    assert found["rejection_threshold"] == pytest.approx(expected["rejection_threshold"], abs=2e-6)
    assert found["negative_log_likelihood"] == pytest.approx(expected["negative_log_likelihood"], rel=1e-5)
    options |= {
        "ood_dataset": str(digits_folder),
        "ood_split": "train",
        "by_layer": True,
        "compare": str(one / "model"),
    }
    report = evaluate(EvaluateArguments(**options))  # by the calibrated model
    there = json.loads((two / "report").read_text())
    assert there["classes"] == report["classes"]
    assert there["comparison"]["difference"] == 0
    for layer, of_one in zip(there["by_layer"], report["by_layer"]):
        assert layer["nc1_cdnv"] == pytest.approx(of_one["nc1_cdnv"], rel=1e-3)
    assert (two / "seen" / "report.html").stat().st_size > 50_000
    expected, found = report["ood"], there["ood"]
    assert found["num_images"] == expected["num_images"] == 120
    for name, metrics in expected["scores"].items():
        assert found["scores"][name] == pytest.approx(metrics, abs=0.02)


def test_finetune(one, two, digits_folder):
    """Trained modes and frozen ones, one after the other."""
    found = json.loads((two / "transfer" / "comparison.json").read_text())["rows"]
    assert [row["mode"] for row in found] == ["head", "full", "prototypes"]
    assert all(row["num_images"] == 45 for row in found)
    arguments = FinetuneArguments(
        model=str(one / "source"), dataset_name=str(digits_folder), num_workers=0, pictures=False,
        compare="prototypes", report_to=["none"], output_dir=str(one / "transfer"), **TRANSFER,
    )  # fmt: skip
    (expected,) = finetune(arguments)["rows"]
    assert found[-1]["accuracy"] == pytest.approx(expected["accuracy"])
    assert found[-1]["neural_collapse"]["nc1_cdnv"] == pytest.approx(expected["neural_collapse"]["nc1_cdnv"], rel=1e-4)


def test_a_stock_trainer_measures_and_one_process_writes(one, two, monkeypatch):
    monkeypatch.setattr(callbacks, "draw_run", lambda *_, **__: [])
    trainer_with_callback.main(one / "trainer", 32)
    before, after = (read_metrics(n / "trainer" / "neural_collapse.jsonl") for n in (one, two))
    assert [r["step"] for r in after] == [r["step"] for r in before]
    assert len({r["step"] for r in after}) == len(after)  # written once
    for split in ("train", "eval"):
        expected, found = (r[0][f"{split}_neural_collapse"] for r in (before, after))
        for info in METRICS:
            assert found[info.name] == pytest.approx(expected[info.name], rel=1e-4), info.name
    assert (two / "trainer" / SNAPSHOT).exists()
