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

from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.errors import ArgumentError, DataError, TrainingError, TrainingInterrupted
from hf_protosphere.runs.checkpoints import newest_checkpoint
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training import train as training
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train


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
            "report_to": ["none"],
            "pictures": False,
        }
        return TrainArguments(**{**defaults, **kwargs})

    return make


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


def test_the_average_of_the_weights_is_evaluated_kept_and_resumed(arguments, tmp_path, monkeypatch):
    options = {"epochs": 2, "batch_size": 16, "ema_decay": 0.9}
    train(arguments(**options, output_dir=str(tmp_path / "whole")))
    run = training.TrainingRun(arguments(**options, output_dir=str(tmp_path / "by_hand")))
    last = {name: value.clone() for name, value in run.model.state_dict().items()}
    average = dict(last)
    for step, batches in enumerate(run.groups_of_batches(), 1):
        run.step(batches)
        run.progress.step += 1
        last = {name: value.clone() for name, value in run.model.state_dict().items()}
        decay = min(0.9, 1 - step ** (-2 / 3)) if step > 1 else 0.0
        for name, value in last.items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value
    kept = run.optimizer_step.evaluated_model.state_dict()
    for name, value in average.items():
        if value.is_floating_point():
            assert torch.allclose(kept[name], value, atol=1e-5), name
    assert not torch.equal(
        last["protosphere.backbone.conv1.0.weight"], kept["protosphere.backbone.conv1.0.weight"]
    )

    with monkeypatch.context() as patch:
        stop_after(patch, step=9)
        with pytest.raises(TrainingInterrupted):
            train(arguments(**options))
    train(arguments(**options, resume=True))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_channels_last_is_the_same_training(arguments, tmp_path):
    losses = []
    for name in ("plain", "channels_last"):
        options = {"channels_last": name == "channels_last", "objective": "scl", "epochs": 1}
        run = training.TrainingRun(arguments(**options, output_dir=str(tmp_path / name)))
        batches = run.batches.epoch(0)
        losses.append([run.step([next(batches)])[0].item() for _ in range(2)])
    weight = run.model.protosphere.backbone.conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow  # compiles C++
@pytest.mark.parametrize("objective", ["nonl", "scl", "cross_entropy"])
def test_compiled_training_is_the_same_and_resumes(arguments, tmp_path, monkeypatch, objective):
    options = {"epochs": 2, "batch_size": 16, "objective": objective}
    train(arguments(**options, output_dir=str(tmp_path / "plain")))
    with monkeypatch.context() as patch:
        stop_after(patch, step=8)
        with pytest.raises(TrainingInterrupted):
            train(arguments(**options, compile=True))
    train(arguments(**options, compile=True, resume=True))
    plain, compiled = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "run"))
    for expected, record in zip(plain, compiled, strict=True):
        assert record["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)


def test_label_smoothing_and_mixup_of_the_baseline(arguments, tmp_path):
    plain = {"objective": "cross_entropy", "backbone_kwargs": {"drop_rate": 0.0}, "epochs": 1}
    run = training.TrainingRun(arguments(**plain, label_smoothing=0.2))
    batch = next(run.batches.epoch(0))
    logits = run.model.train()(batch["pixel_values"]).logits
    expected = F.cross_entropy(logits, batch["labels"], label_smoothing=0.2)
    assert run.step([batch])[0].item() == pytest.approx(expected.item(), rel=1e-5)

    mixed = {**plain, "mixup": 0.8, "output_dir": str(tmp_path / "mixed")}
    run = training.TrainingRun(arguments(**mixed))
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    losses = []
    for _ in range(2):  # the same step twice: the same shares
        run.model.load_state_dict(weights)
        batch = next(run.batches.epoch(0))
        losses.append(run.step([batch])[0].item())
    assert losses[0] == losses[1]
    run.model.load_state_dict(weights)
    logits = run.model.train()(next(run.batches.epoch(0))["pixel_values"]).logits
    unmixed = F.cross_entropy(logits, batch["labels"]).item()
    assert abs(losses[0] - unmixed) > 1e-3


def test_early_stopping_by_a_figure_of_neural_collapse(arguments, tmp_path, capsys):
    # Nothing changes, batch norm's statistics included: no epoch is better than the first.
    still = {"backbone": "test_vit", "learning_rate": 1e-30, "weight_decay": 1e-30}
    options = {**still, "best_metric": "nc1_cdnv", "nc_every": 0, "epochs": 9}
    results = train(arguments(**options, early_stopping_patience=2))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(records) == 3
    assert all("validation_neural_collapse" in record for record in records)
    assert "No better nc1_cdnv in 2 epochs: stopping early." in capsys.readouterr().out
    assert results["best_epoch"] == 3  # of equals the last
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-00000009"
    train(arguments(**options, early_stopping_patience=4, resume=True))  # goes on
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 5


def test_patience_counts_evaluated_epochs_and_equals_are_not_better(
    arguments, tmp_path, monkeypatch
):
    # -1 + (0.9 + 1) is not 0.9 in binary: scores are compared, not added up.
    record = {"validation_accuracy": 0.9}
    monkeypatch.setattr(training.CollapseMonitor, "validate", lambda *_, **__: dict(record))
    results = train(arguments(epochs=20, evaluate_every=4, early_stopping_patience=2))
    assert results["best_epoch"] == 8  # 4 was better than nothing, 8 as good: the end
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 8


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
