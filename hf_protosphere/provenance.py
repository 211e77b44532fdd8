"""Where a run's data and weights come from, and what it ran on: what its other files do not say."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch

from . import __version__
from .backbones import timm_name

if TYPE_CHECKING:
    from .arguments import TrainArguments
    from .training import TrainingRun

PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate")


def provenance(run: TrainingRun) -> dict[str, Any]:
    """For results.json. Paths do not enter, so that everything may be published.

    Returns:
        {"dataset" and "base_model" (their ids on the Hub; None for local ones, and without
        pretrained weights), "splits" (of each the number of images, and which of the data set's
        own splits they are from), "parameters", "embedding_dim", "images_per_step",
        "learning_rate" (the peak), "weight_decay", "device", "processes", "versions"}.
    """
    arguments, splits = run.arguments, run.images.splits
    on_cuda = run.accelerator.device.type == "cuda"
    return {
        "dataset": hub_id(arguments.dataset_name),
        "splits": {
            role: {"from": source, "images": len(splits[role])}
            for role, source in run.images.sources.items()
        },
        "base_model": base_model(arguments),
        "parameters": run.model.num_parameters(),
        "embedding_dim": run.model.protosphere.embedding_dim,
        "images_per_step": run.images_per_step,
        "learning_rate": max(run.scheduler.base_lrs),
        "weight_decay": max(group["weight_decay"] for group in run.optimizer.param_groups),
        "device": torch.cuda.get_device_name() if on_cuda else run.accelerator.device.type,
        "processes": run.accelerator.num_processes,
        "versions": {
            "hf_protosphere": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }


def hub_id(name: str) -> str | None:
    """The name, unless it is a local path."""
    return None if Path(name).expanduser().exists() else name


def base_model(arguments: TrainArguments) -> str | None:
    """The id on the Hub of the pretrained weights that training starts from."""
    if not arguments.pretrained:
        return None
    if arguments.backbone_source == "transformers":
        return hub_id(arguments.backbone)
    return timm.get_pretrained_cfg(timm_name(arguments.backbone)).hf_hub_id
