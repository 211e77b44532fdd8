"""A training run epoch by epoch: resumed to the bit, stopped, averaged, ended early."""

import copy
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file

from hf_protosphere.data.streaming import StreamedBatches
from hf_protosphere.errors import ArgumentError, TrainingError, TrainingInterrupted
from hf_protosphere.runs.checkpoints import newest_checkpoint
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training import run as training
from hf_protosphere.training import setup
from hf_protosphere.training.train import train


def stop_after(monkeypatch, step, number=signal.SIGINT):
    """Send ourselves the signal right after the given training step, once."""
    original = training.TrainingRun.step

    def changed_step(self, batches):
        result = original(self, batches)
        if self.progress.step + 1 == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(training.TrainingRun, "step", changed_step)


@pytest.mark.parametrize(
    "by",
    [
        {"optimizer": "adamw", "queue_size": 40, "class_weights": "balanced"},
        {"optimizer": "lamb", "learning_rate": 1e-2, "schedule": "step", "milestones": [1, 1.6]},
        {"optimizer": "muon", "learning_rate": 1e-3, "min_lr_rate": 0.1, "warmup_lr_rate": 0.5},
    ],
    ids=lambda by: by["optimizer"],
)  # fmt: skip
def test_interrupted_and_resumed_is_the_same_run_to_the_bit(arguments, tmp_path, monkeypatch, by):
    options = {"epochs": 3, "batch_size": 16, "backbone_kwargs": {"drop_rate": 0.2}, **by}
    train(arguments(**options, output_dir=str(tmp_path / "whole")))

    step = 12 if by["optimizer"] == "muon" else 9  # the second epoch has steps 7 to 12
    with monkeypatch.context() as patch:
        stop_after(patch, step=step)
        with pytest.raises(TrainingInterrupted, match=rf"after step {step}.*--resume") as stopped:
            train(arguments(**options))
    assert stopped.value.signal == signal.SIGINT
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest.name == f"step-{step:08d}"
    assert (newest / "queue-0.safetensors").exists() == ("queue_size" in by)
    train(arguments(**options, resume=True))

    whole = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl") == read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_a_streamed_run_resumes_to_the_bit_from_where_its_readers_were(arguments, tmp_path, monkeypatch):
    options = {"streaming": True, "validation_split": "test", "shuffle_buffer": 20, "num_workers": 2, "batch_size": 8}
    options |= {"backbone_kwargs": {"drop_rate": 0.2}}
    train(arguments(**options, output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_after(patch, step=20)  # the second epoch has steps 16 to 30
        with pytest.raises(TrainingInterrupted):
            train(arguments(**options))
    with monkeypatch.context() as patch:
        read, seen = StreamedBatches.epoch, []
        patch.setattr(
            StreamedBatches, "epoch", lambda self, *a, **k: seen.append({**self.position}) or read(self, *a, **k)
        )
        train(arguments(**options, resume=True))
    assert {name: seen[0][name] for name in ("epoch", "batches", "next")} == {"epoch": 1, "batches": 5, "next": 1}
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl") == read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_resuming_from_nothing_starts_and_with_other_arguments_is_refused(arguments, capsys):
    train(arguments(resume=True, epochs=1))
    assert "starting from the start" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match=r"--temperature was None, is 0.2.*--epochs|epochs"):
        train(arguments(resume=True, epochs=2, temperature=0.2))


def test_of_a_damaged_checkpoint_the_one_before_is_taken(arguments, tmp_path, capsys):
    options = {"epochs": 2, "keep_checkpoints": 2, "pictures": False}
    train(arguments(**options))
    weights, checkpoints = tmp_path / "run" / "model.safetensors", tmp_path / "run" / "checkpoints"
    whole, (first, last) = load_file(weights), sorted(checkpoints.iterdir())
    (last / "optimizer.bin").write_bytes((last / "optimizer.bin").read_bytes()[:-100])
    capsys.readouterr()
    train(arguments(**options, resume=True))
    said = capsys.readouterr().out
    assert f"{last} is damaged: " in said
    assert "Going on from the one before.\nResuming at step 3 (epoch 2)." in said
    assert all(torch.equal(value, whole[name]) for name, value in load_file(weights).items())

    (first / "progress.json").write_text('{"step": 3}')
    progress = json.loads((last / "progress.json").read_text())
    for changes in ({"step": 5}, {"epoch": 1, "step_in_epoch": 2}, {"epoch": 9}):
        (last / "progress.json").write_text(json.dumps(progress | changes))
        none = rf"^--resume: {last} is damaged.* is whole: start again by --overwrite\.$"
        with pytest.raises(ArgumentError, match=none) as error:
            train(arguments(**options, resume=True))
        assert len(str(error.value).splitlines()) == 1


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(arguments, tmp_path, monkeypatch):
    original = training.TrainingRun.step

    def changed_step(self, batches):
        if self.progress.step + 1 == 5:
            with torch.no_grad():
                self.model.head.weight.fill_(float("nan"))
        return original(self, batches)

    monkeypatch.setattr(training.TrainingRun, "step", changed_step)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 5 \(epoch 2\).*step-00000003"):
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
    assert not torch.equal(last["protosphere.backbone.conv1.0.weight"], kept["protosphere.backbone.conv1.0.weight"])

    with monkeypatch.context() as patch:
        stop_after(patch, step=9)
        with pytest.raises(TrainingInterrupted):
            train(arguments(**options))
    train(arguments(**options, resume=True))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_channels_last_is_the_same_training(arguments, tmp_path):
    losses = []
    for name, given in (("plain", {"channels_last": False}), ("channels_last", {})):
        options = {**given, "objective": "scl", "epochs": 1}
        run = training.TrainingRun(arguments(**options, output_dir=str(tmp_path / name)))
        batches = run.batches.epoch(0)
        losses.append([run.step([next(batches)])[0].item() for _ in range(2)])
    weight = run.model.protosphere.backbone.conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    run = training.TrainingRun(arguments(backbone="test_vit", output_dir=str(tmp_path / "vit")))
    kernels = [p for p in run.model.parameters() if p.dim() == 4]  # of the patches
    assert all(kernel.is_contiguous() for kernel in kernels)


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


def test_odd_batches_of_two_views_are_mixed_and_smoothed(arguments):
    options = {"objective": "cross_entropy", "views": 2, "batch_size": 15, "mixup": 0.8}
    run = training.TrainingRun(arguments(**options, backbone="test_vit", label_smoothing=0.2))
    batch = next(run.batches.epoch(0))
    pixels, labels = batch["pixel_values"], batch["labels"]
    assert pixels.shape[:2] == (15, 2)
    loss = run.step([batch])[0].item()

    run = training.TrainingRun(arguments(**options, backbone="test_vit", label_smoothing=0.2, resume=True))
    np.random.seed(hash((0, 0, 0)) % 2**32)  # seed, step, process
    share = np.random.beta(0.8, 0.8)
    smooth = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    mixed, targets = (share * x + (1 - share) * x.flip(0) for x in (pixels, smooth))
    logits = run.model.train()(mixed.flatten(0, 1)).logits
    expected = F.cross_entropy(logits, targets.repeat_interleave(2, 0)).item()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("views", [1, 2])
def test_rectangles_of_other_images_are_pasted(arguments, views):
    options = {"objective": "cross_entropy", "views": views, "batch_size": 15, "cutmix": 1.0}
    run = training.TrainingRun(arguments(**options, backbone="test_vit"))
    batch = next(run.batches.epoch(0))
    pixels, labels = batch["pixel_values"].clone(), batch["labels"]
    network = copy.deepcopy(run.model).train()
    loss = run.step([batch])[0].item()
    assert torch.equal(batch["pixel_values"], pixels)

    np.random.seed(hash((0, 0, 0)) % 2**32)  # seed, step, process
    reach = (1 - np.random.beta(1.0, 1.0)) ** 0.5
    side, y, x = int(32 * reach), np.random.randint(32), np.random.randint(32)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[max(0, y - side // 2) : y + (side + 1) // 2, max(0, x - side // 2) : x + (side + 1) // 2] = True
    pasted = torch.where(inside, pixels.flip(0), pixels)
    share = 1 - inside.float().mean()
    assert 0 < share < 1
    targets = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(labels.flip(0), 3)
    logits = network(pasted.flatten(0, -4)).logits
    expected = F.cross_entropy(logits, targets.repeat_interleave(views, 0)).item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_of_mixup_and_cutmix_each_step_takes_one(arguments):
    run = training.TrainingRun(arguments(objective="cross_entropy", cutmix=1.0, mixup=1.0))
    pixels, labels, kinds = torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.long), set()
    for seed in range(12):
        np.random.seed(seed)
        mixed, _ = run.optimizer_step._mixed(pixels, labels)
        kinds.add(((mixed == pixels) | (mixed == pixels.flip(0))).all().item())
    assert kinds == {True, False}


def fails(*_, **__):
    raise OSError("the disk is full")


def test_a_tracker_that_fails_costs_nothing(arguments, monkeypatch, caplog):
    monkeypatch.setattr(TensorBoardTracker, "finish", fails)
    train(arguments(report_to=["tensorboard"], epochs=1, nc_every=0))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == ("--report_to tensorboard failed; the results are kept (OSError: the disk is full)")
    caplog.clear()

    told = []
    working = SimpleNamespace(name="wandb", log=lambda values, step: told.append((values, step)))
    accelerator = SimpleNamespace(trackers=[SimpleNamespace(name="trackio", log=fails), working])
    for step in (1, 2):
        setup.tell_trackers(accelerator, {"step": step, "loss": {"a": 0.5}})
    assert told == [({"loss/a": 0.5}, 1), ({"loss/a": 0.5}, 2)]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("--report_to trackio, which is left out from now on, failed")

    starting = arguments(report_to=["tensorboard"])
    with pytest.raises(ArgumentError, match="--report_to tensorboard cannot start: the disk"):
        setup.start_trackers(SimpleNamespace(init_trackers=fails), starting, "id")


def test_the_start_is_epoch_0_and_an_end_below_it_is_said(arguments, tmp_path, capsys):
    train(arguments(epochs=1, output_dir=str(tmp_path / "source")))
    assert "below its start" not in capsys.readouterr().out  # nothing was known at the start
    train(arguments(finetune_from=str(tmp_path / "source"), learning_rate=3.0))
    told = capsys.readouterr().out
    start, *epochs = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (start["step"], start["epoch"]) == (0, 0)
    reached = max(record["validation_accuracy"] for record in epochs)
    by_means = start["validation_class_means_accuracy"]
    assert reached < by_means
    assert f"before training {by_means:.2%}" in told
    assert f"ended below its start: validation accuracy {reached:.2%}" in told
    assert "Try a --learning_rate below 3, or" in told


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


def test_patience_counts_evaluated_epochs_and_equals_are_not_better(arguments, tmp_path, monkeypatch):
    # -1 + (0.9 + 1) is not 0.9 in binary: scores are compared, not added up.
    record = {"validation_accuracy": 0.9}
    monkeypatch.setattr(training.CollapseMonitor, "validate", lambda *_, **__: dict(record))
    results = train(arguments(epochs=20, evaluate_every=4, early_stopping_patience=2))
    assert results["best_epoch"] == 8  # 4 was better than nothing, 8 as good: the end
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 8
