"""The end of a run: the best epoch's model, its final metrics, and results.json last of all."""

import json

import pytest
from safetensors.torch import load_file

from hf_protosphere.training import finish as finishing
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.finish import base_model, hub_id
from hf_protosphere.training.train import train


def test_results_hold_what_cards_and_tables_need(arguments, tmp_path, capsys):
    results = train(arguments(imbalance="exp", imbalance_factor=0.2, epochs=1))
    assert results["train_counts"] == {"digit_0": 36, "digit_1": 16, "digit_2": 7}
    assert set(results["test"]["accuracy_by_frequency"]) == {"medium", "few"}
    assert results["best_epoch"] == 1
    assert results["images_per_second"] > 0
    assert set(results["first_reached"]) == {"train", "validation"}
    assert results["provenance"]["splits"]["validation"]["from"] == "train"
    printed = capsys.readouterr().out
    assert "accuracy, classes with < 20" in printed
    assert "Measuring neural collapse took" in printed
    best = load_file(tmp_path / "run" / "best" / "model.safetensors")
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.equal(final[name]) for name, tensor in best.items())


def test_where_results_are_the_run_is_finished(arguments, tmp_path, monkeypatch):
    """A run that is ended at the very last file is finished by the same command with --resume."""
    options = {"epochs": 1, "pictures": True}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "draw_run", killed)
        with pytest.raises(KeyboardInterrupt):
            train(arguments(**options))
    folder = tmp_path / "run"
    assert (folder / "model.safetensors").exists()
    assert not (folder / "results.json").exists()
    results = train(arguments(**options | {"pictures": False}, resume=True))
    assert json.loads((folder / "results.json").read_text()) == results


def test_local_paths_are_no_ids(tmp_path, monkeypatch):
    assert hub_id("uoft-cs/cifar10") == "uoft-cs/cifar10"
    assert hub_id(str(tmp_path)) is None
    (tmp_path / "user" / "pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("user/pets") is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_id("~/user") is None


def test_pretrained_weights_have_a_name_on_the_hub(tmp_path):
    def started_from(backbone, **options):
        return base_model(TrainArguments(dataset_name="x", backbone=backbone, **options))

    assert started_from("resnet18") is None
    assert started_from("resnet18", pretrained=True).startswith("timm/resnet18.")
    tagged = "vit_tiny_patch16_224.augreg_in21k"
    assert started_from(f"timm/{tagged}", pretrained=True) == f"timm/{tagged}"
    transformers = {"backbone_source": "transformers", "pretrained": True}
    assert started_from("facebook/dinov2-small", **transformers) == "facebook/dinov2-small"
    assert started_from(str(tmp_path), **transformers) is None
    assert started_from(str(tmp_path), pretrained=True) is None  # a folder saved by timm
