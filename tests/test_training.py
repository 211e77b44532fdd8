"""The training loop on a handful of digits: what it leaves, how it resumes, how it fails."""

import json
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hf_protosphere import ProtoSphereForImageClassification, training
from hf_protosphere.arguments import TrainArguments
from hf_protosphere.checkpoints import newest_checkpoint, read_metrics
from hf_protosphere.errors import ArgumentError, DataError, TrainingError, TrainingInterrupted
from hf_protosphere.training import train


@pytest.fixture
def arguments(digits_folder, tmp_path):
    def make(**kwargs):
        defaults = {
            "dataset_name": str(digits_folder),
            "output_dir": str(tmp_path / "run"),
            "backbone": "test_resnet",
            "epochs": 2,
            "batch_size": 32,
            "optimizer": "adamw",
            "augmentation": "crop",
            "horizontal_flip": False,
            "num_workers": 0,
            "tensorboard": False,
        }
        return TrainArguments(**{**defaults, **kwargs})

    return make


def test_a_run_leaves_a_model_anyone_can_load_and_a_record(arguments, tmp_path):
    results = train(arguments(epochs=12, batch_size=16, validation_fraction=0.2, tensorboard=True))
    run = tmp_path / "run"
    assert json.loads((run / "results.json").read_text()) == results
    assert results["test"]["num_images"] == 45
    assert results["test"]["accuracy"] > 0.8  # of three digits; rounding differs by machine
    assert results["test"]["class_means_accuracy"] > 0.8
    assert 0 < results["test"]["neural_collapse"]["attained"]["overall"] <= 100

    records = read_metrics(run / "metrics.jsonl")
    assert [r["epoch"] for r in records] == list(range(1, 13))
    assert records[-1]["step"] == 12 * (96 // 16)
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert set(records[0]["validation_neural_collapse"]) >= {"nc1_cdnv", "attained"}
    with Image.open(run / "curves.png") as picture:
        assert picture.size[0] > 1000
    assert list((run / "tensorboard").rglob("events*"))
    assert (run / "arguments.yaml").exists()

    model = AutoModelForImageClassification.from_pretrained(run)
    assert isinstance(model, ProtoSphereForImageClassification)
    assert model.config.label2id == {"digit_0": 0, "digit_1": 1, "digit_2": 2}
    best = load_file(run / "best" / "model.safetensors")
    for name, value in load_file(run / "model.safetensors").items():
        assert torch.equal(value, best[name])
    best_epoch = max(records, key=lambda r: (r["validation_accuracy"], r["epoch"]))["epoch"]
    assert results["best_epoch"] == best_epoch
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000072"]


@pytest.mark.parametrize(
    ("objective", "prototypes"),
    [
        ("nonl", "learned"),
        ("ntce", "simplex_etf"),
        ("normface", "class_means"),
        ("scl", None),
        ("cross_entropy", None),
    ],
)
def test_every_objective_trains(arguments, tmp_path, objective, prototypes):
    results = train(arguments(objective=objective, prototypes=prototypes, epochs=1))
    assert results["test"]["num_images"] == 45
    assert all(
        r["train_loss"] == r["train_loss"] for r in read_metrics(tmp_path / "run/metrics.jsonl")
    )


def test_scl_ends_with_the_training_class_means_as_prototypes(arguments, tmp_path):
    results = train(arguments(objective="scl", projection="mlp", projection_dim=16))
    assert results["test"]["accuracy"] == results["test"]["class_means_accuracy"]
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path / "run").eval()

    run = training.TrainingRun(arguments(objective="scl", output_dir=str(tmp_path / "data_only")))
    split = run.eval_loaders["train"].dataset
    with torch.no_grad():
        batch = split.__getitems__(list(range(len(split))))
        embeddings = model(batch["pixel_values"]).embeddings
    labels = batch["labels"]
    means = torch.stack([embeddings[labels == c].double().mean(0) for c in range(3)])
    assert torch.allclose(model.prototypes, F.normalize(means, dim=-1).float(), atol=1e-5)


def stop_after(monkeypatch, step, number=signal.SIGINT):
    """Send ourselves the signal right after the given training step, once."""
    original = training.TrainingRun.step

    def changed_step(self, batches):
        result = original(self, batches)
        if self.progress.step + 1 == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(training.TrainingRun, "step", changed_step)


def test_interrupted_and_resumed_is_the_same_run_to_the_bit(arguments, tmp_path, monkeypatch):
    options = {"epochs": 3, "batch_size": 16, "backbone_kwargs": {"drop_rate": 0.2}}
    train(arguments(**options, output_dir=str(tmp_path / "whole")))

    with monkeypatch.context() as patch:
        stop_after(patch, step=9)  # within the second epoch of 6 steps
        with pytest.raises(TrainingInterrupted, match=r"stopped after step 9.*--resume") as stopped:
            train(arguments(**options))
    assert stopped.value.signal == signal.SIGINT
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-00000009"
    train(arguments(**options, resume=True))

    whole = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl") == read_metrics(
        tmp_path / "run" / "metrics.jsonl"
    )


def test_resuming_from_nothing_starts_and_with_other_arguments_is_refused(arguments, capsys):
    train(arguments(resume=True, epochs=1))
    assert "starting from the start" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match=r"--temperature was 0.1, is 0.2.*--epochs|epochs"):
        train(arguments(resume=True, epochs=2, temperature=0.2))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    arguments, tmp_path, monkeypatch
):
    original = training.TrainingRun.step

    def changed_step(self, batches):
        if self.progress.step + 1 == 5:
            with torch.no_grad():
                self.model.head.weight.fill_(float("nan"))
        return original(self, batches)

    monkeypatch.setattr(training.TrainingRun, "step", changed_step)
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 5 \(epoch 2\).*step-00000003"
    ):
        train(arguments(epochs=3))
    checkpoint = newest_checkpoint(tmp_path / "run" / "checkpoints")
    weights = load_file(checkpoint / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_the_output_folder_is_never_overwritten_by_accident(arguments, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArgumentError, match=r"is not empty.*--resume.*--overwrite"):
        train(arguments())
    train(arguments(overwrite=True, epochs=1))
    train(arguments(overwrite=True, epochs=1))
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"batch_size": 500}, ArgumentError, r"--batch_size 500 is larger .* 108 images"),
        ({"backbone": "test_resnett"}, ArgumentError, r"no backbone .*Did you mean 'test_resnet'"),
        (
            {"prototypes": "simplex_etf", "projection": "linear", "projection_dim": 1},
            ArgumentError,
            "3 classes needs at least 2 dimensions",
        ),
        ({"backbone_kwargs": {"wings": 2}}, ArgumentError, "cannot be built.*wings"),
        ({"label_column": "colour"}, DataError, "--label_column colour"),
        ({"dataset_name": "/no/such/folder"}, DataError, "no such file or folder"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments, tmp_path, kwargs, error, message
):
    with pytest.raises(error, match=message):
        train(arguments(**kwargs))
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_written(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot be written"):
        train(arguments(output_dir=str(tmp_path / "file" / "run")))


def test_a_full_disk_is_noticed_before_training(arguments, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10 * 2**20))
    with pytest.raises(ArgumentError, match=r"needs .* MiB on disk, but 10 MiB are free"):
        train(arguments())
