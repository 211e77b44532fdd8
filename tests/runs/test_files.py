"""What has its final name is whole, whatever ended the process that wrote it."""

import errno
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from hf_protosphere.errors import ArgumentError, WriteError
from hf_protosphere.metrics.snapshot import Snapshot
from hf_protosphere.runs import files
from hf_protosphere.runs.files import (
    append_json,
    put_in_place,
    replacing_files,
    sweep,
    whole_file,
    writable_folder,
    write_json,
    write_text,
)
from hf_protosphere.runs.snapshots import save_snapshot


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_after_writing(path, error):
    path.write_text("half of the n")
    raise error


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in its order: ("sync" or "replace", name)."""
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(opened):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{opened}")).name))
        fsync(opened)

    def replaced(source, target):
        done.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", replaced)
    return done


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with whole_file(path) as unfinished:
        assert unfinished.is_relative_to(tmp_path)  # renaming works within a file system only
        assert unfinished.suffix == ".json"  # it tells libraries what to write
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["results.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as unfinished:
        fail_after_writing(unfinished, KeyboardInterrupt())
    assert path.read_text() == "old"
    assert names(tmp_path) == ["results.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="open files are named in /proc")
def test_the_disk_has_the_content_before_the_name_and_then_the_name(tmp_path, calls):
    write_text(tmp_path / "table.md", "→ é")
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == "→ é"
    names = ["sync new", "sync table.md", "sync", "replace table.md", f"sync {tmp_path.name}"]
    assert [f"{what} {'' if '.unf' in name else name}".strip() for what, name in calls] == names


def test_several_may_write_the_same_file_each_for_itself(tmp_path):
    path = tmp_path / "cache"
    with whole_file(path) as first, whole_file(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["cache"]


def test_json_is_for_people_too(tmp_path):
    value = {"accuracy": 0.1, "classes": ["a", "ö"], "none": None}
    write_json(tmp_path / "results.json", value)
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text) == value
    assert text.startswith('{\n  "accuracy": 0.1,\n')
    assert text.endswith("}\n")


def write_model(folder, content):
    for name in ("preprocessor_config.json", "model.safetensors", "config.json", "a.py"):
        (folder / name).write_text(content)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are named in /proc")
def test_configuration_and_weights_are_replaced_last_when_all_is_on_the_disk(tmp_path, calls):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with replacing_files(folder) as unfinished:
        write_model(unfinished, "new")
        assert [name for name in names(folder) if name[0] != "."] == ["notes.txt"]
    replaced = [name for what, name in calls if what == "replace"]
    assert replaced == ["a.py", "preprocessor_config.json", "config.json", "model.safetensors"]
    first = calls.index(("replace", "a.py"))
    assert {name for _, name in calls[:first]} >= {*replaced, "new"}
    assert calls[first + 4 :] == [("sync", "run")]
    assert names(folder) == sorted([*replaced, "notes.txt"])
    assert names(tmp_path) == ["run"]


def test_an_error_leaves_the_old_files_and_nothing_that_is_not_ours_goes(tmp_path):
    folder, beside = tmp_path / "run", tmp_path / "run.unfinished"
    beside.mkdir()
    with replacing_files(folder) as unfinished:
        assert names(unfinished) == []
        write_model(unfinished, "old")
    with pytest.raises(OSError, match="broken"), replacing_files(folder) as unfinished:
        fail_after_writing(unfinished / "config.json", OSError("broken"))
    assert {path.read_text() for path in folder.iterdir()} == {"old"}
    assert names(tmp_path) == ["run", "run.unfinished"]


def test_the_current_folder_and_one_that_is_mounted(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with replacing_files(Path()) as unfinished:
        write_model(unfinished, "one")
    replace = os.replace

    def of_one_file_system(source, target):
        inside = {folder in Path(path).absolute().parents for path in (source, target)}
        if len(inside) > 1:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", of_one_file_system)
    with replacing_files(folder) as unfinished:
        write_model(unfinished, "two")
    assert {path.read_text() for path in folder.iterdir()} == {"two"}
    assert names(tmp_path) == ["run"]


@pytest.mark.skipif(sys.platform != "linux", reason="bind mounts are Linux's")
def test_a_mounted_folder_for_real(tmp_path):
    folder = tmp_path / "output"
    (tmp_path / "disk").mkdir()
    folder.mkdir()
    if subprocess.run(["mount", "--bind", tmp_path / "disk", folder], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        with replacing_files(folder) as unfinished:
            write_model(unfinished, "new")
    finally:
        subprocess.run(["umount", folder], check=True)
    assert len(names(tmp_path / "disk")) == 4


def test_killed_anywhere_it_has_all_files_or_none_and_leaves_nothing(tmp_path, kill):
    def job():
        with replacing_files(folder) as unfinished:
            write_model(unfinished, "new")

    outcomes, was_killed = [], True
    while was_killed:
        folder = tmp_path / str(len(outcomes))
        folder.mkdir()
        write_model(folder, "old")
        (folder / ".a.unfinished").mkdir()  # somebody else's
        was_killed = kill(len(outcomes), job)
        for staged in folder.glob(".*.unfinished"):
            os.utime(staged, (0, 0))  # long ago
        sweep(folder)
        assert names(folder) == [
            ".a.unfinished", "a.py", "config.json", "model.safetensors", "preprocessor_config.json",
        ]  # fmt: skip
        (content,) = {path.read_text() for path in folder.iterdir() if path.is_file()}
        outcomes.append(content)
    assert outcomes == sorted(outcomes, reverse=True)  # first "old", and then "new"
    assert outcomes.count("old") > 10
    assert outcomes.count("new") > 5


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    with whole_file(tmp_path / "first") as first:
        first.write_text("first")
        sweep(tmp_path)
        write_text(tmp_path / "second", "second")
    assert names(tmp_path) == ["first", "second"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_new_files_have_the_permissions_that_the_user_gives(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "model.safetensors") as unfinished:
            save_file({"a": torch.ones(2)}, unfinished)
            unfinished.chmod(0o600)  # as libraries do that write by way of a temporary file
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


WRITERS = {
    "text": lambda path: write_text(path, "new" * 10_000),
    "line": lambda path: append_json(path, {"new": "new" * 10_000}),
    "safetensors": lambda path: save_snapshot(Snapshot(*torch.ones(6, 100, 100), ["new"], "test"), path),
    "torch": lambda path: write(path, lambda new: torch.save(torch.ones(10_000), new)),
    "picture": lambda path: write(path, lambda new: Figure().savefig(new, dpi=1000, format="raw")),
}


def write(path, how):
    with whole_file(path) as unfinished:
        how(unfinished)


@contextmanager
def full_disk(limit):
    """No file may be longer than that."""
    if sys.platform != "linux":
        pytest.skip("the limit of a file's size is Linux's")
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, writer):
    path = tmp_path / "file"
    path.write_text("old")
    said = r"^.*file cannot be written: (File too large|No space left on device)\. What.*$"
    with full_disk(5000), pytest.raises(WriteError, match=said):
        WRITERS[writer](path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for name, file in (("step", "old"), ("step.unfinished", "new")):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / file).write_text(file)
    put_in_place(tmp_path / "step.unfinished", tmp_path / "step")
    assert names(tmp_path) == ["step"]
    assert names(tmp_path / "step" / "deep") == ["new"]
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "step", "a file takes the place of files only")
    assert names(tmp_path) == ["step"]
    assert names(tmp_path / "step" / "deep") == ["new"]


def test_a_folder_is_made_or_its_flag_named(tmp_path):
    assert writable_folder(str(tmp_path / "new" / "deep"), "--pictures") == tmp_path / "new/deep"
    assert names(tmp_path / "new" / "deep") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"--pictures .*file cannot be written"):
        writable_folder(tmp_path / "file", "--pictures")
