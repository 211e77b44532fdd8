"""The file of a snapshot: the sphere is drawn from it, without model or images."""

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checking import read_header
from ..errors import errors_in_one_line
from ..metrics.snapshot import Snapshot
from .files import whole_file

SNAPSHOT = "snapshot.safetensors"


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    tensors = {k: v.contiguous() for k, v in vars(snapshot).items() if isinstance(v, Tensor)}
    metadata = {"class_names": json.dumps(snapshot.class_names), "split": snapshot.split}
    with whole_file(path) as unfinished:
        save_file(tensors, unfinished, metadata)


def load_snapshot(path: Path) -> Snapshot:
    with errors_in_one_line(f"{path} is not a whole snapshot", "Remove it, or write it again."):
        read_header(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        metadata["class_names"] = json.loads(metadata["class_names"])
        snapshot = Snapshot(**tensors, **metadata)
        snapshot.check()
    return snapshot


def snapshot_of(name: str) -> Snapshot | None:
    """The snapshot beside a checkpoint, a folder or an id on the Hub, if there is one."""
    if Path(name).is_dir():
        path = Path(name) / SNAPSHOT
        return load_snapshot(path) if path.exists() else None
    try:
        return load_snapshot(Path(hf_hub_download(name, SNAPSHOT)))
    except EntryNotFoundError:
        return None
