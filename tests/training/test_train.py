"""The training loop on a handful of digits: what it leaves, how it resumes, how it fails."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training import run as training
from hf_protosphere.training.train import train


def test_a_run_leaves_a_model_anyone_can_load_and_a_record(arguments, tmp_path):
    results = train(
        arguments(
            epochs=12,
            batch_size=16,
            validation_fraction=0.2,
            report_to=["tensorboard"],
            pictures=True,
        )
    )
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
