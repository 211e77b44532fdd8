"""What a run needs to be repeated, beside its arguments: versions, commit, machine, data, seed.

Holds command lines and thus paths: for those who ran it, not for publishing (see `provenance`)."""

import hashlib
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..data.dataset import ImageDataset
from ..data.labels import labels_of
from ..errors import ArgumentError
from ..runs.files import write_json
from ..runs.reading import read_json
from .arguments import TrainArguments

ENVIRONMENT = "environment.json"
PACKAGES = (
    "hf_protosphere", "torch", "torchvision", "timm", "transformers", "datasets", "accelerate",
    "huggingface-hub", "torchmetrics", "numpy", "pillow",
)  # fmt: skip


def record_start(folder: Path, arguments: TrainArguments, images: ImageDataset, accelerator: Accelerator) -> str:
    """Write or, when a run is resumed, extend environment.json; returns the run's identity."""
    path = folder / ENVIRONMENT
    record = {"run_id": uuid.uuid4().hex, "starts": []}
    # Of no length is what a machine left that went down.
    if arguments.resume and path.exists() and path.stat().st_size:
        record = read_json(path, "Remove it, and a new one is begun.")
        if not isinstance(record.get("starts"), list) or not isinstance(record.get("run_id"), str):
            raise ArgumentError(f"{path} holds no starts of a run: remove it, and it is begun anew.")
    record["starts"].append({
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "command": sys.argv, "versions": versions(),
        "python": platform.python_version(), "platform": platform.platform(),
        "device": device_name(accelerator.device), "processes": accelerator.num_processes, "git": git_state(),
        "seed": arguments.seed, "data": {name: data_fingerprint(split) for name, split in images.splits.items()},
    })  # fmt: skip
    write_json(path, record)
    return record["run_id"]


def data_fingerprint(split: Any) -> dict[str, Any]:
    """Of a `datasets.Dataset` with a column "label"; of a stream what is known without reading it.

    The fingerprint is a hash of how the split was made, of paths among others: equal ones mean
    equal data, unequal ones nothing. The labels tell on any machine whether images and order agree."""
    if not hasattr(split, "__len__"):
        return {"streamed": True}
    digest = hashlib.sha256(np.asarray(labels_of(split), dtype="<i8").tobytes()).hexdigest()
    return {"fingerprint": split._fingerprint, "num_images": len(split), "labels_sha256": digest}


def git_state(folder: Path | str = ".") -> dict[str, Any] | None:
    """{"commit", "changed_files"} of the repository around the folder; None without one.

    Of a repository that a stranger packed no program is run: `git status` would start what its own
    configuration names as file-system monitor and as filters."""

    def git(*words: str, off: Sequence[str] = ()) -> str:
        options = [word for name in ("core.fsmonitor", *off) for word in ("-c", f"{name}=")]
        command = ["git", "-C", str(folder), *options, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        names = git("config", "--list", "--name-only").splitlines()
        filters = [n for n in names if re.match(r"filter\..+\.(clean|process|required)$", n)]
        changed = git("status", "--porcelain", "--ignore-submodules=all", off=filters).splitlines()
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, no commit yet
        return None
    return {"commit": commit, "changed_files": len(changed)}


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else device.type
