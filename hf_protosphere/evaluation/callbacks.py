"""Neural collapse in the stock `transformers.Trainer`, of any image classifier."""

import random
import time
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from transformers import Trainer, TrainerCallback, TrainerState, set_seed

from ..data.labels import some
from ..errors import ArgumentError, at_no_cost
from ..metrics.monitoring import COLLAPSE, Stopwatch, first_reached
from ..metrics.neural_collapse import NeuralCollapse
from ..metrics.snapshot import SnapshotCollector
from ..runs.files import append_json
from ..runs.metrics_log import begin_metrics, read_metrics
from ..runs.plot import TRAINER_RECORDS, draw_run
from ..runs.snapshots import SNAPSHOT, save_snapshot
from .any_classifier import ClassificationLayer


class NeuralCollapseCallback(TrainerCallback):
    """Measures neural collapse while a `transformers.Trainer` trains.

    It looks at a fixed sample of the training set and at the whole evaluation set: before the first step, so that what
    cannot work is said at once, and then every so often. The metrics go to the Trainer's log, and so to its trackers,
    as "train_neural_collapse/nc1_cdnv" and "eval_neural_collapse/...", with the share of the time that they took; and
    to neural_collapse.jsonl in its output folder. When training ends pictures are drawn beside it, which
    `protosphere plot OUTPUT_DIR` draws again.

    Of a ProtoSphere model the embeddings and prototypes are measured; of any other what enters its classification
    layer and the rows of that layer's weight, both scaled to unit norm. Measuring draws no random numbers from the
    training. Of classes that the sample or the evaluation set misses it warns once, and measures the others.

    Args:
        trainer: whose model, data sets, collator and devices are used.
        every: "epoch", or a number of optimiser steps.
        train_samples: images of the training set to measure on, drawn once at random; 0 for none.
            If that set augments its images, they are measured augmented, always in the same way.
        train_dataset: measured, all of it, instead of such a sample.
        classification_layer: the `nn.Linear`, or its name among `model.named_modules()`; by default the only one with
            as many outputs as the model's configuration has labels (without a configuration, the only one).
        class_names: for pictures; by default those of the model's configuration.
        target: percentage of an optimum whose first attainment `first_reached` tells.
        seed: of the sample.

    Raises:
        ArgumentError: an argument out of range; and when training begins, none or several layers
            that could be the classifier, or a training set without a length.
        ValueError: when training begins, as `NeuralCollapse` does: labels out of range.

    Example:
        trainer = Trainer(model, args, train_dataset=train, eval_dataset=test)
        trainer.add_callback(NeuralCollapseCallback(trainer))
        trainer.train()
    """

    def __init__(
        self, trainer: Trainer, *, every: Literal["epoch"] | int = "epoch", train_samples: int = 1000,
        train_dataset: Dataset | None = None, classification_layer: str | nn.Linear | None = None,
        class_names: list[str] | None = None, target: float = 95.0, seed: int = 0,
    ) -> None:  # fmt: skip
        if every != "epoch" and not (isinstance(every, int) and every > 0):
            raise ArgumentError(f"every must be 'epoch' or a number of steps, but got {every!r}.")
        if train_samples < 0:
            raise ArgumentError(f"train_samples must be at least 0, but got {train_samples}.")
        self.trainer, self.every, self.target, self.seed = trainer, every, target, seed
        self.train_samples, self.train_dataset = train_samples, train_dataset
        self.classification_layer, self.class_names = classification_layer, class_names
        self.records: list[dict[str, Any]] = []
        self.stopwatch = Stopwatch()

    @property
    def first_reached(self) -> dict[str, dict[str, dict[str, float]]]:
        """{"eval": {"nc1_cdnv": {"step": 120, "epoch": 4.0}}}: when each first attained `target` % of its optimum."""
        return first_reached(self.records, self.target)

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        self._layer = ClassificationLayer(self.trainer.model, self.classification_layer)
        self._datasets = self._choose_datasets()
        self.stopwatch, self._started = Stopwatch(), time.perf_counter()
        log = Path(args.output_dir) / TRAINER_RECORDS
        if state.is_world_process_zero:
            log.parent.mkdir(parents=True, exist_ok=True)
            # Of an earlier run, or from after the checkpoint that this one resumes from.
            self._log = begin_metrics(log, state.global_step or -1)
            self.records = read_metrics(log)
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        step = state.global_step
        if self.every != "epoch" and (step % self.every == 0 or step == state.max_steps):
            self._measure(state)

    def on_epoch_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        if self.every == "epoch":
            self._measure(state)

    def on_train_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        split, dataset = list(self._datasets.items())[-1]
        collector = SnapshotCollector(self._layer.prototypes)
        with self.stopwatch:
            for embeddings, labels in self._batches(dataset):
                collector.update(embeddings, labels)
        if state.is_world_process_zero:
            folder, names = Path(args.output_dir), self.class_names or self._layer.class_names
            with at_no_cost(f"drawing (`protosphere plot {folder}` draws again)"):
                save_snapshot(collector.snapshot(names, split), folder / SNAPSHOT)
                draw_run(folder, target=self.target)

    def _choose_datasets(self) -> dict[str, Dataset]:
        """By split, the training images first."""
        chosen = {}
        train, evaluation = self.trainer.train_dataset, self.trainer.eval_dataset
        if self.train_dataset is not None:
            chosen["train"] = self.train_dataset
        elif self.train_samples:
            if not isinstance(train, Sized):
                raise ArgumentError(
                    f"a {type(train).__name__} has no length to draw from: give train_dataset=... or train_samples=0."
                )
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
            sample = order[: self.train_samples].sort().values.tolist()
            select = getattr(train, "select", None)  # keeps what datasets.Dataset can do
            chosen["train"] = select(sample) if select else Subset(train, sample)
        if isinstance(evaluation, dict):
            chosen |= {f"eval_{name}": dataset for name, dataset in evaluation.items()}
        elif evaluation is not None:
            chosen["eval"] = evaluation
        if not chosen:
            raise ArgumentError("there is nothing to measure: give the Trainer an eval_dataset.")
        return chosen

    def _measure(self, state: TrainerState) -> None:
        record: dict[str, Any] = {"step": state.global_step, "epoch": state.epoch or 0.0}
        logs: dict[str, float] = {}
        with self.stopwatch:
            for split, dataset in self._datasets.items():
                record[split + COLLAPSE] = metrics = self._metrics(dataset)
                if absent := metrics.get("absent_classes"):
                    warnings.warn(
                        f"no {split} image of {len(absent)} classes ({some(absent)}): neural "
                        "collapse is that of the others.", stacklevel=2,
                    )  # fmt: skip
                numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
                if "overall" in metrics["attained"]:
                    numbers["attained/overall"] = metrics["attained"]["overall"]
                logs |= {f"{split}{COLLAPSE}/{name}": value for name, value in numbers.items()}
        self.records.append(record)
        if state.is_world_process_zero:
            append_json(self._log, record)
        share = self.stopwatch.seconds / (time.perf_counter() - self._started)
        self.trainer.log(logs | {"neural_collapse_share_of_time": share})

    def _metrics(self, dataset: Dataset) -> dict[str, Any]:
        prototypes, accelerator = self._layer.prototypes, self.trainer.accelerator
        metric = NeuralCollapse(*prototypes.shape).to(prototypes.device)
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        for embeddings, labels in self._batches(dataset):
            metric.update(embeddings[share], labels[share])
        return metric.compute(prototypes) | {"optima": metric.optima}

    def _batches(self, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Unit embeddings (M, D) and labels (M,) of all processes, each image once."""
        trainer = self.trainer
        # DataParallel would run the hook in every replica; other wrappers must not be bypassed.
        wrapped = trainer.model_wrapped
        model = trainer.model if isinstance(wrapped, nn.DataParallel) else wrapped
        (label_name, *_) = trainer.label_names or ["labels"]
        with _undisturbed(model, self.seed):
            for batch in trainer.get_eval_dataloader(dataset):
                labels = batch.pop(label_name)
                with trainer.compute_loss_context_manager():
                    embeddings, _ = self._layer.watch(lambda batch=batch: model(**batch))
                yield trainer.accelerator.gather_for_metrics((embeddings, labels))


@contextmanager
def _undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, the same random numbers every time and none of training's."""
    was_training, states = model.training, (random.getstate(), np.random.get_state())
    device = next(model.parameters()).device
    devices = [] if device.type == "cpu" else [device]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=device.type):
            set_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        model.train(was_training)
