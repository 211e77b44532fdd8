"""Transfer of a trained network to other data, in one or several modes, with all or few images."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torchmetrics.classification import MultilabelAveragePrecision
from transformers.utils import logging as transformers_logging

from ..data.arguments import BatchOptions
from ..data.dataset import ImageDataset
from ..data.labels import memberships
from ..data.subsets import few_shot
from ..data.transforms import build_image_processor
from ..errors import ArgumentError, at_no_cost, errors_in_one_line
from ..evaluation.classifier_metrics import evaluate_predictions
from ..inference.features import embedded, with_features
from ..inference.probes import PROBE_VERSIONS, fit_probe
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots.text import say
from ..runs import processes
from ..runs.checkpoints import refuse_changed_transfer, save_model
from ..runs.files import append_json, whole_file, write_json, write_text, write_yaml
from ..runs.finished_run import read_run_arguments
from ..runs.folders import HELD, MODEL_FILES, RUN, RUN_FILES, TRANSFER_FILES, remove_run, run_folder
from ..runs.loading import kind_of, load_config
from ..runs.reading import read_json_lines
from ..training.adaptation import count_trained_parameters
from ..training.arguments import TrainArguments
from ..training.finish import base_model
from ..training.setup import build_model, load_training_data, resolve
from ..training.train import dry_run, train
from . import ladder
from .arguments import FROZEN_MODES, HEAD_PROJECTION, LADDER, OF_FEW_SHOTS, TRAINED_MODES, FinetuneArguments
from .frozen import knn, of_class_means, of_probe
from .report import MEASURES, format_summary, plot_shots, summarize

# Of SGD, for 256 images, up to 1,024; a hundredth of them of AdamW. Below training's: what the
# network knows shall not be washed away, and a linear head on features goes to NaN at 0.8.
LEARNING_RATES = {"full": 0.01, "layerwise": 0.01, "head": 0.1, "lora": 0.1}
WHOLE_BATCH = 64  # images, by default, where the whole network is trained
LEAST_STEPS = 100  # of the optimiser, where few images would give fewer
SMALL_STEP = 128  # images: statistics of fewer cost more than they learn (scripts/benchmarks/RESULTS.md)
ROWS = "rows.jsonl"
ROW_AGAIN = "Remove the line, or the file: what it held is measured again."


@processes.own_accelerate_state()
def finetune(arguments: FinetuneArguments, *, images: ImageDataset | None = None, last: bool = True) -> dict[str, Any]:
    """Transfer a model to a data set, as `protosphere finetune` does.

    `mode` leaves its model in `output_dir`, a run of training like any other; `compare` several, in sub-folders, and
    comparison.json; few-shot models are measured, not kept. With --resume what is finished is not done again.

    Args:
        images: what `transfer_images` gives, if it was loaded before.
        last: nothing else is trained in these processes: they part.

    Returns:
        As comparison.json: {"rows": one for each mode, shots and trial, "summary": means over the trials}.

    Raises:
        ArgumentError, DataError: before any work.
        TrainingInterrupted: after SIGINT or SIGTERM; --resume goes on.
    """
    transformers_logging.disable_progress_bar()
    with ExitStack() as held:
        return _finetune(Transfer(arguments, images, held), last)


def _finetune(job: "Transfer", last: bool) -> dict[str, Any]:
    arguments = job.arguments
    if arguments.dry_run:
        for mode in arguments.modes:
            say(f"\n{mode}:")
            if mode in TRAINED_MODES:
                dry_run(job.training(mode), images=job.images, last=False)
            else:
                say("one pass over the images, nothing to plan")
        return {}
    rows = list(job.rows())
    kept = ladder.best_rung(rows) if arguments.is_ladder else None
    if kept is not None:
        job.keep(kept)
    with errors_in_one_line(f"{job.folder / ROWS} is damaged", ROW_AGAIN):
        summary = summarize(rows)
        table = format_summary(summary)
        split = f"{rows[0]['split']}, {rows[0]['num_images']:,} images"
    result = {"rows": rows, "summary": summary}
    if job.accelerator.is_main_process:
        write_json(job.folder / "comparison.json", result)
        say(f"\n{arguments.model} → {arguments.dataset_name} ({split})")
        say(table)
        if kept is not None:
            say(f"{job.folder}: kept is {kept}, the best on validation images")
        if len(arguments.shot_counts) > 1:
            with at_no_cost("drawing"), whole_file(job.folder / "shots.png") as unfinished:
                plot_shots(summary, unfinished)
    if last:
        job.accelerator.end_training()
    return result


def transfer_images(arguments: FinetuneArguments, accelerator: Accelerator) -> ImageDataset:
    """The data set, for all rows. Of few shots none is held out: that would be more than those trained on."""
    with processes.main_process_first(accelerator):
        options = {"several_labels": arguments.several_labels, "need_all_classes": not arguments.several_labels}
        return load_training_data(arguments, hold_out=not arguments.shot_counts, **options)


class Transfer:
    """A transfer, checked by the constructor before any work. The folder is its own until `held` is closed."""

    def __init__(self, arguments: FinetuneArguments, images: ImageDataset | None, held: ExitStack) -> None:
        self.arguments = arguments
        self.folder = Path(arguments.output_dir)
        self.start = _start(arguments)
        self.is_single = arguments.compare is None and not (arguments.shot_counts or arguments.is_ladder)
        self.started = time.perf_counter()
        self.accelerator = Accelerator(mixed_precision=arguments.given.get("mixed_precision"))
        accumulated = arguments.gradient_accumulation_steps
        processes.check_processes(self.accelerator, accumulates=accumulated > 1)
        self.batches_per_step = accumulated * self.accelerator.num_processes
        self.images = images or transfer_images(arguments, self.accelerator)
        if arguments.images_per_class is not None:
            self.images = self.images.with_train(self._shots(self.images, arguments.images_per_class, 0))
        if arguments.is_ladder and "validation" not in self.images.splits:
            raise ArgumentError(
                "--mode auto chooses by validation images, and there are none: give --validation_split, a "
                f"--validation_fraction above 0, or a --mode, such as {LADDER[0]} or {LADDER[-1]}."
            )
        if not arguments.dry_run and not (self.is_single and arguments.mode in TRAINED_MODES):
            if arguments.resume and read_run_arguments(self.folder) and not (self.folder / "transfer.yaml").exists():
                raise ArgumentError(f"--resume: {self.folder} is a run of one --mode: give it too, as --mode full.")
            wanted = {"resume": arguments.resume, "overwrite": arguments.overwrite, "writes": self.writes}
            folder = run_folder(self.folder, bytes_needed=2**24, **wanted)
            processes.on_main_process(self.accelerator, lambda: held.enter_context(folder))
            if arguments.resume:
                refuse_changed_transfer(self.folder, vars(arguments))
            if self.accelerator.is_main_process:
                write_yaml(self.folder / "transfer.yaml", vars(arguments))
            self.accelerator.wait_for_everyone()

    @property
    def writes(self) -> tuple[str, ...]:
        """Patterns of what it leaves: its model, or in sub-folders those of several, and rows."""
        if self.is_single:
            return MODEL_FILES + TRANSFER_FILES
        folders = (*self.arguments.modes, ladder.KEPT, "trials/*-*-*")
        of_models = [f"{folder}/{name}" for folder in folders for name in (*RUN, HELD)]
        return (*of_models, *(RUN_FILES if self.arguments.is_ladder else TRANSFER_FILES))

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each mode, number of shots and trial; written down as they come."""
        done = {} if self.is_single else rows_on_disk(self.folder)
        if done and self.accelerator.is_main_process:
            # Without what was cut short at its end: the next row would be written behind it.
            write_text(self.folder / ROWS, "".join(json.dumps(row) + "\n" for row in done.values()))
        for mode in self.arguments.modes:
            for shots in self.arguments.shot_counts or [None]:
                for trial in range(self.arguments.trials if shots else 1):
                    if (key := (mode, shots, trial)) not in done:
                        if (made := self._row(mode, shots, trial, [*done.values()])) is None:
                            continue
                        done[key] = {"mode": mode, "shots": shots, "trial": trial} | made
                        if self.accelerator.is_main_process and not self.is_single:
                            append_json(self.folder / ROWS, done[key])
                    yield done[key]

    def _row(self, mode: str, shots: int | None, trial: int, done: list[dict[str, Any]]) -> dict[str, Any] | None:
        """What is measured; of a ladder None where there is no time for it."""
        if mode == "auto":  # of few shots: what their cross-validation says is best
            of_frozen = [self._frozen_row(frozen, shots, trial) for frozen in LADDER[:2]]
            return max(of_frozen, key=lambda row: row["held_out_accuracy"] or 0.0)
        if mode in FROZEN_MODES:
            return self._frozen_row(mode, shots, trial)
        training = self.training(mode, shots, trial)
        if self.arguments.is_ladder and mode == LADDER[-1]:
            training = self.training(mode, start=ladder.start_of(self.folder / ladder.best_rung(done)))
            training = ladder.affordable(training, self.images, self.arguments.seconds, self.started)
        return None if training is None else self._trained(training, mode, shots, trial)

    def keep(self, mode: str) -> None:
        """Make a rung the run of the folder itself: a frozen one by no epochs of training on its features."""
        source = self.folder / mode
        if mode in FROZEN_MODES:
            start = ladder.start_of(source) | {"prototypes": load_config(str(source)).prototypes}
            source = self.folder / ladder.KEPT
            none = {"epochs": 0, "output_dir": str(source), "resume": False, "overwrite": True}
            train(self.training("head", start=start).but(**none), images=self._features, last=False)
        if self.accelerator.is_main_process:
            ladder.move(source, self.folder, base_model(self.training("head")))
        self.accelerator.wait_for_everyone()

    def training(
        self, mode: str, shots: int | None = None, trial: int = 0, *, start: dict[str, Any] | None = None
    ) -> TrainArguments:
        """The arguments of training one row, from another `start` than the transfer's own."""
        arguments = self.arguments
        folder = self.folder if self.is_single else self.folder / mode
        options: dict[str, Any] = {"output_dir": str(folder), **(start or self.start)}
        images = self.images.num_train
        if shots is not None:
            images = sum(min(count, shots) for count in self.images.class_counts("train"))
        options |= self._sizes(mode, images, shots is not None)
        if mode == "head" and "finetune_from" not in options:
            options |= HEAD_PROJECTION
        if not self.is_single and not arguments.dry_run:
            # Of rows that are not written down: go on where one was stopped.
            options |= {"resume": True, "overwrite": False}
        if shots is not None:
            folder = self.folder / "trials" / f"{mode}-{shots}-{trial}"
            options |= {"output_dir": str(folder), "seed": arguments.seed + trial}
            # The last epoch counts: no image but those of the shots decides anything.
            every = dict.fromkeys(("evaluate_every", "checkpoint_every"), options["epochs"])
            options |= OF_FEW_SHOTS | {"images_per_class": shots} | every
        if arguments.learning_rate is None and mode in LEARNING_RATES:
            images = options["batch_size"] * self.batches_per_step
            scale = min(images / 256, 4) if arguments.optimizer == "sgd" else 0.01
            options["learning_rate"] = LEARNING_RATES[mode] * scale
        return arguments.training(mode, **options)

    def _sizes(self, mode: str, images: int, few: bool) -> dict[str, Any]:
        """Batch and epochs for so many training images, where not given; of small batches batch norms are frozen."""
        arguments, given = self.arguments, self.arguments.given
        whole = mode in ("full", "layerwise")
        batch = given.get("batch_size", WHOLE_BATCH if whole else arguments.batch_size)
        if few or "batch_size" not in given:  # else what is too large is refused
            batch = min(batch, max(1, images // self.batches_per_step))
        steps = max(1, images // (batch * self.batches_per_step))
        epochs = arguments.epochs
        if few:
            epochs = max(epochs, math.ceil(arguments.min_steps / steps))
        elif "epochs" not in given and mode in TRAINED_MODES:
            epochs = head_epochs(steps) if mode == "head" else max(epochs, math.ceil(LEAST_STEPS / steps))
        sizes = {"batch_size": batch, "epochs": epochs}
        if whole and "freeze_batchnorm" not in given:
            sizes["freeze_batchnorm"] = batch * self.batches_per_step < SMALL_STEP
        return sizes

    def _trained(self, training: TrainArguments, mode: str, shots: int | None, trial: int) -> dict[str, Any]:
        if self.accelerator.is_main_process:
            say(f"\n{mode}{'' if shots is None else f', {shots} shots, trial {trial + 1}'}")
        # A run by itself computes its features once it has its folder.
        images = self._features if training.feature_views and not self.is_single else self.images
        results = train(training, images=images, last=False)
        split = next(role for role in ("test", "validation", "train") if role in results)
        if shots is not None and self.accelerator.is_main_process:
            remove_run(Path(training.output_dir))
        seconds = results["training_seconds"], results.get("feature_seconds", 0.0)
        row = _row(split, results[split], *seconds, results["provenance"]["trainable_parameters"])
        return row | {"held_out_accuracy": results.get("validation", {}).get("accuracy")}

    @cached_property
    def _network(self) -> ProtoSphereForImageClassification:
        torch.manual_seed(self.arguments.seed)
        training = self.training("prototypes")
        # A projection that nothing has trained is none of the network; a linear head has none anyway.
        if "finetune_from" not in self.start and self.arguments.objective != "cross_entropy":
            training = training.but(projection="none", prototypes="class_means")
        return build_model(resolve(training)[0], self.images).to(self.accelerator.device)

    @cached_property
    def _features(self) -> ImageDataset:
        """What the network makes of all images, for every row that leaves it as it is."""
        head = self.training("head")
        versions = head.feature_views if "head" in self.arguments.modes else 0
        versions = max(versions, PROBE_VERSIONS * self.arguments.probe_augmentation)
        return with_features(self.images, self._network, self.accelerator, BatchOptions.of(head), max(versions, 1))

    def _shots(self, images: ImageDataset, shots: int | None, trial: int) -> Any:
        """The training images, or of them those that a trial draws."""
        split, seed = images.splits["train"], self.arguments.seed + trial
        return split if shots is None else few_shot(split, images.num_labels, shots, seed)

    def _frozen_row(self, mode: str, shots: int | None, trial: int) -> dict[str, Any]:
        arguments, images, network = self.arguments, self.images, self._network
        split = next(role for role in ("test", "validation", "train") if role in images.splits)
        train, evaluation = self._shots(self._features, shots, trial), self._features.splits[split]
        held_out = self._features.splits.get("validation") if shots is None else None  # few are chosen by themselves
        device, model, reached = self.accelerator.device, None, None
        passing, parameters = train.seconds / len(train.versions), 0  # of the plain images
        labels, started = evaluation.labels.to(device), time.perf_counter()
        if mode.endswith("_probe"):
            # (S, K): which of K classes are in each of S joined labels.
            members = memberships(images.label_names).to(device) if arguments.several_labels else None
            num_classes = images.num_labels if members is None else members.shape[1]
            options = {"temperature": arguments.temperature, "members": members, "device": device}
            options["validation"] = held_out
            probe, reached = fit_probe(mode.removesuffix("_probe"), train, num_classes, **options)
            parameters = count_trained_parameters(probe)
            if members is not None:
                logits = probe(evaluation.versions[0].to(device)).detach()
                precision = MultilabelAveragePrecision(logits.shape[1]).to(device)
                value = precision(logits, members[labels].long()).item()
                report = {"num_images": len(labels), "mean_average_precision": value}
                return _row(split, report, time.perf_counter() - started, passing, parameters)
            model = of_probe(probe, network, images.label_names)
        elif mode == "prototypes":
            model, reached = of_class_means(network, train, images.label_names, held_out)
        if model is not None:
            space, logits = embedded(model, evaluation)
        else:
            space, _ = embedded(network, evaluation)
            known = embedded(network, train)[0], train.labels.to(device)
            logits = knn(*known, space, images.num_labels, arguments.neighbors)
        spent = time.perf_counter() - started
        report = evaluate_predictions(
            [(space, logits, labels)], self.accelerator, num_classes=images.num_labels, embedding_dim=space.shape[1],
            prototypes=None if model is None else model.prototypes.detach(),
        )  # fmt: skip
        if model is not None and shots is None and self.accelerator.is_main_process:
            folder = self.folder if self.is_single else self.folder / mode
            save_model(model.cpu(), build_image_processor(model.config), folder)
        return _row(split, report, spent, passing, parameters) | {"held_out_accuracy": reached}


def head_epochs(steps_per_epoch: int) -> int:
    """By default: as many as give a head 750 optimiser steps, and at least 40."""
    return max(40, math.ceil(750 / max(steps_per_epoch, 1)))


def rows_on_disk(folder: Path) -> dict[tuple[str, int | None, int], dict[str, Any]]:
    """The finished rows of a transfer with --compare or --shots: by mode, shots and trial."""
    path = folder / ROWS
    rows = read_json_lines(path, ROW_AGAIN) if path.exists() else []
    with errors_in_one_line(f"{path} is damaged", ROW_AGAIN):
        return {(row["mode"], row["shots"], row["trial"]): row for row in rows}


def _start(arguments: FinetuneArguments) -> dict[str, Any]:
    """What the model to start from says of the arguments of training."""
    name, size = arguments.model, arguments.image_size
    kind, weights = kind_of(name), arguments.pretrained
    if weights and (kind == "protosphere" or not Path(weights).exists()):
        why = "is for a backbone, and --model has weights" if kind == "protosphere" else "does not exist"
        raise ArgumentError(f"--pretrained {weights} {why}: give another, or leave it out.")
    if kind != "protosphere":
        return {"backbone": name, "backbone_source": kind, "pretrained": weights or True, "image_size": size}
    config = load_config(name)
    objective = arguments.objective or config.objective
    prototypes = {"prototypes": config.prototypes} if objective == config.objective else {}
    return {"finetune_from": name, "objective": objective} | prototypes


def _row(split: str, report: dict[str, Any], training: float, features: float, parameters: int) -> dict[str, Any]:
    """What a mode came to on a split, and its price in seconds and trained parameters."""
    measured = {name: report[name] for name in ("num_images", *MEASURES, "neural_collapse") if name in report}
    price = {"training_seconds": training, "feature_seconds": features, "seconds": training + features}
    return {"split": split} | measured | price | {"trainable_parameters": parameters}
