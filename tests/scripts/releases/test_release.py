"""Rows are trained by processes of their own, published together, and told of when they fail."""

import fcntl
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout

from hf_protosphere.errors import ArgumentError, PublishError
from hf_protosphere.training.arguments import TrainArguments
from scripts.releases import release as releasing
from scripts.releases.arguments import ReleaseArguments
from scripts.releases.release import ReleaseError, lock_for_children, release
from scripts.releases.rows import FINISHED, MISSING, Row


class Job(Row):
    """A row whose training is a small program."""

    program = "pass"

    @property
    def command(self):
        return [sys.executable, "-S", "-c", self.program]

    def state(self):
        return FINISHED if (self.folder / "results.json").exists() else MISSING


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(releasing, "_metrics", lambda row: ("90.00%", "80.0 %"))

    def make(program="pass", name="digits-nonl"):
        arguments = TrainArguments(dataset_name="x", output_dir=str(tmp_path / name), report_to=[])
        monkeypatch.setattr(Job, "program", program)
        return Job(name, "digits.yaml", arguments, None)

    return make


def arguments(recipe="", **options):
    defaults = {"recipes": [recipe], "objectives": ["nonl", "scl"]}
    return ReleaseArguments(**defaults | options)


def finish(row):
    row.folder.mkdir()
    (row.folder / "results.json").write_text("{}")


def test_a_training_writes_its_arguments_its_log_and_its_run(job, capsys):
    row = job("import os; print('epoch 1'); os.mkdir('{0}'); open('{0}/results.json', 'w')")
    type(row).program = row.program.format(row.folder)
    assert releasing._train(row, "1/2") is None
    assert capsys.readouterr().out == ("1/2 digits-nonl: training ... finished, 90.00% accuracy\n")
    assert row.log.read_text() == "epoch 1\n"
    assert f"output_dir: {row.folder}\n" in row.config.read_text()


def test_what_is_finished_is_not_trained_again(job, capsys):
    row = job("raise SystemExit('trained again')")
    finish(row)
    assert releasing._train(row, "2/2") is None
    assert capsys.readouterr().out == "2/2 digits-nonl: finished, 90.00% accuracy\n"
    assert not row.config.exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (r"print('some\n5 %\rlast words'); raise SystemExit(3)", "ended with 3: last words"),
        ("import os; print('on', flush=True); os.kill(os.getpid(), 9)", "ended by signal 9: on"),
        ("print('fine')", "ended with 0: fine"),  # but without a result
    ],
    ids=["exit code", "signal", "no result"],
)
def test_a_training_that_fails_is_told_with_its_last_line(job, capsys, program, reason):
    row = job(program)
    told, log, again = releasing._train(row, "1/1").split("\n")
    assert told == reason
    assert log.split() == ["log:", str(row.log)]
    assert again.startswith(f"  to repeat: {sys.executable} -S -c ")
    assert capsys.readouterr().out.endswith("training ... failed\n")


def test_an_interruption_ends_the_training_too(job, monkeypatch):
    processes = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            processes.append(self)
            if len(processes) == 1:
                raise KeyboardInterrupt(signal.SIGTERM)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        releasing._train(job("import time; time.sleep(60)"), "1/1")
    assert processes[-1].returncode == -signal.SIGTERM


def test_it_waits_for_a_training_that_another_release_left(job):
    row = job("raise SystemExit('trained at the same time')")
    with row.log.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(releasing._train(row, "1/1")))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        finish(row)
    thread.join(60)
    assert answers == [None]  # it found the other's result


def test_a_lock_is_held_until_the_last_child_ends(tmp_path):
    path, order = tmp_path / "row.log", []
    with path.open("a") as log, lock_for_children(log):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=log, text=True)

    def wait_for_it():
        with path.open("a") as log, lock_for_children(log):
            order.append("locked")

    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    waiting.join(0.2)
    order.append("the child ends")
    child.communicate("\n")
    waiting.join(10)
    assert order == ["the child ends", "locked"]


def test_without_inherited_locks_one_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    other = FileLock(tmp_path / "row.log.lock", timeout=0)
    with (tmp_path / "row.log").open("a") as log:
        with lock_for_children(log), pytest.raises(Timeout):
            other.acquire()
        with other:
            pass


@pytest.fixture
def hub(monkeypatch):
    """What would be sent; `refused` are names of repositories, or of the collection."""
    sent = SimpleNamespace(repositories=[], collections=[], refused=[])

    def publish(options):
        if options.repo_id in sent.refused:
            raise PublishError(f"{options.repo_id} was not published.")
        sent.repositories.append(options)

    def publish_collection(title, names, **options):
        if title in sent.refused:
            raise PublishError("the collection is not complete.")
        sent.collections.append((title, names))
        return "https://hub/page"

    monkeypatch.setattr(releasing, "publish", publish)
    monkeypatch.setattr(releasing, "publish_collection", publish_collection)
    return sent


def test_siblings_are_published_once_all_are_finished(job, hub, recipe, capsys):
    rows = [job(name=name) for name in ("a", "b", "c")]
    options = arguments(recipe, collection="Page", revision="v1", private=True)
    for row in rows[:2]:
        finish(row)
    assert releasing._publish(options, rows, rows[:1], "lab") == {}
    assert capsys.readouterr().out == "digits.yaml: not published before c finished.\n"
    assert hub.repositories == []
    finish(rows[2])
    assert releasing._publish(options, rows, rows[:2], "lab") == {}
    sent = {each.repo_id: each for each in hub.repositories}
    assert list(sent) == ["lab/a", "lab/b"]
    assert sent["lab/a"].compare_with == [str(row.folder) for row in rows[1:]]
    assert (sent["lab/b"].revision, sent["lab/b"].private) == ("v1", True)
    assert hub.collections == [("Page", ["lab/a", "lab/b"])]


def test_what_the_hub_refuses_leaves_the_others(job, hub, recipe):
    rows = [job(name=name) for name in ("a", "b")]
    for row in rows:
        finish(row)
    hub.refused = ["lab/a", "Page"]
    options = arguments(recipe, collection="Page")
    assert releasing._publish(options, rows, rows, "lab") == {
        "a": "lab/a was not published.",
        "the collection, digits.yaml": "the collection is not complete.",
    }
    hub.refused = ["lab/a", "lab/b"]
    assert releasing._publish(options, rows, rows, "lab").keys() == {"a", "b"}
    assert hub.collections == []  # of nothing


def test_failures_are_told_at_the_end_and_leave_the_others(recipe, tmp_path, monkeypatch, capsys):
    trained = []

    def train(row, place):
        trained.append(place)
        return "ended with 1: no luck" if "nonl" in row.name else None

    monkeypatch.setattr(releasing, "_train", train)
    options = arguments(recipe, publish=False, output_dir=str(tmp_path / "runs"))
    with pytest.raises(ReleaseError) as failed:
        release(options)
    name = "digits-test_resnet-nonl-seed0"
    assert str(failed.value) == f"1 failed, the others are done.\n\n{name}: ended with 1: no luck"
    assert trained == ["1/2", "2/2"]
    lines = capsys.readouterr().out.strip().split("\n")
    assert [line.split() for line in lines[2:]] == [[name, "failed"], ["digits-test_resnet-scl-seed0", "missing"]]


def test_a_dry_run_says_what_is_to_do_and_does_nothing(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(releasing, "account", lambda: "me")
    options = {"dry_run": True, "output_dir": str(tmp_path / "runs")}
    release(arguments(recipe, only="scl", **options))
    name = "digits-test_resnet-scl-seed0"
    # Its card would compare it with the other, which is neither there nor asked for.
    assert capsys.readouterr().out.strip().split("\n")[2].split() == [name, "missing", "train"]
    release(arguments(recipe, **options))
    line = capsys.readouterr().out.strip().split("\n")[3]
    assert line.split(None, 2) == [name, "missing", f"train, publish as me/{name}"]
    assert not (tmp_path / "runs").exists()


def test_a_name_that_no_model_has(recipe):
    with pytest.raises(ArgumentError, match=r"--only cifar: no model has this in its name; .*nonl"):
        release(arguments(recipe, only="cifar", publish=False))
