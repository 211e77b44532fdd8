"""The folders of commands: held by one process at a time; nothing goes but what this package has written."""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from socket import gethostname
from typing import Any

from accelerate import Accelerator, PartialState
from filelock import FileLock, Timeout

from ..errors import ArgumentError
from .files import STAGED, move_files, refused_by_disk, sweep, writable_folder, write_json
from .processes import on_main_process
from .reading import read_json, read_yaml

# Configuration, weights, image processor and the code that travels with them.
MODEL_FILES = (
    "config.json", "model*.safetensors", "model.safetensors.index.json",
    "preprocessor_config.json", "*_protosphere.py", "backbones.py", "checking.py", "contrast.py",
    "editable_classes.py", "losses.py", "objectives.py", "prototypes.py", "rgb.py",
)  # fmt: skip
PICTURES = ("curves", "neural_collapse", "cosines", "margins", "sphere")
CALIBRATION_FILES = ("calibration.json", "reliability.png")
TRANSFER_FILES = ("transfer.yaml", "rows.jsonl", "comparison.json", "shots.png")
RUN_FILES = (
    *MODEL_FILES, "arguments.yaml", "environment.json", "metrics.jsonl", "results.json",
    "snapshot.safetensors", *(f"{name}.png" for name in PICTURES), *CALIBRATION_FILES, *TRANSFER_FILES,
)  # fmt: skip
CARD_FILES = ("README.md",)
HELD = ".protosphere"  # in a folder: its lock, a record of what was written, what is replaced
_STEP = f"checkpoints/step-{'[0-9]' * 8}"
RUN = (  # patterns of all that training leaves
    *RUN_FILES, *(f"best/{name}" for name in MODEL_FILES), _STEP, f"{_STEP}.unfinished", f"{_STEP}.replaced",
    "tensorboard/**/events.out.tfevents.*", "tensorboard/**/hparams.yml", "wandb/run-*", "wandb/offline-run-*",
    "wandb/latest-run", "wandb/debug*.log", "wandb/settings",
)  # fmt: skip
# A run that has one of these stands: it can be resumed, or used.
STANDING = re.compile(r"step-\d{8}|model.*\.safetensors|results\.json|rows\.jsonl")


@contextmanager
def held_folder(folder: str | Path, flag: str, writes: Iterable[str]) -> Iterator[Path]:
    """The folder, made if it is missing, for this process (and thread) alone until it ends.

    Refused where another process writes, or where something of the patterns in `writes`, which may
    be replaced, is there and was not written by this package."""
    folder, writes = writable_folder(folder, flag), tuple(writes)
    _refuse_foreign(folder, flag, writes)
    with refused_by_disk(folder):
        held = folder.resolve() / HELD
        held.mkdir(exist_ok=True)
        # One for the process: what a command calls may hold the same folder again.
        lock = FileLock(held / "lock", timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            by = _record(folder).get("held_by", "another process")
            raise ArgumentError(f"{flag} {folder} is being written by {by}: wait, or give another folder.") from None
        except PermissionError as error:  # another user's
            raise ArgumentError(f"{flag} {folder} cannot be locked: {error}") from error
        try:
            sweep(folder)
            since = datetime.now(timezone.utc).isoformat(timespec="seconds")
            by = f"process {os.getpid()} on {gethostname()} ({' '.join(sys.argv)}) since {since}"
            claim(folder, flag, writes, held_by=by)
            yield folder
        finally:
            lock.release()


@contextmanager
def held_for_all(
    accelerator: Accelerator | PartialState, folder: str | Path | None, flag: str, writes: Iterable[str]
) -> Iterator[None]:
    """As `held_folder`, where there is one, by the main process; errors are raised on every one."""
    with ExitStack() as held:
        if folder is not None:
            hold = held_folder(folder, flag, writes)
            on_main_process(accelerator, lambda: held.enter_context(hold))
        yield


@contextmanager
def run_folder(
    folder: Path, *, resume: bool, overwrite: bool, bytes_needed: int, writes: Iterable[str] = RUN
) -> Iterator[None]:
    """As `held_folder`, for a run, with as much room as it needs; without resume or overwrite the
    folder must be empty. The run that it replaces goes when this one stands, and comes back if it
    ends before that; if it is killed, with the next command."""
    writes = tuple(writes)
    with held_folder(folder, "--output_dir", writes):
        _settle(folder, writes)
        if not resume:
            if _is_in_the_way(folder, writes) and not overwrite:
                raise ArgumentError(f"--output_dir {folder} is not empty: --resume goes on, --overwrite replaces it.")
            for path in folder.iterdir():
                if path.is_symlink() and any(name.startswith(f"{path.name}/") for name in writes):
                    raise ArgumentError(f"--output_dir {folder}: {path.name} is a link, and stays: remove it.")
            # And what `protosphere export` wrote of the run, in the folders that it chooses.
            exports = [name for name in ("onnx", "torch_export") if _record(folder / name)]
            exported = [f"{n}/{what}" for n in exports for what in ("model.*", "README.md", HELD)]
            (moving := folder / HELD / "moving").mkdir()
            _clear(folder, (*writes, *exported), moving)
            if any(moving.iterdir()):
                moving.rename(folder / HELD / "replaced")
        free = shutil.disk_usage(folder).free
        try:
            if free < bytes_needed:
                needed, left = f"{bytes_needed >> 20:,} MiB", f"{free >> 20:,} MiB"
                raise ArgumentError(f"--output_dir {folder}: the run needs {needed} on disk, but {left} are free.")
            yield
        finally:
            _settle(folder, writes)


def remove_run(folder: Path) -> None:
    """What a run left, and the folder, unless something else lies there."""
    _clear(folder, (*RUN, HELD))
    with suppress(OSError):
        folder.rmdir()


def claim(folder: Path, flag: str, writes: tuple[str, ...], **more: str) -> None:
    """Write down that this package writes such files; what it has not written, and would replace, is refused."""
    _refuse_foreign(folder, flag, writes)
    before = _written(folder, writes)
    if more or {*writes} - {*before}:
        (folder / HELD).mkdir(exist_ok=True)
        write_json(folder / HELD / "record.json", {"writes": sorted({*before, *writes}), **more})


def _refuse_foreign(folder: Path, flag: str, writes: tuple[str, ...]) -> None:
    written = _written(folder, writes)  # of a stranger's folder, a stranger's: compared only
    own = [pattern for pattern in writes if pattern in written]
    if foreign := _found(folder, writes) - _found(folder, own):
        names = sorted(str(path.relative_to(folder)) for path in foreign)
        shown = ", ".join(names[:5]) + (" and more" if names[5:] else "")
        raise ArgumentError(f"{flag} {folder} holds {shown}, not written by this package: move it, or give another.")


def _found(folder: Path, patterns: Iterable[str]) -> set[Path]:
    return {path for pattern in patterns for path in folder.glob(pattern)}


def _record(folder: Path) -> dict[str, Any]:
    with suppress(ArgumentError):
        record = read_json(folder / HELD / "record.json")
        if isinstance(record.get("writes"), list):
            return record
    return {}


def _written(folder: Path, writes: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of what this package has written there, as far as that can be told."""
    if record := _record(folder):
        return tuple(pattern for pattern in record["writes"] if isinstance(pattern, str))
    return (*RUN, *CARD_FILES, *writes) if _is_of_version_0_1(folder) else ()


def _is_of_version_0_1(folder: Path) -> bool:
    """Or a model that `save_pretrained` wrote: by what only this package writes."""
    with suppress(ArgumentError):
        if read_json(folder / "config.json").get("model_type") == "protosphere":
            return True
    records = (*folder.glob("arguments.yaml"), *folder.glob("transfer.yaml"))
    for path in (*records, *folder.glob("*/*/transfer.yaml")):  # the last are a suite's
        with suppress(ArgumentError):
            if {"dataset_name", "output_dir"} <= read_yaml(path).keys():
                return True
    return False


def _is_in_the_way(folder: Path, writes: tuple[str, ...]) -> bool:
    """Whether there is anything but a start that failed."""
    ours = {path.relative_to(folder).parts[0] for path in _found(folder, writes)} | {HELD}
    others = (path for path in folder.iterdir() if path.name not in ours)
    return _stands(folder, writes) or any(
        not STAGED.fullmatch(path.name) and (not path.is_dir() or any(path.iterdir())) for path in others
    )


def _stands(folder: Path, writes: tuple[str, ...]) -> bool:
    return any(STANDING.fullmatch(path.name) for path in _found(folder, writes))


def _clear(folder: Path, writes: Iterable[str], target: Path | None = None) -> None:
    """Remove what was written, or move it to `target`; and the folders that hold nothing else."""
    for path in _found(folder, writes):
        if target is not None:
            moved = target / path.relative_to(folder)
            moved.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, moved)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        with suppress(OSError):
            for parent in path.relative_to(folder).parents[:-1]:
                (folder / parent).rmdir()


def _settle(folder: Path, writes: tuple[str, ...]) -> None:
    """What a run replaces goes if that one stands, and else comes back."""
    moving, replaced = folder / HELD / "moving", folder / HELD / "replaced"
    if replaced.exists() and not _stands(folder, writes):
        _clear(folder, writes)
        replaced.rename(moving)
    if moving.exists():
        move_files(moving, folder)
        shutil.rmtree(moving)
    shutil.rmtree(replaced, ignore_errors=True)
