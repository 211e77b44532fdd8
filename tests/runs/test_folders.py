"""A folder is one process's at a time, and what is not ours in it stays."""

import json
import os
import signal
import threading
from contextlib import nullcontext
from multiprocessing import get_context

import pytest

from hf_protosphere.errors import ArgumentError, WriteError
from hf_protosphere.runs.files import write_json, write_yaml
from hf_protosphere.runs.folders import HELD, claim, held_folder, remove_run, run_folder


def tree(folder):
    """What people see of it: {path: content}."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and HELD not in path.parts
    }


def write(folder, content, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def run(folder, **options):
    options = {"resume": False, "overwrite": False, "bytes_needed": 1} | options
    return run_folder(folder, **options)


START = ("arguments.yaml", "metrics.jsonl", "tensorboard/a/events.out.tfevents.1")
CHECKPOINT = "checkpoints/step-00000002/progress.json"
FINISHED = (*START, CHECKPOINT, "best/model.safetensors", "model.safetensors", "results.json")


@pytest.fixture
def old(tmp_path):
    """A finished run."""
    with run(tmp_path / "run"):
        write(tmp_path / "run", "old", *FINISHED)
    return tmp_path / "run"


# One at a time


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path):
    ours, theirs = get_context("fork").Pipe()

    def hold():
        with held_folder(tmp_path, "--output_dir", ()):
            if (worker := os.fork()) == 0:  # as a loader's, which outlives the process for a moment
                signal.pause()
            theirs.send(worker)
            theirs.recv()

    process = get_context("fork").Process(target=hold, daemon=True)
    process.start()
    worker = ours.recv()
    expected = rf"^--output_dir .* is being written by process {process.pid} on .*: wait, or give"
    with pytest.raises(ArgumentError, match=expected), held_folder(tmp_path, "--output_dir", ()):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()  # with a time limit it would wait for the worker as well
    with held_folder(tmp_path, "--output_dir", ()):
        pass
    os.kill(worker, signal.SIGKILL)


def test_a_lock_of_another_user_is_one_line(tmp_path, monkeypatch):
    def acquire(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hf_protosphere.runs.folders.FileLock.acquire", acquire)
    with pytest.raises(ArgumentError, match=r"^--output_dir .* cannot be locked: .*denied"):
        held_folder(tmp_path, "--output_dir", ()).__enter__()


def test_other_threads_are_refused_and_what_a_command_calls_is_not(tmp_path):
    refused = []

    def other():
        try:
            with held_folder(tmp_path, "--index_dir", ()):
                pass
        except ArgumentError as error:
            refused.append(str(error))

    with held_folder(tmp_path, "--output_dir", ()), held_folder(tmp_path, "--output_dir", ()):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused
    assert refused[0].startswith("--index_dir")


# Only what is ours


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["losses.py", "config.json", "best/model.safetensors", CHECKPOINT])
def test_what_would_be_replaced_and_is_not_ours_is_refused(tmp_path, name, resume):
    write(tmp_path, "mine", name)
    expected = rf"^--output_dir .* holds {name.replace('/progress.json', '')}, not written by this"
    options = {"resume": resume, "overwrite": not resume}
    with pytest.raises(ArgumentError, match=expected), run(tmp_path, **options):
        pass
    assert tree(tmp_path) == {name: "mine"}
    assert not (tmp_path / HELD).exists()


def test_what_was_claimed_is_ours_and_no_more(tmp_path):
    claim(tmp_path, "--output_dir", ("curves.png",))
    write(tmp_path, "text", "curves.png", "config.json")
    claim(tmp_path, "--output_dir", ("curves.png", "sphere.png"))
    with pytest.raises(ArgumentError, match=r"holds config.json, not written"):
        claim(tmp_path, "--output_dir", ("*.json",))


@pytest.mark.parametrize(
    "proof",
    [
        lambda folder: write_json(folder / "config.json", {"model_type": "protosphere"}),
        lambda folder: write_yaml(folder / "arguments.yaml", {"dataset_name": "", "output_dir": ""}),
    ],
)
def test_a_run_of_an_earlier_version_is_ours(tmp_path, proof):
    write(tmp_path, "old", "README.md", "losses.py", "notes.txt", CHECKPOINT)
    proof(tmp_path)
    with run(tmp_path, resume=True):
        pass
    claim(tmp_path, "--folder", ("README.md",))
    with pytest.raises(ArgumentError, match=r"holds notes\.txt"):
        claim(tmp_path, "--folder", ("notes.txt",))


@pytest.mark.parametrize("record", ["", "[]", '{"writes": 3}', "\0"])
def test_a_damaged_record_proves_nothing(tmp_path, record):
    write(tmp_path, record, f"{HELD}/record.json")
    write(tmp_path, "mine", "losses.py")
    with pytest.raises(ArgumentError, match=r"holds losses.py"), run(tmp_path, resume=True):
        pass


# Replacing a run


def start_and_fail(folder):
    write(folder, "", *START)
    raise ZeroDivisionError


def test_a_run_is_in_the_way_and_a_start_that_failed_is_not(tmp_path, old):
    with pytest.raises(ArgumentError, match="is not empty: --resume goes on"):
        run(old).__enter__()
    with run(old, resume=True):
        assert set(tree(old).values()) == {"old"}
    new = tmp_path / "new"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), run(new):
            start_and_fail(new)
    assert tree(new) == dict.fromkeys(START, "")  # to be read
    write(new, "mine", "notes.txt")
    with pytest.raises(ArgumentError, match="is not empty"):
        run(new).__enter__()


@pytest.mark.parametrize(
    ("written", "error", "stands"),
    [
        (START, ZeroDivisionError, "old"),
        ((), WriteError, "old"),
        ((*START, CHECKPOINT), KeyboardInterrupt, "new"),  # it can be resumed
        (FINISHED, None, "new"),
    ],
)
def test_the_old_run_goes_when_the_new_one_stands(old, written, error, stands):
    write(old, "mine", "best/notes.txt", "onnx/model.onnx", "checkpoints/keep/progress.json", "a")
    with pytest.raises(error) if error else nullcontext(), run(old, overwrite=True):
        assert {*tree(old).values()} == {"mine"}
        write(old, "new", *written)
        if error is not None:
            raise error("it ends")
    found = tree(old)
    ours = {name for name, content in found.items() if content != "mine"}
    assert len(found) - len(ours) == 4
    assert {found[name] for name in ours} == {stands}
    assert ours == {*(FINISHED if stands == "old" else written)}
    assert not {path.name for path in (old / HELD).iterdir()} & {"moving", "replaced"}


def test_what_does_not_fit_on_the_disk_is_said_before_the_work(old):
    expected = r"run needs 1,048,576,000 MiB on disk, but .* free"
    with pytest.raises(ArgumentError, match=expected):
        run(old, overwrite=True, bytes_needed=1000 * 2**40).__enter__()
    assert {*tree(old).values()} == {"old"}


def test_killed_anywhere_the_folder_holds_the_old_run_or_the_new_one(tmp_path, kill):
    files = ("arguments.yaml", "results.json")

    def job():
        with run(folder, overwrite=True):
            write(folder, "new", *files)

    outcomes, was_killed = [], True
    while was_killed:
        folder = tmp_path / str(len(outcomes))
        with run(folder):
            write(folder, "old", *files)
        was_killed = kill(len(outcomes), job)
        with run(folder, resume=True):
            found = tree(folder)
        (content,) = {*found.values()}
        assert found.keys() == {*files}
        outcomes.append(content)
    assert outcomes == sorted(outcomes, reverse=True)
    assert {*outcomes} == {"old", "new"}


def test_what_was_exported_of_the_old_run_goes_with_it(old):
    with held_folder(old / "onnx", "--output_dir", ("model.onnx*",)):
        write(old / "onnx", "old", "model.onnx")
    write(old, "mine", "torch_export/model.pt2")
    with run(old, overwrite=True):
        assert tree(old) == {"torch_export/model.pt2": "mine"}
        assert not (old / "onnx").exists()


def test_a_record_or_a_link_of_a_stranger_leads_to_nothing_outside(old, tmp_path):
    write(tmp_path, "mine", "losses.py", "elsewhere/step-00000009/progress.json")
    write(old, "[]", f"onnx/{HELD}/record.json")
    write_json(old / "onnx" / HELD / "record.json", {"writes": ["../../*", "/*", 3, []]})
    with run(old, overwrite=True):
        write(old, "new", "results.json")
    (old / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArgumentError, match="checkpoints is a link"):
        run(old, overwrite=True).__enter__()
    write_json(old / HELD / "record.json", {"writes": ["*", "../*", 3, []]})
    write(old, "mine", "config.json")
    with pytest.raises(ArgumentError, match=r"holds .*config\.json"):
        run(old, resume=True).__enter__()
    for name in ("losses.py", "elsewhere/step-00000009/progress.json"):
        assert (tmp_path / name).read_text() == "mine"


def test_removing_a_run_leaves_what_else_lies_there(old, tmp_path):
    other = tmp_path / "other"
    with run(other):
        write(other, "old", *FINISHED)
    write(old, "mine", "notes.txt")
    remove_run(old)
    remove_run(other)
    assert tree(old) == {"notes.txt": "mine"}
    assert not other.exists()


def test_the_record_tells_who_writes(tmp_path):
    with held_folder(tmp_path, "--output_dir", ("a.txt",)):
        record = json.loads((tmp_path / HELD / "record.json").read_text())
    assert record["writes"] == ["a.txt"]
    assert f"process {os.getpid()} on " in record["held_by"]
