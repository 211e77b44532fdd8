"""A training run: everything that it is made of, and its epochs."""

import copy
import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.arguments import BatchOptions
from ..data.dataset import ImageDataset
from ..data.loaders import TrainingBatches, evaluation_loader
from ..data.streaming import StreamedBatches
from ..data.subsets import training_sample
from ..data.transforms import build_image_processor
from ..errors import ArgumentError, TrainingError, TrainingInterrupted
from ..inference.features import with_backbone
from ..inference.predictions import training_class_means
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots import text
from ..runs import checkpoints
from ..runs.checkpoints import DamagedCheckpoint, Progress
from ..runs.files import append_json, write_yaml
from ..runs.metrics_log import begin_metrics
from ..runs.processes import announce, main_process_first
from ..runs.signals import Stop
from . import setup
from .adaptation import first_prototypes, without_adapters
from .arguments import TrainArguments
from .environment import record_start
from .monitoring import CollapseMonitor, epoch_line, is_due, score
from .optimizer import build_optimizer
from .step import OptimizerStep

LOG_STEPS = 10  # steps between looks at the loss: each one waits for the device


class TrainingRun:
    """Built, and checked, by the constructor; driven epoch by epoch. The output folder is its own while `held`."""

    def __init__(
        self, arguments: TrainArguments, images: ImageDataset | None = None, held: ExitStack | None = None
    ) -> None:
        self.arguments, self.checkpoint = setup.resolve(arguments)
        arguments = self.arguments
        self.output_dir = Path(arguments.output_dir)
        self.accelerator = setup.build_accelerator(arguments)
        set_seed(arguments.seed)
        classes = self.checkpoint.class_names if arguments.resume_from is not None else None
        with main_process_first(self.accelerator):
            self.images = setup.training_images(arguments, classes, images)
        self.train_counts = None if self.images.is_streamed else self.images.class_counts("train")
        self.steps_per_epoch = setup.count_steps(arguments, self.images, self.accelerator)
        self.validation = "validation" if "validation" in self.images.splits else "train"
        setup.refuse_what_classes_lack(arguments, self.images, self.validation)
        self.model = setup.build_model(arguments, self.images)
        setup.refuse_single_values(arguments, self.model)
        if arguments.sync_batchnorm:
            self.model = setup.with_synchronized_batchnorm(self.model, self.accelerator)
        self.processor = build_image_processor(self.model.config)
        if not arguments.dry_run:
            self.held = held or ExitStack()  # before images are decoded
            setup.hold_output_dir(arguments, self.model, self.accelerator, self.held)
        if arguments.channels_last and setup.profits_from_channels_last(self.model, self.accelerator):
            self.model.to(memory_format=torch.channels_last)
        self.images, trained = setup.features_and_head(arguments, self.images, self.model, self.accelerator)
        self.on_features = trained is not self.model
        self.batches = self._training_batches()
        self.eval_loaders = {role: self._eval_loader(split, role) for role, split in self.images.splits.items()}
        optimizer = build_optimizer(
            arguments, trained, images_per_step=self.images_per_step, steps_per_epoch=self.steps_per_epoch,
            fused=not self.accelerator.is_fsdp2,  # torch's fused SGD takes no sharded parameters
        )  # fmt: skip
        self.optimizer_step = OptimizerStep(arguments, trained, *optimizer, self.accelerator)
        self._best: ProtoSphereForImageClassification | None = None  # as long as it is not written
        self.monitor = CollapseMonitor(
            model=self.optimizer_step.evaluated_model, accelerator=self.accelerator,
            validation=self.eval_loaders[self.validation], train_sample=self._train_sample_loader(),
        )  # fmt: skip
        self.progress = Progress.start(self.accelerator, self.images_per_step)
        if not arguments.dry_run:
            self._open()

    @property
    def record(self) -> dict[str, Any]:
        """The arguments as in arguments.yaml: what the room on the disk decided is so, also when it is resumed."""
        decided = {} if self.images.is_streamed else {"cache_images": self.batches.is_cached}
        return dataclasses.asdict(self.arguments) | decided

    # Building

    def _open(self) -> None:
        """Go on where the run in the folder stands, or begin it: its files, log and trackers."""
        if self.arguments.resume:
            self.progress = self._resume()
        self.monitor.stopwatch.seconds = self.progress.collapse_seconds
        run_id = ""
        if self.accelerator.is_main_process:
            write_yaml(self.output_dir / "arguments.yaml", self.record)
            run_id = record_start(self.output_dir, self.arguments, self.images, self.accelerator)
            last_step = self.progress.step or -1  # also epoch 0 comes again
            self.log = begin_metrics(self.output_dir / "metrics.jsonl", last_step)
        setup.start_trackers(self.accelerator, self.arguments, run_id)

    def _training_batches(self) -> TrainingBatches | StreamedBatches:
        split, options = self.images.splits["train"], BatchOptions.of(self.arguments)
        made_of = (split, self.model.config, options, self.accelerator)
        if not self.images.is_streamed:
            return TrainingBatches(*made_of)
        steps = self.arguments.gradient_accumulation_steps
        return StreamedBatches(*made_of, batches_per_epoch=self.steps_per_epoch * steps)

    def _train_sample_loader(self) -> DataLoader | None:
        if self.images.is_streamed:
            return None
        train, size = self.images.splits["train"], self.arguments.nc_train_samples
        sample = training_sample(train, self.images.num_labels, size, self.arguments.seed)
        return None if sample is None else self._eval_loader(sample, "training sample")

    def _eval_loader(self, split: Dataset | IterableDataset, description: str) -> DataLoader:
        arguments = self.arguments
        cache = self.images.is_streamed and arguments.cache_images is not False
        return evaluation_loader(
            split, self.processor, arguments.eval_batch_size, arguments.num_workers, self.accelerator,
            description=description, cache=self.batches.is_cached or cache, skip_bad=arguments.on_bad_image == "skip",
        )  # fmt: skip

    def _resume(self) -> Progress:
        """Go on from the newest checkpoint that is whole, and say where that is."""
        found = checkpoints.complete_checkpoints(self.output_dir / "checkpoints")[::-1]
        if not found:
            announce(f"No checkpoint in {self.output_dir}: starting from the start.", sys.stdout)
            return self.progress
        damage, step = [], self.optimizer_step
        for checkpoint in found:
            try:
                progress = checkpoints.read_progress(checkpoint)
                changed = checkpoints.changed_arguments(self.output_dir, self.record)
                changed += progress.differences(self.progress)
                checkpoints.refuse_changes(f"run in {self.output_dir}", changed)
                full = progress.epoch * self.steps_per_epoch
                if not 0 <= progress.step - full == progress.step_in_epoch <= self.steps_per_epoch:
                    raise DamagedCheckpoint(
                        f"{checkpoint} is damaged, or the data have changed: step {progress.step} "
                        f"is none of epoch {progress.epoch + 1} with {self.steps_per_epoch} each."
                    )
                checkpoints.load_checkpoint(
                    self.accelerator, checkpoint, progress.step, average=step.average,
                    queue=step.queue, scheduler=step.scheduler,
                )  # fmt: skip
            except DamagedCheckpoint as error:
                damage.append(error)
                continue
            for error in damage:
                self.accelerator.print(f"{error} Going on from the one before.")
            if self.images.is_streamed and len(streams := progress.streams or ()) == self.accelerator.num_processes:
                self.batches.position = streams[self.accelerator.process_index]
            announce(f"Resuming at step {progress.step} (epoch {progress.epoch + 1}).", sys.stdout)
            return progress
        raise ArgumentError(
            f"--resume: {damage[0]} No checkpoint in {self.output_dir} is whole: start again by --overwrite."
        ) from damage[0]

    # Training

    def train_epoch(self, stop: Stop) -> None:
        """The rest of the current epoch."""
        if self.progress.step == 0:
            self._begin()
        progress, monitor, started = self.progress, self.monitor, time.perf_counter()
        monitored = monitor.stopwatch.seconds
        unseen: list[Tensor] = []  # (2,) loss and accuracy of each step since the last look
        first_step = progress.step_in_epoch
        bar = tqdm(
            total=self.steps_per_epoch, initial=first_step, leave=False,
            desc=f"epoch {progress.epoch + 1}/{self.arguments.epochs}",
            **{} if self.accelerator.is_main_process else {"disable": True},
        )  # fmt: skip

        def trained_seconds() -> float:
            return time.perf_counter() - started - (monitor.stopwatch.seconds - monitored)

        def look() -> None:
            """Show and check the loss; stop with a checkpoint if that was asked for."""
            self._add_to_totals(unseen)
            steps, seconds = progress.step_in_epoch, trained_seconds()
            loss, accuracy = (total / steps for total in progress.epoch_totals)
            pace = seconds / (steps - first_step) if steps > first_step else 0.0  # s per step
            left = pace * (self.arguments.epochs * self.steps_per_epoch - progress.step)
            bar.set_postfix(
                loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}",
                lr=f"{self.optimizer_step.scheduler.get_last_lr()[0]:.2g}",
                images_per_s=f"{self.images_per_step / pace:.0f}" if pace else "-", left=tqdm.format_interval(left),
            )  # fmt: skip
            if stop.agreed(self.accelerator):
                progress.training_seconds += seconds
                path = self._save_checkpoint()
                words = f"stopped after step {progress.step}; {path} is complete: run the same command with --resume."
                raise TrainingInterrupted(words, stop.signal)

        with bar:
            self.optimizer_step.train_mode()
            for batches in self.groups_of_batches():
                loss, accuracy = self.step(batches)
                progress.step += 1
                progress.step_in_epoch += 1
                unseen.append(torch.stack([loss, accuracy]))
                bar.update()
                at_end = progress.step_in_epoch == self.steps_per_epoch
                if is_due(self.arguments.nc_every_steps, progress.step) and not at_end:
                    epoch = progress.step / self.steps_per_epoch
                    with monitor.stopwatch:  # all of it is the price of measuring
                        record = monitor.validate(neural_collapse=True)
                    self._log({"step": progress.step, "epoch": epoch} | record)
                if progress.step_in_epoch % LOG_STEPS == 0 or stop.now(self.accelerator):
                    look()
            look()
        progress.training_seconds += trained_seconds()

    def groups_of_batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """What is left of the current epoch, as the batches of each optimiser step; of whole steps only."""
        size, progress = self.arguments.gradient_accumulation_steps, self.progress
        batches = self.batches.epoch(progress.epoch, skip=size * progress.step_in_epoch)
        return map(list, zip(*[batches] * size))

    @property
    def images_per_step(self) -> int:
        arguments, processes = self.arguments, self.accelerator.num_processes
        return arguments.batch_size * arguments.gradient_accumulation_steps * processes

    def step(self, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """One optimiser step; loss and accuracy, without waiting for the device."""
        return self.optimizer_step(batches, self.progress.step)

    def _add_to_totals(self, steps: list[Tensor]) -> None:
        """Move loss and accuracy (2,) of this process's steps to the epoch's totals, of all."""
        if not steps:
            return
        values = self.accelerator.reduce(torch.stack(steps), reduction="mean").tolist()
        steps.clear()
        for i, (loss, accuracy) in enumerate(values):
            losses, accuracies = self.progress.epoch_totals
            self.progress.epoch_totals = (losses + loss, accuracies + accuracy)
            if not math.isfinite(loss):
                step = self.progress.step - len(values) + i + 1
                kept = checkpoints.newest_checkpoint(self.output_dir / "checkpoints")
                raise TrainingError(
                    f"the loss is {loss} at step {step} (epoch {self.progress.epoch + 1}). "
                    f"{f'{kept} is the last good checkpoint' if kept else 'No checkpoint yet'}. "
                    "Try a lower --learning_rate, --max_grad_norm 1, or a higher --temperature."
                )

    def finish_epoch(self) -> None:
        """Evaluate, keep the model if it is the best, write the metrics and a checkpoint."""
        progress, arguments, step = self.progress, self.arguments, self.optimizer_step
        loss, accuracy = (total / self.steps_per_epoch for total in progress.epoch_totals)
        progress.epoch += 1
        progress.step_in_epoch, progress.epoch_totals = 0, (0.0, 0.0)
        last = progress.epoch == arguments.epochs
        record: dict[str, Any] = {
            "step": progress.step, "epoch": progress.epoch, "learning_rate": step.scheduler.get_last_lr()[0],
            "train_loss": loss, "train_accuracy": accuracy,
        }  # fmt: skip
        if arguments.learn_temperature:
            record["temperature"] = self.model.temperature.item()
        if last or progress.epoch % arguments.evaluate_every == 0:
            if self.model.config.prototypes == "class_means":
                step.set_prototypes(self._training_means())
            by_collapse = arguments.best_metric not in ("accuracy", "mean_class_accuracy")
            due = last or by_collapse or is_due(arguments.nc_every, progress.epoch)
            due = due or is_due(arguments.nc_every_steps, progress.step)
            record |= self.monitor.validate(neural_collapse=due)
            progress.evaluated_epoch = progress.epoch
            value = score(record, arguments.best_metric)
            if value > progress.best_score:
                progress.improved_epoch = progress.epoch
            # Of equals the last: collapse goes on after the accuracy stands still.
            if value >= progress.best_score:
                progress.best_score, progress.best_epoch = value, progress.epoch
                self._keep_best()
        self._log(record)
        if self.is_over or progress.epoch % arguments.checkpoint_every == 0:
            self._save_checkpoint()
        if self.is_over and not last:
            waited = arguments.early_stopping_patience
            announce(f"No better {arguments.best_metric} in {waited} epochs: stopping early.", sys.stdout)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or none was better for `--early_stopping_patience`."""
        progress, patience = self.progress, self.arguments.early_stopping_patience
        waited = progress.evaluated_epoch - progress.improved_epoch
        return progress.epoch >= self.arguments.epochs or (patience or math.inf) <= waited

    def keep_start(self) -> None:
        """The network as it starts, where it is not trained at all."""
        self._begin()
        self._keep_best()
        if self._best is not None:
            self._write_best()

    def _keep_best(self) -> None:
        self._best = self.optimizer_step.evaluated_model
        if self.arguments.lora_rank is not None:
            self._best = without_adapters(self._best)
        if self.on_features:  # a head is trained faster than it is written
            self._best = with_backbone(copy.deepcopy(self._best), self.model.protosphere.backbone)
        else:
            self._write_best()

    def _write_best(self) -> None:
        sharded, prepared = self.accelerator.is_fsdp2, self.optimizer_step.prepared_model
        weights = self.accelerator.get_state_dict(prepared) if sharded else None
        if self.accelerator.is_main_process:
            checkpoints.save_model(self._best, self.processor, self.output_dir / "best", weights)
        self._best = None

    def _save_checkpoint(self) -> Path:
        if self._best is not None:
            self._write_best()
        self.progress.collapse_seconds = self.monitor.stopwatch.seconds
        folder, keep = self.output_dir / "checkpoints", self.arguments.keep_checkpoints
        if self.images.is_streamed:
            self.progress.streams = gather_object([self.batches.position])
        more = {"average": self.optimizer_step.average, "queue": self.optimizer_step.queue}
        return checkpoints.save_checkpoint(self.accelerator, folder, self.progress, keep, **more)

    def _log(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            append_json(self.log, record)
            if not text.is_quiet:
                tqdm.write(epoch_line(record))
        setup.tell_trackers(self.accelerator, record)

    def _begin(self) -> None:
        """Prototypes that start from class means; and epoch 0, what these are worth as a classifier
        where training starts from a trained network: it should not end below."""
        arguments, config, step = self.arguments, self.model.config, self.optimizer_step
        imprints = arguments.imprint and config.prototypes == "learned" and config.has_prototypes
        # Of few shots the class means are a row of their own.
        few = arguments.images_per_class is not None
        measured = arguments.starts_from_weights and not few and not self.images.is_streamed
        if not (imprints or measured or config.prototypes == "class_means"):
            return
        means = self._training_means()
        if measured:
            self._log(self.monitor.start(means))
        if imprints:
            source = self.checkpoint if arguments.finetune_from else None
            step.set_prototypes(first_prototypes(self.model, means, source))
        elif config.prototypes == "class_means":
            step.set_prototypes(means)

    def _training_means(self) -> Tensor:
        loader = self.eval_loaders["train"]
        return training_class_means(self.optimizer_step.evaluated_model, loader, self.accelerator)
