"""What a run needs to be repeated."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from hf_protosphere.data.dataset import ImageDataset
from hf_protosphere.errors import ArgumentError
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.environment import data_fingerprint, git_state, record_start


def split(labels):
    features = Features({"image": Value("string"), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"image": ["x"] * len(labels), "label": labels}, features=features)


def test_every_start_is_recorded_under_one_identity(tmp_path):
    images = ImageDataset({"train": split([0, 1, 1])}, ["a", "b"])
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    begun, resumed = (
        TrainArguments(dataset_name="x", seed=5, report_to="none", resume=resume) for resume in (False, True)
    )
    first = record_start(tmp_path, begun, images, accelerator)
    assert record_start(tmp_path, resumed, images, accelerator) == first
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["run_id"] == first
    assert len(record["starts"]) == 2
    start = record["starts"][1]
    assert start["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert (start["seed"], start["processes"]) == (5, 2)
    assert start["data"]["train"]["num_images"] == 3

    assert record_start(tmp_path, begun, images, accelerator) != first


def test_labels_tell_whether_images_and_order_agree():
    one, same, other = (data_fingerprint(split(labels)) for labels in ([0, 1], [0, 1], [1, 0]))
    assert one["labels_sha256"] == same["labels_sha256"] != other["labels_sha256"]


def test_the_commit_of_the_working_directory(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_state(tmp_path) is None  # no commit yet
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["changed_files"] == 0
    (tmp_path / "new.txt").write_text("")
    assert git_state(tmp_path)["changed_files"] == 1


def test_no_program_of_a_repository_is_run(tmp_path):
    ran, file = tmp_path / "ran", tmp_path / "repository" / "a.txt"
    file.parent.mkdir()
    git = ["git", "-C", str(file.parent), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    file.write_text("a")
    (file.parent / ".gitattributes").write_text("*.txt filter=evil diff=evil\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    names = ["core.fsmonitor", "filter.evil.clean", "filter.evil.process", "diff.evil.textconv"]
    for name in names:
        subprocess.run([*git, "config", name, f"touch {ran}; cat"], check=True)
    subprocess.run([*git, "config", "filter.evil.required", "true"], check=True)
    file.write_text("b")
    assert git_state(file.parent)["changed_files"] == 1
    assert not ran.exists()


def test_a_damaged_record_is_refused_in_one_line(tmp_path):
    resumed = TrainArguments(dataset_name="x", report_to="none", resume=True)
    for text in ("{", "[]", "{}", '{"run_id": 1, "starts": {}}'):
        (tmp_path / "environment.json").write_text(text)
        with pytest.raises(ArgumentError, match=r"environment.json .*[Rr]emove it"):
            record_start(tmp_path, resumed, ImageDataset({}, []), None)
