"""Neural collapse during a training: at the right steps, at a known price."""

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.metrics.monitoring import first_reached
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.monitoring import score
from hf_protosphere.training.train import train


@pytest.fixture
def arguments(digits_folder, tmp_path):
    def make(**kwargs):
        defaults = {
            "dataset_name": str(digits_folder), "output_dir": str(tmp_path / "run"),
            "backbone": "test_resnet", "epochs": 2, "batch_size": 16, "optimizer": "adamw",
            "augmentation": "crop", "num_workers": 0, "report_to": ["none"],
            "pictures": False,
        }  # fmt: skip
        return TrainArguments(**defaults | kwargs)

    return make


def test_steps_and_epochs_on_both_splits(arguments, tmp_path):
    results = train(arguments(nc_every=2, nc_every_steps=4, nc_train_samples=21, nc_target=20, pictures=True))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    # 108 training images: 6 steps in an epoch
    measured = [r["step"] for r in records if "validation_neural_collapse" in r]
    assert measured == [4, 8, 12]
    assert [r["step"] for r in records] == [4, 6, 8, 12]
    assert [r["epoch"] for r in records] == [4 / 6, 1, 8 / 6, 2]
    assert [r["step"] for r in records if "train_loss" in r] == [6, 12]
    assert [r["step"] for r in records if "train_neural_collapse" in r] == measured
    train_figures = records[0]["train_neural_collapse"]
    assert train_figures["intra_class_effective_rank"] <= 6  # of 21 images, 7 of each class
    assert train_figures["optima"]["inter_class_effective_rank"] == 2

    assert 0 < results["neural_collapse_seconds"] < 60
    assert results["first_reached"] == first_reached(records, 20)
    assert results["first_reached"]["validation"]["prototype_effective_rank"]["step"] == 4
    assert {"curves.png", "neural_collapse.png", "cosines.png", "margins.png", "sphere.png"} == {
        path.name for path in (tmp_path / "run").glob("*.png")
    }


def test_measuring_changes_nothing_that_is_trained(arguments, tmp_path):
    with_it = train(arguments(nc_every_steps=1, output_dir=str(tmp_path / "with")))
    without = train(arguments(nc_every=0, nc_train_samples=0, output_dir=str(tmp_path / "out")))
    assert with_it["test"] == without["test"]
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert not any("train_neural_collapse" in record for record in records)
    assert "validation_neural_collapse" in records[-1]  # always at the end


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nc_target": 0}, "--nc_target must be in .0, 100., but got 0"),
        ({"nc_every_steps": -1}, "--nc_every_steps must be .* at least 0"),
        ({"nc_train_samples": -5}, "--nc_train_samples must be"),
    ],
)
def test_refused_before_any_work(arguments, wrong, message):
    with pytest.raises(ArgumentError, match=message):
        arguments(**wrong)


def test_score_is_higher_for_better():
    record = {
        "validation_accuracy": 0.9,
        "validation_mean_class_accuracy": 0.8,
        "validation_neural_collapse": {"attained": {"overall": 40.0, "nc1_cdnv": 70.0}},
    }
    names = ("accuracy", "mean_class_accuracy", "neural_collapse", "nc1_cdnv")
    assert [score(record, name) for name in names] == [0.9, 0.8, 40.0, 70.0]
    assert score({"validation_neural_collapse": {"attained": {}}}, "nc1_cdnv") == 0.0
