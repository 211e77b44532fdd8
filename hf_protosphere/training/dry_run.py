"""The plan of a training run: everything built and two steps taken, nothing left behind."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from ..data.dataset import ImageDataset
from .arguments import TrainArguments
from .reporting import announcement
from .run import TrainingRun


def dry_run(
    arguments: TrainArguments, *, images: ImageDataset | None = None, last: bool = True
) -> dict[str, Any]:
    """Take two optimiser steps and print what the whole run would be, as `--dry_run` does.

    Every check of a run is made, but images are neither decoded all nor cached, so that even
    ImageNet answers in minutes; and the output folder is left alone.

    Args:
        images, last: as in `train`.

    Returns:
        {"parameters", "steps", "images_per_step", "images", "memory_bytes" (peak, of the device or,
        on the CPU, of the process), "seconds_per_epoch", "hours"}: an epoch at the pace of the
        second step, and the training without evaluations.
    """
    transformers_logging.disable_progress_bar()
    run = TrainingRun(dataclasses.replace(arguments, dry_run=True), images)
    run.accelerator.print(announcement(run))
    batches = run.groups_of_batches()
    run.optimizer_step.train_mode()
    run.step(next(batches))
    _synchronize(run.accelerator.device)
    started = time.perf_counter()
    loss, _ = run.step(next(batches))
    _synchronize(run.accelerator.device)
    seconds = time.perf_counter() - started
    steps = run.steps_per_epoch * arguments.epochs
    plan = {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": steps,
        "images_per_step": run.images_per_step,
        "images": steps * run.images_per_step,
        "memory_bytes": _peak_memory(run.accelerator.device),
        "seconds_per_epoch": seconds * run.steps_per_epoch,
        "hours": seconds * steps / 3600,
    }
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


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
