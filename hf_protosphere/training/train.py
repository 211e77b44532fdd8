"""The command `protosphere train`: train a classifier, or plan it, as one dataclass says."""

import sys
import time
from contextlib import ExitStack
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from ..data.dataset import ImageDataset
from ..data.labels import some
from ..errors import at_no_cost
from ..objectives import optimal_temperature
from ..plots.text import say
from ..runs.processes import announce, own_accelerate_state
from ..runs.signals import stop_signals
from .adaptation import count_parameters, count_trained_parameters
from .arguments import TrainArguments
from .finish import finish
from .run import TrainingRun


@own_accelerate_state()
def train(arguments: TrainArguments, *, images: ImageDataset | None = None, last: bool = True) -> dict[str, Any]:
    """Train as the arguments say; leaves a folder that `from_pretrained` and pipelines load.

    `output_dir` holds the model of the best epoch, metrics.jsonl (a line per measurement), results.json, pictures,
    arguments.yaml, environment.json (versions, commit, data, for every start), best/ and checkpoints/.

    Args:
        images: the data set, if it was loaded before, as `load_training_data` does.
        last: nothing else is trained in these processes: they part.

    Returns:
        What results.json holds: the final evaluation of each held-out split; of a dry run its plan.

    Raises:
        ArgumentError, DataError: before training starts.
        TrainingError: a loss that is not finite; the last good checkpoint is kept.
        TrainingInterrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    if arguments.dry_run:
        return dry_run(arguments, images=images, last=last)
    transformers_logging.disable_progress_bar()
    with ExitStack() as held:
        run = TrainingRun(arguments, images, held)
        announce(announcement(run), sys.stdout)
        if not arguments.epochs:
            run.keep_start()
        with stop_signals(run.accelerator.is_main_process) as stop:
            while not run.is_over:
                run.train_epoch(stop)
                run.finish_epoch()
        results = finish(run)
    for tracker in run.accelerator.trackers:
        with at_no_cost(f"--report_to {tracker.name}"):
            tracker.finish()
    if last:
        run.accelerator.trackers = []
        run.accelerator.end_training()
    return results


def announcement(run: TrainingRun) -> str:
    """What is about to be trained, on what, for how long."""
    config, arguments, accelerator = run.model.config, run.arguments, run.accelerator
    parameters, trained = count_parameters(run.model), count_trained_parameters(run.model)
    kind = "a linear head"
    if config.has_prototypes:
        t = config.softmax_temperature
        share = t / optimal_temperature(config.num_labels)
        kind = f"{config.prototypes} prototypes, temperature {t:.3g} = {share:.3g} t*"
        kind += ", from there learned" if config.learned_temperature else ""
    share = "" if trained == parameters else f", {trained:,} of them trained"
    sizes = ", ".join(f"{name} {run.images.num_images(name)}" for name in run.images.splits)
    lines = [
        f"{config.objective} on {config.backbone} ({parameters / 1e6:.2f} M parameters{share}, projection "
        f"{config.projection}, embeddings of {run.model.protosphere.embedding_dim}, {kind})",
        f"{arguments.dataset_name}: {config.num_labels} classes, {sizes}; "
        f"{config.image_size} px, {config.num_channels} channel(s)",
        f"{arguments.epochs} epochs of {run.steps_per_epoch} steps of {run.images_per_step} "
        f"images, {accelerator.num_processes} process(es) on {accelerator.device.type}"
        f"{'' if arguments.dry_run else f'; → {run.output_dir}'}",
    ]
    if arguments.imbalance:
        counts = ", ".join(map(str, run.train_counts))
        lines.append(f"long-tailed ({arguments.imbalance}): {counts} images a class")
    if run.validation == "train":
        lines.append("No validation images: validating on the training set.")
    for name in run.images.splits:
        if name != "train" and (missing := run.images.classes_without_images(name)):
            lines.append(f"No {name} image of {some(missing)}: neural collapse is that of the other classes.")
    return "\n".join(lines)


@own_accelerate_state()
def dry_run(arguments: TrainArguments, *, images: ImageDataset | None = None, last: bool = True) -> dict[str, Any]:
    """Take two optimiser steps and print what the whole run would be, as `--dry_run` does.

    Every check of a run is made, but images are neither decoded all nor cached, so that even
    ImageNet answers in minutes; and the output folder is left alone. Arguments are as in `train`.

    Returns:
        {"parameters", "steps", "images_per_step", "images", "memory_bytes" (peak, of the device or,
        on the CPU, of the process), "seconds_per_epoch", "hours"}: at the second step's pace, without evaluations.
    """
    transformers_logging.disable_progress_bar()
    run = TrainingRun(arguments.but(dry_run=True), images)
    if run.accelerator.is_main_process:
        say(announcement(run))
    # An epoch may have one step only.
    batches = (batches for _ in range(2) for batches in run.groups_of_batches())
    device = run.accelerator.device
    synchronize = torch.get_device_module(device).synchronize
    run.optimizer_step.train_mode()
    run.step(next(batches))
    synchronize()
    started = time.perf_counter()
    loss, _ = run.step(next(batches))
    synchronize()
    seconds = time.perf_counter() - started
    steps = run.steps_per_epoch * arguments.epochs
    plan = {
        "parameters": sum(p.numel() for p in run.model.parameters()), "steps": steps,
        "images_per_step": run.images_per_step, "images": steps * run.images_per_step,
        "memory_bytes": _peak_memory(device), "seconds_per_epoch": seconds * run.steps_per_epoch,
        "hours": seconds * steps / 3600,
    }  # fmt: skip
    run.accelerator.print(
        f"\ntwo steps taken, loss {loss.item():.3f}; the plan:\n"
        f"  parameters       {plan['parameters'] / 1e6:,.2f} M\n"
        f"  steps            {steps:,} ({arguments.epochs} epochs of {run.steps_per_epoch:,})\n"
        f"  images           {plan['images']:,} ({plan['images_per_step']:,} a step)\n"
        f"  memory           {plan['memory_bytes'] / 2**20:,.0f} MiB at the peak so far\n"
        f"  time             {plan['seconds_per_epoch']:,.0f} s an epoch, {plan['hours']:,.1f} h "
        "in all, at the pace of the second step"
    )
    if last:
        run.accelerator.end_training()
    return plan


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
