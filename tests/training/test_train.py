"""The training loop on a handful of digits: what it says and leaves, how it resumes and fails."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.cli import main
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.open_set.arguments import CalibrateArguments
from hf_protosphere.open_set.calibrate import calibrate
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training import run as training
from hf_protosphere.training.train import announcement, dry_run, train


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


def test_classes_without_evaluation_images_are_named_and_cost_nothing(arguments, capsys):
    results = train(arguments(epochs=1, max_eval_samples=2))
    missing = "image of digit_1: neural collapse is that of the other classes"
    told = capsys.readouterr().out
    assert f"No validation {missing}" in told
    assert f"No test {missing}" in told
    assert "(no image of digit_1: what needs every class is not defined)" in told
    assert results["test"]["neural_collapse"]["absent_classes"] == [1]
    assert "nc3_self_duality" not in results["test"]["neural_collapse"]["attained"]
    with pytest.raises(ArgumentError, match=r"--best_metric nc4_agreement .* have none of digit_1"):
        train(arguments(max_eval_samples=2, best_metric="nc4_agreement", overwrite=True))


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
    assert all(r["train_loss"] == r["train_loss"] for r in read_metrics(tmp_path / "run/metrics.jsonl"))


def test_a_learned_temperature_is_told_every_epoch(arguments, tmp_path, capsys):
    train(arguments(objective="ntce", learn_temperature=True, temperature=0.5, decay_all=True))
    told = [r["temperature"] for r in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert len({0.5, *told}) == 3
    printed = capsys.readouterr()
    assert f"temperature {told[-1]:.3g}" in printed.out + printed.err
    config = ProtoSphereConfig.from_pretrained(tmp_path / "run")
    assert config.softmax_temperature in told


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
def test_bad_input_is_refused_before_anything_is_written(arguments, tmp_path, kwargs, error, message):
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


def test_the_first_lines_of_a_run(arguments, tmp_path):
    def said(**options):
        return announcement(training.TrainingRun(arguments(overwrite=True, **options))).splitlines()

    first, second, third = said(batch_size=16, gradient_accumulation_steps=2)
    of_network = "(0.38 M parameters, projection linear, embeddings of 96, learned prototypes, "
    assert first == f"ntce on test_resnet {of_network}temperature 0.75 = 0.5 t*)"
    assert said(objective="cross_entropy", temperature=0.3)[0].endswith("of 96, a linear head)")
    assert second.endswith("3 classes, train 108, test 45, validation 12; 32 px, 1 channel(s)")
    assert third == (f"2 epochs of 3 steps of 32 images, 1 process(es) on cpu; → {tmp_path / 'run'}")
    first, *_, tail, last = said(
        freeze_backbone=True, imbalance="exp", imbalance_factor=0.1, batch_size=8, validation_fraction=0.0
    )
    assert ", 9,600 of them trained, " in first
    assert tail == "long-tailed (exp): 40, 12, 4 images a class"
    assert last == "No validation images: validating on the training set."
    dry = said(dry_run=True)[2]
    assert dry.endswith("on cpu")  # nothing goes anywhere


def test_the_flag_leaves_the_output_folder_alone(digits_folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    main(
        f"train --dataset_name {digits_folder} --backbone test_resnet --batch_size 8 --dry_run "
        f"--num_workers 0 --overwrite --output_dir {tmp_path / 'run'}".split()
    )
    assert "two steps taken" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_the_plan_is_that_of_the_whole_run(arguments, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr("hf_protosphere.data.dataset.without_bad_images", lambda *_: decoded.append(_))
    plan = dry_run(arguments(epochs=5, batch_size=16, gradient_accumulation_steps=2))
    assert (plan["images_per_step"], plan["steps"], plan["images"]) == (32, 15, 480)
    assert plan["hours"] == pytest.approx(5 * plan["seconds_per_epoch"] / 3600)
    once = dry_run(arguments(epochs=5, batch_size=108))  # the second step is another epoch's
    assert (once["steps"], once["images_per_step"]) == (5, 108)
    assert decoded == []  # of 108 images two steps take 64
    assert not (tmp_path / "run").exists()


def test_jobs_of_one_process_have_each_their_own_precision(arguments, digits_folder, tmp_path, monkeypatch):
    found = []
    for job in ("training.setup", "evaluation.evaluate", "open_set.calibrate"):
        monkeypatch.setattr(
            f"hf_protosphere.{job}.check_processes",
            lambda accelerator, **_: found.append(accelerator.mixed_precision),
        )
    before = dict(AcceleratorState._shared_state)
    with ThreadPoolExecutor(1) as thread:  # a sweep, say, or the back end of a notebook
        results = thread.submit(train, arguments(mixed_precision="bf16", epochs=1)).result()
    given = {"model": str(tmp_path / "run"), "dataset_name": str(digits_folder), "num_workers": 0}
    report = evaluate(EvaluateArguments(**given, class_means=False))
    calibrate(CalibrateArguments(**given, split="test"))
    dry_run(arguments())
    assert found == ["bf16", "no", "no", "no"]
    assert AcceleratorState._shared_state == before
    assert results["test"]["num_images"] == report["num_images"] == 45
