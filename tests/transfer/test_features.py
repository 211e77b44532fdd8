"""Heads trained on features: as on the images, resumed to the bit, whole when saved."""

import signal

import pytest
import torch
from safetensors.torch import load_file

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.errors import ArgumentError, TrainingInterrupted
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.training import run as run_module
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import dry_run, train
from hf_protosphere.transfer.arguments import FinetuneArguments
from hf_protosphere.transfer.features import embedded, features_of, train_head


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source")
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=2)
    ProtoSphereForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(source, digits_folder, tmp_path):
    def make(**options):
        defaults = {
            "dataset_name": str(digits_folder), "finetune_from": str(source), "epochs": 3, "freeze_backbone": True,
            "feature_views": 2, "objective": "ntce", "batch_size": 32, "num_workers": 0, "report_to": ["none"],
            "pictures": False, "output_dir": str(tmp_path / "run"), "check_images": False,
        }  # fmt: skip
        return TrainArguments(**defaults | options)

    return make


def trained(folder):
    return load_file(folder / "model.safetensors")


def test_on_plain_features_as_on_images_that_are_not_augmented(arguments, tmp_path):
    same = {"augmentation": "none", "horizontal_flip": False, "imprint": True}
    once = train(arguments(feature_views=1, **same))
    folder = str(tmp_path / "in_every_epoch")
    again = train(arguments(feature_views=0, output_dir=folder, cache_images=False, **same))
    ours, theirs = trained(tmp_path / "run"), trained(tmp_path / "in_every_epoch")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-4)
    assert once["test"]["accuracy"] == again["test"]["accuracy"]
    assert once["provenance"]["parameters"] == again["provenance"]["parameters"]
    assert once["feature_seconds"] > 0
    assert "feature_seconds" not in again


def test_what_is_saved_is_whole(arguments, source, digits_folder, tmp_path, capsys):
    results = train(arguments())
    assert "The features of the training images took" in capsys.readouterr().out
    report = evaluate(
        EvaluateArguments(model=str(tmp_path / "run"), dataset_name=str(digits_folder), num_workers=0, json=True)
    )
    assert report["accuracy"] == results["test"]["accuracy"]
    before, after = trained(source), trained(tmp_path / "run")
    frozen = [name for name in before if ".backbone." in name]
    assert all(torch.equal(after[name], before[name]) for name in frozen)


MLP = {"finetune_from": None, "backbone": "test_resnet", "image_size": 32, "projection": "mlp"}


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "objective": "scl"} | MLP])
def test_resumed_to_the_bit(arguments, tmp_path, monkeypatch, options):
    options |= {"classes_per_batch": 2, "checkpoint_every": 2, "nc_every": 0}
    whole = train(arguments(**options, output_dir=str(tmp_path / "whole")))

    class StopsAfter(run_module.Stop):
        """At step 8 of 9: after the best epoch was kept in memory alone."""

        steps = 0

        def now(self, accelerator):
            StopsAfter.steps += 1
            return StopsAfter.steps == 8

        def agreed(self, accelerator):
            self.signal = signal.SIGTERM
            return StopsAfter.steps == 8

    monkeypatch.setattr("hf_protosphere.runs.signals.Stop", StopsAfter)
    monkeypatch.setattr("hf_protosphere.training.train.stop_signals", stops(StopsAfter))
    with pytest.raises(TrainingInterrupted):
        train(arguments(**options))
    results = train(arguments(**options, resume=True))
    assert results["best_epoch"] == whole["best_epoch"]
    ours, theirs = trained(tmp_path / "run"), trained(tmp_path / "whole")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    with pytest.raises(ArgumentError, match=r"--feature_views was 2, is 1"):
        train(arguments(**options, resume=True, feature_views=1))


def stops(kind):
    from contextlib import contextmanager

    @contextmanager
    def signals(_):
        yield kind()

    return signals


def test_from_python_and_without_files(arguments, tmp_path):
    options = arguments(epochs=2)
    features = features_of(options)
    assert {role: (*split.versions.shape,) for role, split in features.splits.items()} == {
        "train": (2, 108, 96), "validation": (1, 12, 96), "test": (1, 45, 96)
    }  # fmt: skip
    model, results = train_head(options, features)
    assert not (tmp_path / "run").exists()
    assert [record["epoch"] for record in results["records"]] == [0, 1, 2]
    test = features.splits["test"]
    right = embedded(model, test)[1].argmax(1) == test.labels
    assert right.float().mean() == pytest.approx(results["test"]["accuracy"])
    train(options)
    theirs = trained(tmp_path / "run")
    assert all(torch.equal(t, theirs[name]) for name, t in model.state_dict().items())
    with pytest.raises(ArgumentError, match="give --freeze_backbone"):
        train_head(arguments(freeze_backbone=False, feature_views=0), features)


def test_a_dry_run_computes_a_sample(arguments, monkeypatch, capsys):
    monkeypatch.setattr("hf_protosphere.training.setup.SAMPLE", 16)
    plan = dry_run(arguments())
    assert plan["steps"] == 9
    assert "108 train images x 2" in capsys.readouterr().err


def test_what_features_do_not_obey_is_refused(arguments):
    with pytest.raises(ArgumentError, match=r"--feature_views 2 is for --freeze_backbone"):
        arguments(freeze_backbone=False)
    for name, value in {"augmentation": "crop", "blur": 0.5, "random_erasing": 0.1}.items():
        with pytest.raises(ArgumentError, match=f"--{name} {value} changes images, .* 3 or more"):
            arguments(**{name: value})
        assert arguments(**{name: value}, feature_views=3).feature_views == 3
    with pytest.raises(ArgumentError, match=r"--cutmix 0\.5 changes images, .* or give 0\.$"):
        arguments(cutmix=0.5, objective="cross_entropy", feature_views=3)
    assert arguments(augmentation="none").feature_views == 2
    options = {"model": "x", "dataset_name": "x", "compare": "head,full", "augmentation": "crop"}
    compared = FinetuneArguments(**options)
    assert compared.training("full").augmentation == "crop"
    assert compared.training("head").feature_views == 2
