"""How files get to the disk: whole, and only then under their name."""

import errno
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from safetensors import SafetensorError

from ..errors import WriteError, errors_in_one_line

# A folder of new files lies in the one that they are for: where it is mounted, nothing can be
# renamed into it from outside. Beside them is a lock that their writer holds while it lives.
STAGED = re.compile(r"\.[0-9a-f]{32}\.unfinished")
NEW, LOCK, READY = "new", "lock", "ready"  # READY: all of NEW is on the disk
PAIR = ("config.json", "model.safetensors")  # they fit only each other
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# What safetensors and torch say in words of their own.
OF_THE_DISK = re.compile(r"\(os error (\d+)\)|inline_container|PytorchStreamWriter failed writing")


def writable_folder(folder: str | Path, flag: str) -> Path:
    """The folder that a flag gave, made if it is missing; refused where nothing can be written."""
    folder = Path(folder)
    with errors_in_one_line(f"{flag} {folder} cannot be written", of=OSError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """An empty folder for new files, which take their places in `folder` once all are whole.

    Whatever ends the process or the machine, `folder` then has all of them or none: what was all
    on the disk, `sweep` puts in place. An error leaves the old files, and nothing else."""
    with refused_by_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        staged = folder / f".{uuid.uuid4().hex}.unfinished"
        staged.mkdir()
        try:
            with FileLock(staged / LOCK):
                (staged / NEW).mkdir()
                yield staged / NEW
                _finish(staged / NEW)
                for path in (staged / NEW).rglob("*"):
                    target = folder / path.relative_to(staged / NEW)
                    if target.is_dir() and not path.is_dir():
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
                (staged / READY).touch()
                _sync(staged)
                move_files(staged / NEW, folder)
        except BaseException:
            if not (staged / READY).exists():
                shutil.rmtree(staged, ignore_errors=True)
            raise
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, of the same name in another folder; whole, it replaces `path`, and else nothing does.

    Several processes may write it at once, each for itself; the last one stays."""
    with replacing_files(path.parent) as new, refused_by_disk(path):
        yield new / path.name


def sweep(folder: Path) -> None:
    """End what killed processes began in the folder: files that were all whole take their places,
    others go. Nothing else is touched, and nothing of a process that lives."""
    for staged in [path for path in folder.glob(".*") if STAGED.fullmatch(path.name)]:
        try:
            if not (staged / LOCK).exists() and time.time() - staged.stat().st_mtime < 60:
                continue  # its writer is about to take the lock
            # Taking their places takes a moment: that is waited for.
            with FileLock(staged / LOCK, timeout=10 if (staged / READY).exists() else 0):
                if (staged / READY).exists():
                    move_files(staged / NEW, folder)
        except OSError:  # its writer lives, or nothing can be written here: the next one will
            continue
        shutil.rmtree(staged, ignore_errors=True)


def move_files(source: Path, folder: Path) -> None:
    """All files in `source` to the same place in `folder`, over those there; again after an interruption, the rest."""
    files = [path for path in source.rglob("*") if not path.is_dir() or path.is_symlink()]
    # Configuration and weights come last, in one breath.
    for path in sorted(files, key=lambda path: (path.name in PAIR, path)):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    for parent in {folder / path.relative_to(source).parent for path in files}:
        _sync(parent)


def put_in_place(unfinished: Path, path: Path) -> None:
    """Rename a whole folder of files once the disk has it. An older one, until then called .replaced, goes."""
    _finish(unfinished)
    replaced = path.with_suffix(".replaced")
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(path, replaced)
    os.replace(unfinished, path)
    _sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, yaml.safe_dump(dict(values), sort_keys=False))


def append_json(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file of such lines: all of it, or on a full disk nothing."""
    line = (json.dumps(record) + "\n").encode()
    with refused_by_disk(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)
            raise


@contextmanager
def refused_by_disk(path: Path) -> Iterator[None]:
    """`WriteError` in place of what says that the disk is full, or takes no file so large."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if (reason := disk_refusal(error)) is None:
            raise
        raise WriteError(
            f"{path} cannot be written: {reason}. What was there is as it was: make room, or give "
            "another folder, and run the same command again."
        ) from error


def disk_refusal(error: BaseException | None) -> str | None:
    """What the disk said, if it is what caused the error: in words, as of "No space left"."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return os.strerror(error.errno)
        if isinstance(error, RuntimeError | SafetensorError) and (found := OF_THE_DISK.search(str(error))):
            return os.strerror(int(found[1] or errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return None


def _finish(folder: Path) -> None:
    """Of all files, at any depth: the permissions that the user's new files have (libraries that
    write by way of a temporary file keep others out); and the disk has them, and their names."""
    mode = folder.stat().st_mode & 0o666
    for path in (folder, *folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if os.name != "posix":  # folders cannot be opened, nor files to be synchronised only
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
