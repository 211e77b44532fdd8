"""A whole release against a Hub on this machine: trained, published, stopped, gone on with."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForImageClassification

from hf_protosphere.cli import main
from hf_protosphere.hub import publish as publishing
from hf_protosphere.runs.checkpoints import newest_checkpoint
from hf_protosphere.training.train import train
from scripts.releases import release
from scripts.releases.arguments import ReleaseArguments
from scripts.releases.rows import matrix
from tests import ROOT

NAMES = [
    f"{recipe}-test_resnet-{objective}-seed0"
    for recipe in ("digits", "again")
    for objective in ("nonl", "cross_entropy")
]
NONL = NAMES[0]


@pytest.fixture(scope="module")
def release_of(digits_folder, tmp_path_factory):
    """Options of a release of two recipes and two objectives, and its runs, all finished."""
    folder = tmp_path_factory.mktemp("release")
    recipe = {
        "dataset_name": str(digits_folder), "backbone": "test_resnet", "epochs": 1,
        "batch_size": 16, "optimizer": "adamw", "augmentation": "crop", "num_workers": 0,
        "horizontal_flip": False, "report_to": "none", "pictures": False,
    }  # fmt: skip
    (folder / "digits.yaml").write_text(yaml.safe_dump(recipe))
    # Another target for its plots: runs that only differ in such things are taken as they are.
    (folder / "again.yaml").write_text("base: digits.yaml\nnc_target: 90\n")
    options = {
        "recipes": [str(folder / "digits.yaml"), str(folder / "again.yaml")],
        "objectives": ["nonl", "cross_entropy"],
        "output_dir": str(folder / "runs"),
        "collection": "Digits",
        "revision": "v1",
        "license": "mit",
    }
    rows = matrix(ReleaseArguments(**options))
    for row, other in zip(rows[:2], rows[2:]):
        train(row.arguments)
        shutil.copytree(row.folder, other.folder)
    return options


@pytest.fixture
def prepared(release_of, tmp_path, monkeypatch):
    """Write the file of the release, over a copy of the finished runs without some of them."""
    monkeypatch.setattr(publishing, "RETRY_AFTER", (0, 0))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def prepare(*missing, **changes):
        runs = tmp_path / "runs"
        shutil.copytree(release_of["output_dir"], runs)
        for name in missing:
            shutil.rmtree(runs / name)
        file = tmp_path / "release.yaml"
        file.write_text(yaml.safe_dump({**release_of, "output_dir": str(runs), **changes}))
        return file, runs

    return prepare


@pytest.fixture
def _forked(python, monkeypatch):
    """The processes of a release need not import torch again, as those of the slow tests do."""

    class Forked:
        def __init__(self, command, stdout, **_):
            ended = python(*command[1:])
            stdout.write(ended.stdout + ended.stderr)
            self.returncode = ended.returncode

        def wait(self):
            return self.returncode

    monkeypatch.setattr(release.subprocess, "Popen", Forked)


def commits(name):
    return [commit.title for commit in HfApi().list_repo_commits(f"user/{name}")]


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def collection_of(hub):
    address = HfApi().create_collection("Digits", exists_ok=True).slug
    return [item.item_id for item in HfApi().get_collection(address).items]


@pytest.mark.usefixtures("_forked")
def test_what_is_missing_is_trained_then_all_is_published_once(hub, prepared, capsys):
    file, runs = prepared(NONL)
    main(["release", str(file)])
    printed = capsys.readouterr().out
    assert f"1/4 {NONL}: training ... finished, " in printed
    assert f"2/4 {NAMES[1]}: finished, " in printed
    assert "epoch     1" in (runs / f"{NONL}.log").read_text()
    assert not (runs / f"{NAMES[1]}.yaml").exists()  # nothing was run
    for name in NAMES:
        assert commits(name) == ["Publish by hf_protosphere", "initial commit"]
        assert [tag.name for tag in HfApi().list_repo_refs(f"user/{name}").tags] == ["v1"]
        assert HfApi().model_info(f"user/{name}").card_data.license == "mit"
    assert collection_of(hub) == [f"user/{name}" for name in NAMES]
    model = AutoModelForImageClassification.from_pretrained(f"user/{NONL}", revision="v1")
    assert model.config.objective == "nonl"

    card = ModelCard.load(f"user/{NONL}").content
    section = card.split("### Beside other objectives")[1].split("\n##")[0]
    rows = [line for line in section.split("\n") if line.startswith("|")][2:]
    assert len(rows) == 2  # of its own recipe only
    assert rows[0].startswith("| **NONL** | **")
    assert rows[0].endswith("| **seed 0, this one** |")
    assert rows[1].startswith("| Softmax cross-entropy | ")
    assert rows[1].endswith(f"[seed 0](https://huggingface.co/user/{NAMES[1]}) |")

    before = everything(runs / NONL / "checkpoints")
    requests = len(hub.requests)
    main(["release", str(file)])
    assert all(len(commits(name)) == 2 for name in NAMES)
    changes = [r for r in hub.requests[requests:] if r.method != "GET"]
    paths = {r.path.split("?")[0] for r in changes if r.method != "HEAD"}
    assert paths <= {"/api/repos/create", "/api/collections"}  # which exist already
    assert everything(runs / NONL / "checkpoints") == before
    main(["release", str(file), "--dry_run"])
    assert capsys.readouterr().out.count("published  nothing") == 4


def test_dry_run_changes_nothing(hub, prepared, capsys):
    file, runs = prepared(NAMES[2])
    (runs / NAMES[1] / "results.json").unlink()  # the checkpoint of the last epoch is there
    before = everything(runs)
    main(["release", str(file), "--dry_run"])
    lines = capsys.readouterr().out.split("\n")[2:]
    for name, state, to_do in zip(
        NAMES,
        ["finished", "to resume", "missing", "finished"],
        ["publish", "resume training, publish", "train, publish", "publish"],
    ):
        line = next(line for line in lines if line.startswith(f"{name} "))
        assert line.split(None, 1)[1] == f"{state.ljust(9)}  {to_do} as user/{name}"
    main(["release", str(file), "--dry_run", "--no_publish", "--only", "again"])
    lines = capsys.readouterr().out.strip().split("\n")[2:]
    assert [line.split()[0] for line in lines] == NAMES[2:]
    assert [line.split()[2] for line in lines] == ["train", "nothing"]
    assert everything(runs) == before
    assert not [r for r in hub.requests if r.method not in ("GET", "HEAD")]


@pytest.mark.usefixtures("_forked")
def test_a_row_that_fails_leaves_the_others(hub, prepared, capsys):
    # More images a batch than there are: only training itself can tell.
    file, runs = prepared(NONL, overrides={NONL: {"batch_size": 4096}})
    with pytest.raises(SystemExit, match="2"):
        main(["release", str(file)])
    captured = capsys.readouterr()
    assert f"1/4 {NONL}: training ... failed" in captured.out
    assert f"not published before {NONL} finished" in captured.out
    assert f"1 failed, the others are done.\n\n{NONL}: ended with 2: " in captured.err
    assert "--batch_size 4096 is larger than the training set" in captured.err
    assert f"log:       {runs / NONL}.log" in captured.err
    again = f"-m hf_protosphere.cli train --config {runs / NONL}.yaml"
    assert f"to repeat: {sys.executable} {again}" in captured.err
    assert collection_of(hub) == [f"user/{name}" for name in NAMES[2:]]


@pytest.mark.slow  # two processes with imports of their own
def test_stopped_by_a_signal_it_goes_on_from_the_checkpoint(prepared, capsys):
    file, runs = prepared(NONL, overrides={NONL: {"epochs": 8}})

    def stop():
        wait_for_a_checkpoint(runs / NONL)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        main(["release", str(file), "--no_publish", "--only", NONL])
    thread.join()
    assert "the same command goes on from here" in capsys.readouterr().err
    log = runs / f"{NONL}.log"
    assert "is complete: run the same command with --resume" in log.read_text()
    assert not (runs / NONL / "results.json").exists()
    main(["release", str(file), "--no_publish", "--only", NONL])
    assert f"1/1 {NONL}: training ... finished" in capsys.readouterr().out
    assert "Resuming at step" in log.read_text()
    assert (runs / NONL / "results.json").exists()


@pytest.mark.slow  # 40 epochs
def test_killed_it_waits_for_the_process_that_goes_on(prepared, capsys):
    file, runs = prepared(NONL, overrides={NONL: {"epochs": 40}})
    command = ["-m", "hf_protosphere.cli", "release", file, "--no_publish", "--only", NONL]
    killed = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    wait_for_a_checkpoint(runs / NONL)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not (runs / NONL / "results.json").exists()
    main(["release", str(file), "--no_publish", "--only", NONL])
    assert f"1/1 {NONL}: finished" in capsys.readouterr().out
    assert (runs / f"{NONL}.log").read_text().count("40 epochs of") == 1


def test_what_cannot_be_sent_is_tried_by_the_same_command(hub, prepared, capsys):
    file, _ = prepared()
    hub.fail("POST", rf"/{NONL}/commit/", times=3, status=503)
    with pytest.raises(SystemExit, match="2"):
        main(["release", str(file)])
    error = capsys.readouterr().err
    assert f"user/{NONL} was not published" in error
    assert f"--compare_with {file.parent / 'runs' / NAMES[1]}" in error  # the command to repeat
    assert collection_of(hub) == [f"user/{name}" for name in NAMES[1:]]
    main(["release", str(file)])
    assert {*collection_of(hub)} == {f"user/{name}" for name in NAMES}
    assert all(len(commits(name)) == 2 for name in NAMES)


def test_what_cannot_work_is_said_before_any_work(hub, prepared, monkeypatch, capsys):
    file, runs = prepared(NAMES[3], overrides={NONL: {"epochs": 2}})
    with pytest.raises(SystemExit, match="2"):
        main(["release", str(file)])
    error = capsys.readouterr().err
    assert f"{NONL} holds a run of other arguments: --epochs was 1, is 2" in error
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"overrides": {}}))
    with pytest.raises(SystemExit, match="2"):
        main(["release", str(file)])
    assert "Log in by `hf auth login`" in capsys.readouterr().err
    assert not (runs / NAMES[3]).exists()


def wait_for_a_checkpoint(run):
    deadline = time.monotonic() + 300
    while newest_checkpoint(run / "checkpoints") is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
