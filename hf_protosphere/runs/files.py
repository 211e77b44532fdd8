"""What a run's folder holds, and how files get there: whole, and only then under their name."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from ..errors import ArgumentError

RUN_FOLDERS = (
    "checkpoints", "best", "tensorboard", "wandb", ".eval_results", "onnx", "torch_export"
)  # fmt: skip
# Configuration, weights, image processor and the code that travels with them.
MODEL_FILES = (
    "config.json", "model*.safetensors", "model.safetensors.index.json",
    "preprocessor_config.json", "*_protosphere.py", "backbones.py", "checking.py", "contrast.py",
    "editable_classes.py", "losses.py", "prototypes.py",
)  # fmt: skip
RUN_FILES = (
    *MODEL_FILES, "arguments.yaml", "environment.json", "metrics.jsonl", "results.json",
    "snapshot.safetensors", "curves.png", "neural_collapse.png", "cosines.png", "margins.png",
    "sphere.png", "calibration.json", "reliability.png", "transfer.yaml", "rows.jsonl",
    "comparison.json", "shots.png",
)  # fmt: skip


def prepare_output_dir(folder: Path, *, resume: bool, overwrite: bool, bytes_needed: int) -> None:
    """Make the folder, or say why it cannot be used, before any long work.

    Raises:
        ArgumentError: not empty (without resume or overwrite), not writable, or the disk too full.
    """
    writable_folder(folder, "--output_dir")
    if any(folder.iterdir()) and not resume:
        if not overwrite:
            raise ArgumentError(
                f"--output_dir {folder} is not empty: go on with that run by --resume, replace it "
                "by --overwrite, or give another folder."
            )
        for name in RUN_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for pattern in RUN_FILES:
            for path in folder.glob(pattern):
                path.unlink()
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise ArgumentError(
            f"--output_dir {folder}: the run needs {_megabytes(bytes_needed)} on disk, but "
            f"{_megabytes(free)} are free."
        )


def writable_folder(folder: str | Path, flag: str) -> Path:
    """The folder, made if it is missing.

    Raises:
        ArgumentError: naming the flag, when nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # several processes may try at once
    except OSError as error:
        raise ArgumentError(f"{flag} {folder} cannot be written: {error}") from error
    return folder


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its name once the file is whole.

    Whatever ends the process or the machine, under `path` is the old file or the new one. An error
    leaves the old one, and nothing else.

    Args:
        shared: several processes may write it at once, each for itself; the last one stays.
    """
    own = f".{uuid.uuid4().hex}" if shared else ""
    unfinished = path.with_name(f"{path.name}{own}.unfinished")
    try:
        yield unfinished
        put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, yaml.safe_dump(dict(values), sort_keys=False))


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """A folder for new files, which come to `folder` one after the other once all are whole. An
    error before that leaves the old ones, and nothing else."""
    folder = folder.resolve()  # "." has no name
    # Nothing can be renamed into a mounted folder from beside it; and not all may write there.
    alone = os.path.ismount(folder) or not os.access(folder.parent, os.W_OK)
    beside = folder if alone else folder.parent
    unfinished = beside / f"{folder.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    _sync_files(unfinished)
    folder.mkdir(parents=True, exist_ok=True)
    # Configuration and weights fit only each other: they come last, in one breath.
    pair = ("config.json", "model.safetensors")
    for path in sorted(unfinished.iterdir(), key=lambda path: (path.name in pair, path.name)):
        os.replace(path, folder / path.name)
    unfinished.rmdir()
    _sync(folder)


def put_in_place(unfinished: Path, path: Path) -> None:
    """Rename a whole file, or a whole folder of files, once the disk has it; an older one goes."""
    _sync_files(unfinished)
    if unfinished.is_dir() and path.is_dir():
        shutil.rmtree(path)
    os.replace(unfinished, path)
    _sync(path.parent)


def _sync_files(path: Path) -> None:
    """Of a folder all files, at any depth, and their names."""
    for part in (path, *path.rglob("*")):
        _sync(part)


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if os.name != "posix":  # folders cannot be opened, nor files to be synchronised only
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def lock_for_children(file: IO[Any]) -> Iterator[None]:
    """Wait until nobody else holds the file, and hold it; also for processes that are started with
    it as their output, until the last of them ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where children do not inherit a lock: it is this process's only
        from filelock import FileLock

        with FileLock(f"{file.name}.lock"):
            yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
