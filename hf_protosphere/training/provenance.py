"""Where a run's data and weights come from, and what it ran on: what its other files do not say."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm

from ..backbones import timm_name
from .adaptation import count_parameters, count_trained_parameters
from .environment import device_name, versions

if TYPE_CHECKING:
    from .arguments import TrainArguments
    from .train import TrainingRun


def provenance(run: TrainingRun) -> dict[str, Any]:
    """For results.json. Paths do not enter, so that everything may be published.

    Returns:
        {"dataset" and "base_model" (their ids on the Hub; None for local ones, and without
        pretrained weights), "from_pretrained_weights" (whether there were any), "splits" (of each
        the number of images, and which of the data set's own splits they are from), "parameters",
        "trainable_parameters", "embedding_dim", "images_per_step", "learning_rate" (the peak),
        "weight_decay", "device", "processes", "versions"}.
    """
    arguments, splits = run.arguments, run.images.splits
    return {
        "dataset": hub_id(arguments.dataset_name),
        "splits": {
            role: {
                "from": source,
                "images": run.images.num_train if role == "train" else len(splits[role]),
            }
            for role, source in run.images.sources.items()
        },
        "base_model": base_model(arguments),
        "from_pretrained_weights": starts_from_weights(arguments),
        "parameters": count_parameters(run.model),
        "trainable_parameters": count_trained_parameters(run.model),
        "embedding_dim": run.model.protosphere.embedding_dim,
        "images_per_step": run.images_per_step,
        "learning_rate": max(run.optimizer_step.scheduler.base_lrs),
        "weight_decay": max(
            group["weight_decay"] for group in run.optimizer_step.optimizer.param_groups
        ),
        "device": device_name(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "versions": {"python": platform.python_version(), **versions()},
    }


def hub_id(name: str) -> str | None:
    """The name, unless it is a local path."""
    return None if Path(name).expanduser().exists() else name


def starts_from_weights(arguments: TrainArguments) -> bool:
    """Whether training starts from weights that were trained before."""
    return bool(arguments.pretrained or arguments.resume_from or arguments.finetune_from)


def base_model(arguments: TrainArguments) -> str | None:
    """The id on the Hub of the pretrained weights that training starts from."""
    if (checkpoint := arguments.resume_from or arguments.finetune_from) is not None:
        return hub_id(checkpoint)
    if not arguments.pretrained:
        return None
    if arguments.backbone_source == "transformers":
        return hub_id(arguments.backbone)
    return timm.get_pretrained_cfg(timm_name(arguments.backbone)).hf_hub_id
