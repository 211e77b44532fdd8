"""The end of a run: the best epoch's model, its results, and then what may fail."""

import json

import pytest
import timm
from safetensors.torch import load_file

from hf_protosphere.runs.signals import Stop
from hf_protosphere.training import finish as finishing
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.finish import base_model, finish, hub_id
from hf_protosphere.training.run import TrainingRun
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


def test_a_run_that_is_ended_while_it_draws_is_finished(arguments, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(finishing, "draw_run", killed)
    with pytest.raises(KeyboardInterrupt):
        train(arguments(epochs=1, pictures=True))
    folder = tmp_path / "run"
    assert (folder / "model.safetensors").exists()
    written = json.loads((folder / "results.json").read_text())
    results = train(arguments(epochs=1, resume=True))
    assert results.keys() == written.keys()
    assert results["test"] == written["test"]


def test_nothing_that_comes_beside_the_results_costs_them(arguments, monkeypatch, caplog):
    run = TrainingRun(arguments(epochs=1, pictures=True))
    run.train_epoch(Stop())
    run.finish_epoch()
    order = []

    def in_its_place(name, job):
        monkeypatch.setattr(finishing, name, lambda *a, **k: order.append(name) or job(*a, **k))

    for name in ("save_model", "evaluate_model", "write_json", "save_snapshot"):
        in_its_place(name, getattr(finishing, name))
    in_its_place("draw_run", lambda *_, **__: [])
    whole = finish(run)
    assert order == ["save_model", *["evaluate_model"] * 2, "write_json", "save_snapshot", "draw_run"]
    assert not caplog.records

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    lacks = {
        "provenance": {"provenance"}, "training_class_means": set(),
        "save_snapshot": set(), "draw_run": set(),
        "format_report": set(), "read_metrics": set(),
    }  # fmt: skip
    for name, keys in lacks.items():
        for written in ("results.json", "model.safetensors"):
            (run.output_dir / written).unlink()
        with monkeypatch.context() as patch:
            patch.setattr(finishing, name, fails)
            results = finish(run)
        assert json.loads((run.output_dir / "results.json").read_text()) == results
        assert whole.keys() - results.keys() == keys
        assert results["test"]["accuracy"] == whole["test"]["accuracy"]
        assert load_file(run.output_dir / "model.safetensors")
        warning, *others = [record.getMessage() for record in caplog.records]
        assert "failed; the results are kept (OSError: [Errno 28]" in warning, name
        assert not others
        caplog.clear()


def test_local_paths_are_no_ids(tmp_path, monkeypatch):
    assert hub_id("uoft-cs/cifar10") == "uoft-cs/cifar10"
    assert hub_id(str(tmp_path)) is None
    (tmp_path / "user" / "pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("user/pets") is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_id("~/user") is None


def test_pretrained_weights_have_a_name_on_the_hub(tmp_path, monkeypatch):
    def started_from(backbone, **options):
        return base_model(TrainArguments(dataset_name="x", backbone=backbone, **options))

    assert started_from("resnet18") is None
    assert started_from("resnet18", pretrained=True).startswith("timm/resnet18.")
    tagged = "vit_tiny_patch16_224.augreg_in21k"
    assert started_from(f"timm/{tagged}", pretrained=True) == f"timm/{tagged}"
    transformers = {"backbone_source": "transformers", "pretrained": True}
    assert started_from("facebook/dinov2-small", **transformers) == "facebook/dinov2-small"
    assert started_from(str(tmp_path), **transformers) is None
    for folder in (tmp_path, f"local-dir:{tmp_path}"):  # saved by timm
        assert started_from(str(folder), pretrained=True) is None
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)
    assert started_from("unknown_to_timm", pretrained=True) is None
