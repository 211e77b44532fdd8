"""Where a run comes from: data, weights, machine, versions.

`provenance`, for results.json, may be published: no paths enter it. environment.json holds what is
needed to repeat a run beside its arguments, command lines and thus paths among it: it is for those
who ran it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from accelerate import Accelerator

from ..backbones import timm_name
from ..data.dataset import ImageDataset
from ..data.labels import labels_of
from .adaptation import count_parameters, count_trained_parameters
from .arguments import TrainArguments

if TYPE_CHECKING:
    from .run import TrainingRun

ENVIRONMENT = "environment.json"
PACKAGES = (
    "hf_protosphere", "torch", "torchvision", "timm", "transformers", "datasets", "accelerate",
    "huggingface-hub", "torchmetrics", "numpy", "pillow",
)  # fmt: skip


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


def record_start(
    folder: Path, arguments: TrainArguments, images: ImageDataset, accelerator: Accelerator
) -> str:
    """Write or, when a run is resumed, extend environment.json; returns the run's identity.

    The file holds {"run_id", "starts": [...]}, a start being {"time" (UTC), "command", "versions",
    "python", "platform", "device", "processes", "git" (commit and number of changed files of the
    working directory, or None), "seed", "data" (of each split the fingerprint by datasets, the
    number of images and a SHA-256 of the labels in their order)}.
    """
    path = folder / ENVIRONMENT
    record = {"run_id": uuid.uuid4().hex, "starts": []}
    if arguments.resume and path.exists():
        record = json.loads(path.read_text())
    record["starts"].append(
        {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": sys.argv,
            "versions": versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": device_name(accelerator.device),
            "processes": accelerator.num_processes,
            "git": git_state(),
            "seed": arguments.seed,
            "data": {name: data_fingerprint(split) for name, split in images.splits.items()},
        }
    )
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=2) + "\n")
    unfinished.replace(path)
    return record["run_id"]


def data_fingerprint(split: Any) -> dict[str, Any]:
    """Of a `datasets.Dataset` with a column "label"; of a stream what is known without reading it.

    The fingerprint is a hash of how the split was made, of paths among others: equal ones mean
    equal data, unequal ones nothing. The labels tell on any machine whether images and order agree.
    """
    if not hasattr(split, "__len__"):
        return {"streamed": True}
    labels = np.asarray(labels_of(split), dtype="<i8")
    return {
        "fingerprint": split._fingerprint,
        "num_images": len(split),
        "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
    }


def git_state(folder: Path | str = ".") -> dict[str, Any] | None:
    """{"commit", "changed_files"} of the repository around the folder; None without one."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        changed = git("status", "--porcelain").splitlines()
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, no commit yet
        return None
    return {"commit": commit, "changed_files": len(changed)}


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else device.type
