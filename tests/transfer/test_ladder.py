"""`--mode auto`: each rung kept where it is better on validation images, and a finished run whichever it is."""

import json
import time
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification, modeling_protosphere
from hf_protosphere.checking import load_from
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, TrainingInterrupted
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.hub.card import render_card
from hf_protosphere.runs.finished_run import FinishedRun
from hf_protosphere.training.run import TrainingRun
from hf_protosphere.transfer import ladder
from hf_protosphere.transfer.arguments import LADDER, FinetuneArguments
from hf_protosphere.transfer.finetune import Transfer, finetune


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=5, projection="none")
    folder = tmp_path_factory.mktemp("source")
    ProtoSphereForImageClassification(config).save_pretrained(folder)
    build_image_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(source, digits_folder, tmp_path):
    def made(**options):
        defaults = {
            "model": str(source), "dataset_name": str(digits_folder), "epochs": 2, "batch_size": 16,
            "num_workers": 0, "report_to": ["none"], "pictures": False, "output_dir": str(tmp_path / "out"),
        }  # fmt: skip
        return FinetuneArguments(**defaults | options)

    return made


def test_whichever_rung_is_kept_is_a_finished_run(arguments, digits_folder, tmp_path, capsys):
    asked = arguments(augmentation="crop", schedule="step", milestones=[1], warmup_epochs=0.5)
    assert asked.mode == "auto"
    result = finetune(asked)
    rows = {row["mode"]: row for row in result["rows"]}
    assert [*rows] == [*LADDER]
    best = max(rows, key=lambda mode: rows[mode]["held_out_accuracy"])
    assert f"kept is {best}, the best on validation images" in capsys.readouterr().out
    folder = tmp_path / "out"
    with ExitStack() as held:
        job = Transfer(asked.but(resume=True), None, held)
        assert [*job.rows()] == result["rows"]  # none is done again
        for mode, row in rows.items():
            job.keep(mode)
            run = FinishedRun.read(folder)
            assert run.results["test"]["accuracy"] == pytest.approx(row["accuracy"], abs=1e-6)
            assert run.results["validation"]["accuracy"] == pytest.approx(row["held_out_accuracy"], abs=1e-6)
            assert (run.arguments.epochs == 0) == (mode in LADDER[:2])
            trained = f"epoch {run.results['best_epoch']} of"
            card = str(render_card(folder))
            assert ("No weight of the backbone was trained" in card) == (mode in LADDER[:2])
            assert (trained in card) == (mode not in LADDER[:2])
            assert not (folder / "kept").exists()
            report = evaluate(
                EvaluateArguments(model=str(folder), dataset_name=str(digits_folder), num_workers=0, json=True)
            )
            assert report["accuracy"] == pytest.approx(row["accuracy"], abs=1e-6)
    assert json.loads((folder / "comparison.json").read_text()) == result


def test_the_last_rung_goes_on_from_the_best_before_it(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "best_rung", lambda rows: "prototypes")
    planned = {}
    monkeypatch.setattr(ladder, "affordable", lambda training, *_: planned.update(of=training))
    rows = finetune(arguments())["rows"]
    assert [row["mode"] for row in rows] == [*LADDER[:3]]  # it was left out
    training = planned["of"]
    assert training.finetune_from == str(tmp_path / "out" / "prototypes")
    assert (training.prototypes, training.layer_decay, training.epochs) == ("learned", 0.75, 2)
    assert FinishedRun.read(tmp_path / "out").config.prototypes == "class_means"


@pytest.mark.parametrize(("seconds", "epochs"), [(1000.0, 10), (7.0, 5), (1.9, 1), (1.2, None)])
def test_as_many_epochs_as_there_is_time_for(arguments, monkeypatch, capsys, seconds, epochs):
    training = arguments().training("layerwise", epochs=10)
    monkeypatch.setattr(ladder, "dry_run", lambda *_, **__: {"seconds_per_epoch": 1.0})
    monkeypatch.setattr(ladder.time, "perf_counter", lambda: 100.0)
    made = ladder.affordable(training, None, seconds, started=99.8)
    assert (made and made.epochs) == epochs
    assert ("Left out: an epoch takes longer than the 1 s" in capsys.readouterr().out) == (epochs is None)


def test_where_no_time_is_left_nothing_is_tried(arguments, monkeypatch, capsys):
    monkeypatch.setattr(ladder, "dry_run", None)
    training = arguments().training("layerwise")
    assert ladder.affordable(training, None, 60.0, started=time.perf_counter() - 61) is None
    assert "longer than the 0 s that are left" in capsys.readouterr().out


def test_a_last_rung_that_was_stopped_goes_on_as_it_was_planned(arguments, tmp_path, monkeypatch):
    plan = [{"seconds_per_epoch": 1000.0}, {"seconds_per_epoch": 1.0}]  # the second time there is time for more
    monkeypatch.setattr(ladder, "dry_run", lambda *_, **__: plan.pop(0))
    asked = arguments(epochs=9, time_budget="1h")
    finish = TrainingRun.finish_epoch

    def stopped(run):
        finish(run)
        if run.arguments.layer_decay and run.progress.epoch == 1:
            raise TrainingInterrupted("stopped", 2)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "finish_epoch", stopped)
        with pytest.raises(TrainingInterrupted):
            finetune(asked)
    rows = finetune(asked.but(resume=True))["rows"]
    assert [row["mode"] for row in rows] == [*LADDER]
    assert FinishedRun.read(tmp_path / "out" / "layerwise").arguments.epochs == 2


def test_a_run_of_one_mode_is_not_gone_on_with_as_a_ladder(arguments):
    finetune(arguments(mode="head", epochs=1))
    with pytest.raises(ArgumentError, match="is a run of one --mode: give it too"):
        finetune(arguments(resume=True))


def test_what_cannot_be_chosen_is_refused(arguments):
    with pytest.raises(ArgumentError, match="--mode auto chooses by validation images, and there are none"):
        finetune(arguments(validation_fraction=0.0))
    with pytest.raises(ArgumentError, match="--time_budget takes such as 90s, 30m or 2h, but got 'soon'"):
        arguments(time_budget="soon")
    with pytest.raises(ArgumentError, match="--time_budget 9m is for --mode auto"):
        arguments(time_budget="9m", mode="full")
    assert arguments(time_budget="1.5h").seconds == 5400


def test_of_few_shots_by_cross_validation(arguments):
    rows = finetune(arguments(shots="4", trials=1))["rows"]
    compared = finetune(arguments(shots="4", trials=1, compare="prototypes,linear_probe", overwrite=True))["rows"]
    best = max(compared, key=lambda row: row["held_out_accuracy"])
    assert [row["mode"] for row in rows] == ["auto"]
    assert rows[0]["accuracy"] == best["accuracy"]
    assert rows[0]["held_out_accuracy"] == best["held_out_accuracy"] > 0


def test_frozen_modes_take_no_more_images_than_were_asked_for(arguments):
    few = finetune(arguments(mode="prototypes", images_per_class=3))["rows"]
    every = finetune(arguments(mode="prototypes", overwrite=True))["rows"]
    assert few[0]["accuracy"] < every[0]["accuracy"]


def test_rungs_go_on_from_rungs_not_from_the_weights_of_ones_own(arguments, source, tmp_path, monkeypatch):
    known = load_file(source / "model.safetensors")
    named = {f"module.{name}": value for name, value in known.items() if "backbone." in name}
    torch.save(named, tmp_path / "own.pth")
    asked = {"model": "test_resnet", "pretrained": str(tmp_path / "own.pth"), "image_size": 32}
    monkeypatch.setattr(ladder, "best_rung", lambda rows: "prototypes")
    taken = []
    monkeypatch.setattr(modeling_protosphere, "load_from", lambda *a, **k: taken.append(k) or load_from(*a, **k))
    rows = finetune(arguments(**asked, partial_weights=True, epochs=1))["rows"]
    assert [row["mode"] for row in rows] == [*LADDER]
    assert len(taken) == 2  # for the frozen rungs, and for the head: the others start from a folder
    assert all(options["partial"] for options in taken)
    trained = FinishedRun.read(tmp_path / "out" / "layerwise").arguments
    assert (trained.finetune_from, trained.pretrained) == (str(tmp_path / "out" / "prototypes"), False)
    kept = load_file(tmp_path / "out" / "model.safetensors")  # its backbone is as it was given, for grey images
    for name in (name for name in known if ".layer" in name):
        assert torch.equal(kept[name], known[name]), name
    run = FinishedRun.read(tmp_path / "out")
    assert run.results["provenance"]["base_model"] is None  # no model of the Hub
    (tmp_path / "own.pth").unlink()
    assert render_card(tmp_path / "out")  # which needs no such file any more


def test_weights_of_ones_own_are_for_a_backbone_and_there(arguments, source, tmp_path):
    with pytest.raises(ArgumentError, match=r"--pretrained \S+/gone\.pth does not exist: give another"):
        finetune(arguments(model="test_resnet", pretrained=str(tmp_path / "gone.pth")))
    with pytest.raises(ArgumentError, match=r"--pretrained \S+ is for a backbone, and --model has weights"):
        finetune(arguments(pretrained=str(source)))
    with pytest.raises(ArgumentError, match="--partial_weights is for --pretrained WHERE"):
        arguments(partial_weights=True)
