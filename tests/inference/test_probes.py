"""Probes on frozen features: right on what can be separated, deterministic, in one table."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation.report import format_classifiers
from hf_protosphere.inference.probes import train_probe
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train


def clusters(seed, noise):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5).repeat(80)
    return centres[labels] + noise * torch.randn(400, 16, generator=generator), labels


@pytest.mark.parametrize("kind", ["linear", "normalized_linear"])
def test_a_probe_is_as_good_as_logistic_regression(kind):
    train_data, test_data = clusters(1, noise=1.5), clusters(2, noise=1.5)
    probe = train_probe(kind, train_data, test_data, 5)
    features = [data[0] for data in (train_data, test_data)]
    if kind == "normalized_linear":
        features = [F.normalize(x, dim=1) for x in features]
    reference = LogisticRegression(max_iter=1000).fit(features[0], train_data[1])
    assert probe.accuracy > 0.6
    assert probe.accuracy == pytest.approx(reference.score(features[1], test_data[1]), abs=0.04)
    assert probe.training_seconds > 0
    again = train_probe(kind, train_data, test_data, 5)
    assert again.accuracy == probe.accuracy


def test_only_the_linear_probe_sees_norms():
    rays = torch.tensor([[1.0, 0.0], [3.0, 0.0]]).repeat(50, 1)
    data = rays, torch.arange(2).repeat(50)
    assert train_probe("linear", data, data, 2).accuracy == 1
    assert train_probe("normalized_linear", data, data, 2).accuracy == 0.5


def test_one_table_after_supervised_contrastive_training(digits_folder, tmp_path, capsys):
    arguments = TrainArguments(
        dataset_name=str(digits_folder), output_dir=str(tmp_path / "run"), epochs=2,
        backbone="test_resnet", batch_size=16, num_workers=0, report_to=["none"], objective="scl",
        projection="mlp", projection_dim=16, linear_probe=True, normalized_linear_probe=True,
        probe_epochs=20, optimizer="adamw", pictures=False,
    )  # fmt: skip
    results = train(arguments)
    classifiers = results["classifiers"]
    assert list(classifiers) == ["class_means", "linear", "normalized_linear"]
    assert classifiers["class_means"]["accuracy"] == results["test"]["accuracy"]
    assert classifiers["class_means"]["training_seconds"] == 0
    assert all(c["pass_seconds"] > 0 and 0 <= c["accuracy"] <= 1 for c in classifiers.values())
    assert format_classifiers(classifiers, "test") in capsys.readouterr().out


def test_a_finished_run_is_probed_by_resuming_it(digits_folder, tmp_path):
    def run(**options):
        arguments = {
            "dataset_name": str(digits_folder), "output_dir": str(tmp_path / "run"), "epochs": 1,
            "backbone": "test_resnet", "batch_size": 16, "num_workers": 0, "report_to": ["none"],
            "pictures": False,
        }  # fmt: skip
        return train(TrainArguments(**arguments, **options))

    first = run()
    assert "classifiers" not in first
    again = run(resume=True, linear_probe=True, probe_epochs=5)
    assert set(again["classifiers"]) == {"class_means", "linear"}
    assert again["test"] == first["test"]


def test_epochs_are_counted():
    with pytest.raises(ArgumentError, match="--probe_epochs must be"):
        TrainArguments(dataset_name="x", probe_epochs=0)
