"""What has its final name is whole, and what is half written is never found."""

import json
import shutil

import pytest
from accelerate import Accelerator

from hf_protosphere.errors import WriteError
from hf_protosphere.runs import checkpoints
from hf_protosphere.runs.checkpoints import Progress, newest_checkpoint, save_checkpoint


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("found", "newest"),
    [
        ({}, None),
        ({"step-00000009": "{}", "step-00000100": "{}", "step-00000200": None}, "step-00000100"),
        ({"step-00000009": "{}", "step-00000300.unfinished": "{}"}, "step-00000009"),
        ({"step-00000009": "{}", "step-00000010": ""}, "step-00000009"),  # the machine went down
        ({"step-00000009": ""}, None),
        ({"step-00000009": "{}", "step-00000009 copy": "{}", "step-z": "{}"}, "step-00000009"),
        # Killed while one took the place of another of the same step.
        ({"step-00000001": "{}", "step-00000009.replaced": "{}"}, "step-00000009.replaced"),
        ({"step-00000009": "{}", "step-00000009.replaced": "{}"}, "step-00000009"),
    ],
)
def test_the_newest_complete_checkpoint_is_found(tmp_path, found, newest):
    for name, progress in found.items():
        (tmp_path / name).mkdir()
        if progress is not None:
            (tmp_path / name / "progress.json").write_text(progress)
    assert getattr(newest_checkpoint(tmp_path), "name", None) == newest


def test_the_newest_checkpoints_are_kept(tmp_path):
    accelerator = Accelerator(cpu=True)
    (tmp_path / "step-00000001.unfinished").mkdir()  # of a run that was killed
    for step in (2, 4, 6, 8):
        save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=step), keep=3)
    assert names(tmp_path) == ["step-00000004", "step-00000006", "step-00000008"]
    save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=8))  # again, and only it
    assert names(tmp_path) == ["step-00000008"]


def test_what_else_lies_there_stays_and_is_no_checkpoint(tmp_path):
    foreign = ["step-00000001", "step-00000002 copy", "step-00000009.unfinished.old", "zebra"]
    for name in foreign:
        (tmp_path / name).mkdir()
    (tmp_path / ".DS_Store").write_text("")
    for step in (2, 4):
        save_checkpoint(Accelerator(cpu=True), tmp_path, Progress(16, "none", step=step))
    assert names(tmp_path) == sorted([*foreign, ".DS_Store", "step-00000004"])
    assert json.loads((newest_checkpoint(tmp_path) / "progress.json").read_text())["step"] == 4


def test_a_checkpoint_goes_only_when_another_of_its_step_stands(tmp_path, monkeypatch):
    accelerator, progress = Accelerator(cpu=True), Progress(16, "none", step=8)
    save_checkpoint(accelerator, tmp_path, progress)

    def killed(path, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_protosphere.runs.files._sync", killed)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(accelerator, tmp_path, progress)
    assert newest_checkpoint(tmp_path) is not None


def test_a_full_disk_keeps_the_one_before(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "put_in_place", full)
    with pytest.raises(WriteError, match="step-00000002 cannot be written: No space left"):
        save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=2))
    assert names(tmp_path) == ["step-00000001"]
