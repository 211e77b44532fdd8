"""Train a classifier: one readable loop on Accelerate, from one dataclass of arguments."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from .accumulation import backward_as_one_batch
from .arguments import TrainArguments, write_yaml
from .assembly import build_accelerator, build_model, build_optimizer, load_data
from .checkpoints import (
    MetricsLog,
    Progress,
    load_checkpoint,
    newest_checkpoint,
    prepare_output_dir,
    save_checkpoint,
    save_model,
)
from .data import TRAIN_SAMPLE, add_train_sample
from .errors import ArgumentError, TrainingError, TrainingInterrupted
from .evaluation import training_class_means
from .finishing import finish
from .imbalance import make_long_tailed
from .loaders import TrainingBatches, evaluation_loader
from .monitoring import CollapseMonitor
from .reporting import epoch_line, flat_record
from .stopping import Stop, stop_signals
from .transforms import build_image_processor

LOG_STEPS = 10  # steps between looks at the loss: each one waits for the device
MAY_DIFFER_ON_RESUME = {
    "output_dir", "dry_run", "resume", "overwrite", "num_workers", "eval_batch_size", "tensorboard",
    "checkpoint_every", "keep_checkpoints", "nc_target", "linear_probe", "normalized_linear_probe",
    "probe_epochs",
}  # fmt: skip


def train(arguments: TrainArguments) -> dict[str, Any]:
    """Train as the arguments say; leaves a folder that `from_pretrained` and pipelines load.

    `output_dir` holds the model (of the best epoch by validation accuracy), metrics.jsonl (a line
    per epoch), results.json, curves.png, arguments.yaml, best/ and checkpoints/.

    Returns:
        What results.json holds: the final evaluation of each held-out split.

    Raises:
        ArgumentError, DataError: before training starts.
        TrainingError: a loss that is not finite; the last good checkpoint is kept.
        TrainingInterrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    transformers_logging.disable_progress_bar()
    run = TrainingRun(arguments)
    with stop_signals() as stop:
        while run.progress.epoch < arguments.epochs:
            run.train_epoch(stop)
            run.finish_epoch()
    return finish(run)


class TrainingRun:
    """A training run: built, and checked, by the constructor; then driven epoch by epoch."""

    def __init__(self, arguments: TrainArguments) -> None:
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.accelerator = build_accelerator(arguments)
        set_seed(arguments.seed)
        with self.accelerator.main_process_first():
            self.images = load_data(
                arguments,
                validation_split=arguments.validation_split,
                test_split=arguments.test_split,
                validation_fraction=arguments.validation_fraction,
                seed=arguments.seed,
            )
        if arguments.imbalance:
            factor = arguments.imbalance_factor
            make_long_tailed(self.images, arguments.imbalance, factor, arguments.seed)
        self.train_counts = self.images.class_counts("train")
        self.num_train = len(self.images.splits["train"])
        add_train_sample(self.images, arguments.nc_train_samples, arguments.seed)
        self.steps_per_epoch = self._check_batch_size()
        self.model = build_model(arguments, self.images)
        if arguments.sync_batchnorm and self._can_synchronize_batchnorm():
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.processor = build_image_processor(self.model.config)
        self._prepare_output_dir()

        self.batches = TrainingBatches(self.images, self.model.config, arguments, self.accelerator)
        # What was decided by the room on the disk holds for the run, also when it is resumed.
        self.arguments = dataclasses.replace(arguments, cache_images=self.batches.is_cached)
        self.eval_loaders = {split: self._eval_loader(split) for split in self.images.splits}
        self.validation = "validation" if "validation" in self.images.splits else "train"
        self.monitor = CollapseMonitor(
            self.model,
            self.eval_loaders[self.validation],
            self.eval_loaders.get(TRAIN_SAMPLE),
            self.accelerator,
            every_epochs=arguments.nc_every,
            every_steps=arguments.nc_every_steps,
        )
        self.optimizer, self.scheduler = build_optimizer(
            arguments,
            self.model,
            images_per_step=self.images_per_step,
            steps_per_epoch=self.steps_per_epoch,
        )
        self.prepared_model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.accelerator.register_for_checkpointing(self.scheduler)
        self.progress = self._resume() if arguments.resume else Progress()
        self.monitor.stopwatch.seconds = self.progress.collapse_seconds
        if self.accelerator.is_main_process:
            write_yaml(self.arguments, self.output_dir / "arguments.yaml")
            self.log = MetricsLog(self.output_dir / "metrics.jsonl", last_step=self.progress.step)
        self.accelerator.init_trackers("tensorboard")
        self._announce()
        if self.progress.step == 0 and not arguments.dry_run:
            self._update_class_means()

    # Building

    def _check_batch_size(self) -> int:
        arguments, processes = self.arguments, self.accelerator.num_processes
        times = processes * arguments.gradient_accumulation_steps
        steps = self.num_train // (arguments.batch_size * times)
        if steps == 0:
            each = f", {times} of them per step," if times > 1 else ""
            raise ArgumentError(
                f"--batch_size {arguments.batch_size}{each} is larger than the training set "
                f"of {self.num_train} images: use at most {self.num_train // times}."
            )
        return steps

    def _can_synchronize_batchnorm(self) -> bool:
        several = self.accelerator.num_processes > 1
        if several and self.accelerator.device.type != "cuda":
            raise ArgumentError(
                "--sync_batchnorm works on CUDA devices only, but the processes run on "
                f"{self.accelerator.device.type}: leave it out."
            )
        return several

    def _prepare_output_dir(self) -> None:
        if self.accelerator.is_main_process:
            # Checkpoints hold weights and an optimiser state of at most twice their size, one more
            # while it replaces another; and there are two copies of the model.
            copies = 3 * (self.arguments.keep_checkpoints + 1) + 2
            weights = sum(p.numel() * p.element_size() for p in self.model.state_dict().values())
            prepare_output_dir(
                self.output_dir,
                resume=self.arguments.resume,
                overwrite=self.arguments.overwrite,
                bytes_needed=copies * weights + 2**24,
            )
        self.accelerator.wait_for_everyone()

    def _eval_loader(self, split: str) -> DataLoader:
        return evaluation_loader(
            self.images,
            split,
            self.processor,
            self.arguments.eval_batch_size,
            self.arguments.num_workers,
            self.accelerator,
            cache=self.arguments.cache_images is not False,
        )

    def _resume(self) -> Progress:
        checkpoint = newest_checkpoint(self.output_dir / "checkpoints")
        if checkpoint is None:
            self.accelerator.print(f"No checkpoint in {self.output_dir}: starting from the start.")
            return Progress()
        before = yaml.safe_load((self.output_dir / "arguments.yaml").read_text())
        changed = [
            f"--{name} was {before[name]!r}, is {value!r}"
            for name, value in vars(self.arguments).items()
            if name not in MAY_DIFFER_ON_RESUME and name in before and before[name] != value
        ]
        if changed:
            raise ArgumentError(
                f"--resume continues the run in {self.output_dir} as it was, but "
                f"{'; '.join(changed)}. Give the same values, or another --output_dir."
            )
        progress = load_checkpoint(self.accelerator, checkpoint)
        self.accelerator.print(f"Resuming at step {progress.step} (epoch {progress.epoch + 1}).")
        return progress

    def _announce(self) -> None:
        config, arguments = self.model.config, self.arguments
        parameters = sum(p.numel() for p in self.model.parameters())
        sizes = ", ".join(f"{name} {len(split)}" for name, split in self.images.splits.items())
        self.accelerator.print(
            f"{config.objective} on {config.backbone} ({parameters / 1e6:.2f} M parameters, "
            f"embeddings of {self.model.protosphere.embedding_dim}, {config.prototypes} "
            f"prototypes)\n"
            f"{arguments.dataset_name}: {config.num_labels} classes, {sizes}; "
            f"{config.image_size} px, {config.num_channels} channel(s)\n"
            f"{arguments.epochs} epochs of {self.steps_per_epoch} steps of {self.images_per_step} "
            f"images, {self.accelerator.num_processes} process(es) on "
            f"{self.accelerator.device.type}"
            f"{'' if arguments.dry_run else f'; → {self.output_dir}'}"
        )
        if arguments.imbalance:
            counts = ", ".join(map(str, self.train_counts))
            self.accelerator.print(f"long-tailed ({arguments.imbalance}): {counts} images a class")
        if self.validation == "train":
            self.accelerator.print("No validation images: validating on the training set.")

    # Training

    def train_epoch(self, stop: Stop) -> None:
        """The rest of the current epoch."""
        progress, monitor, started = self.progress, self.monitor, time.perf_counter()
        monitored = monitor.stopwatch.seconds
        totals = torch.tensor(progress.epoch_totals, dtype=torch.float64)
        totals = totals.to(self.accelerator.device)
        unchecked: list[Tensor] = []
        first_step = progress.step_in_epoch
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=first_step,
            desc=f"epoch {progress.epoch + 1}/{self.arguments.epochs}",
            leave=False,
            disable=not self.accelerator.is_main_process,
        )

        def trained_seconds() -> float:
            return time.perf_counter() - started - (monitor.stopwatch.seconds - monitored)

        def look() -> None:
            """Show and check the loss; stop with a checkpoint if that was asked for."""
            self._check_finite(unchecked)
            unchecked.clear()
            progress.epoch_totals = tuple(totals.tolist())
            steps, seconds = progress.step_in_epoch, trained_seconds()
            loss, accuracy = (total / steps for total in progress.epoch_totals)
            speed = (steps - first_step) * self.images_per_step / seconds
            bar.set_postfix(
                loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}", images_per_s=f"{speed:.0f}"
            )
            if stop.agreed(self.accelerator):
                progress.training_seconds += seconds
                path = self._save_checkpoint()
                raise TrainingInterrupted(
                    f"stopped after step {progress.step}; {path} is complete: run the same command "
                    "with --resume to go on.",
                    stop.signal,
                )

        with bar:
            self.prepared_model.train()
            for batches in self.groups_of_batches():
                loss, accuracy = self.step(batches)
                progress.step += 1
                progress.step_in_epoch += 1
                totals += torch.stack([loss, accuracy]).double()
                unchecked.append(loss)
                bar.update()
                at_end = progress.step_in_epoch == self.steps_per_epoch
                if monitor.due_at_step(progress.step) and not at_end:
                    epoch = progress.step / self.steps_per_epoch
                    self._log({"step": progress.step, "epoch": epoch} | monitor.measure())
                if progress.step_in_epoch % LOG_STEPS == 0 or stop.now(self.accelerator):
                    look()
            look()
        progress.training_seconds += trained_seconds()

    def groups_of_batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """What is left of the current epoch, as the batches of each optimiser step."""
        size, progress = self.arguments.gradient_accumulation_steps, self.progress
        batches = self.batches.epoch(progress.epoch, skip=size * progress.step_in_epoch)
        return _groups_of(size, batches)

    @property
    def images_per_step(self) -> int:
        arguments, processes = self.arguments, self.accelerator.num_processes
        return arguments.batch_size * arguments.gradient_accumulation_steps * processes

    def step(self, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """One optimiser step; loss and accuracy, without waiting for the device."""
        # Dropout and the like follow seed, step and process, so that resuming repeats them,
        # whatever drew random numbers in between.
        position = (self.arguments.seed, self.progress.step, self.accelerator.process_index)
        torch.manual_seed(hash(position) % 2**63)
        loss, logits = self._backward(batches)
        if self.arguments.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        labels = torch.cat([batch["labels"] for batch in batches])
        return loss, (logits.argmax(-1) == labels).float().mean()

    def _backward(self, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Loss and logits of the whole step; its gradients are left in the parameters."""
        contrasts_images = self.model.config.objective in ("nonl", "ntce", "scl")
        if contrasts_images and len(batches) > 1:
            return backward_as_one_batch(self.prepared_model, batches, self.accelerator)
        losses, logits = [], []
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.prepared_model):
                with self.accelerator.autocast():
                    output = self.prepared_model(batch["pixel_values"], labels=batch["labels"])
                self.accelerator.backward(output.loss / len(batches))
            losses.append(output.loss.detach())
            logits.append(output.logits.detach())
        return torch.stack(losses).mean(), torch.cat(logits)

    def _check_finite(self, losses: list[Tensor]) -> None:
        values = torch.stack(losses).tolist() if losses else []
        for i, value in enumerate(values):
            if not math.isfinite(value):
                step = self.progress.step - len(values) + i + 1
                kept = newest_checkpoint(self.output_dir / "checkpoints")
                raise TrainingError(
                    f"the loss is {value} at step {step} (epoch {self.progress.epoch + 1}). "
                    f"{f'{kept} is the last good checkpoint' if kept else 'No checkpoint yet'}. "
                    "Try a lower --learning_rate, --max_grad_norm 1, or a higher --temperature."
                )

    def finish_epoch(self) -> None:
        """Evaluate, keep the model if it is the best, write the metrics and a checkpoint."""
        progress, arguments = self.progress, self.arguments
        loss, accuracy = (total / self.steps_per_epoch for total in progress.epoch_totals)
        progress.epoch += 1
        progress.step_in_epoch, progress.epoch_totals = 0, (0.0, 0.0)
        last = progress.epoch == arguments.epochs
        record: dict[str, Any] = {
            "step": progress.step,
            "epoch": progress.epoch,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "train_loss": loss,
            "train_accuracy": accuracy,
        }
        if last or progress.epoch % arguments.evaluate_every == 0:
            self._update_class_means()
            due = last or self.monitor.due_at_epoch(progress.epoch, progress.step)
            record |= self.monitor.validate(neural_collapse=due)
            # Of equals the last: collapse goes on after the accuracy stands still.
            if (accuracy := record["validation_accuracy"]) >= progress.best_accuracy:
                progress.best_accuracy, progress.best_epoch = accuracy, progress.epoch
                if self.accelerator.is_main_process:
                    save_model(self.model, self.processor, self.output_dir / "best")
        self._log(record)
        if last or progress.epoch % arguments.checkpoint_every == 0:
            self._save_checkpoint()

    def _save_checkpoint(self) -> Path:
        self.progress.collapse_seconds = self.monitor.stopwatch.seconds
        folder = self.output_dir / "checkpoints"
        keep = self.arguments.keep_checkpoints
        return save_checkpoint(self.accelerator, folder, self.progress, keep)

    def _log(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.log.append(record)
            tqdm.write(epoch_line(record))
        self.accelerator.log(flat_record(record), step=self.progress.step)

    def _update_class_means(self) -> None:
        if self.model.config.prototypes == "class_means":
            means = training_class_means(self.model, self.eval_loaders["train"], self.accelerator)
            self.model.set_prototypes(means)


def _groups_of(size: int, batches: Iterable[Any]) -> Iterator[list[Any]]:
    """Full groups only: what is left over at the end of an epoch is no step."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
