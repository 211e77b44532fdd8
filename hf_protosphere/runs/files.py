"""What a run's folder holds, and how files get there: whole, and only then under their name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
def replacing_files(folder: Path) -> Iterator[Path]:
    """A folder for new files, which come to `folder` one after the other once all are whole."""
    folder = folder.resolve()  # "." has no name
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    folder.mkdir(parents=True, exist_ok=True)
    # Configuration and weights fit only each other: they come last, in one breath.
    pair = ("config.json", "model.safetensors")
    for path in sorted(unfinished.iterdir(), key=lambda path: (path.name in pair, path.name)):
        os.replace(path, folder / path.name)
    unfinished.rmdir()


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
