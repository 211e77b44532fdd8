"""Linear probes: right on what can be separated, deterministic, fair or quick, in one table."""

import pytest
import torch
from accelerate import Accelerator

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation.report import format_classifiers
from hf_protosphere.inference.probes import train_probes
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train

CONFIG = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=3, projection="none")


def trained(kinds, split, network, **options):
    arguments = TrainArguments(dataset_name="x", num_workers=0, temperature=0.1, **options)
    made = train_probes(kinds, network, split, Accelerator(), arguments, (96, 3), 0)
    assert list(made) == kinds
    for kind, (probe, spent, passing, _) in made.items():
        assert probe.kind == kind
        assert probe.temperature == 0.1
        assert spent > 0
        assert passing > 0
    return [probe for probe, *_ in made.values()]


def test_steps_of_the_learning_rate(digits_folder, monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def seen(self, *args):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", seen)
    images = load_image_dataset(str(digits_folder), validation_fraction=0).splits["train"]  # a batch an epoch
    made_of = images.select(range(20)), ProtoSphereForImageClassification(CONFIG)
    options = {"probe_epochs": 4, "probe_learning_rate": 5.0}
    trained(["linear"], *made_of, probe_milestones=[1, 3], **options)
    assert rates == pytest.approx([5.0, 1.0, 1.0, 0.2])
    rates.clear()
    trained(["linear"], *made_of, **options)
    assert rates == pytest.approx([5.0, 4.268, 2.5, 0.732], abs=0.001)


@pytest.mark.parametrize("cache_images", [True, False])
def test_fair_probes_see_images_augmented_anew_in_one_pass_for_all(digits_folder, cache_images):
    images = load_image_dataset(str(digits_folder), validation_fraction=0).splits["train"]
    network, seen = ProtoSphereForImageClassification(CONFIG).train(), []
    network.protosphere.register_forward_hook(lambda _, args, output: seen.append(args[0]))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    options = {"probe_epochs": 3, "augmentation": "crop", "cache_images": cache_images}
    kinds = ["linear", "normalized_linear"]
    first = trained(kinds, images, network, **options)
    assert len(seen) == 3  # batches of all 120 images
    assert not torch.allclose(seen[0].sum(0), seen[1].sum(0), atol=0.1)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    again = trained(kinds, images, network, **options)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first, again))


@pytest.mark.parametrize("fair", [False, True])
def test_one_table_after_supervised_contrastive_training(digits_folder, tmp_path, capsys, fair):
    arguments = TrainArguments(
        dataset_name=str(digits_folder), output_dir=str(tmp_path / "run"), epochs=2,
        backbone="test_resnet", batch_size=16, num_workers=0, report_to=["none"], objective="scl",
        projection="mlp", projection_dim=16, linear_probe=True, normalized_linear_probe=True,
        probe_epochs=10, optimizer="adamw", pictures=False, probe_augmentation=fair,
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
    again = run(resume=True, linear_probe=True, probe_epochs=5, probe_augmentation=True)
    assert set(again["classifiers"]) == {"class_means", "linear"}
    assert again["test"] == first["test"]


def test_epochs_are_counted():
    with pytest.raises(ArgumentError, match="--probe_epochs must be"):
        TrainArguments(dataset_name="x", probe_epochs=0)
