"""What has its final name is whole, and what is half written is never found."""

from accelerate import Accelerator

from hf_protosphere.runs.checkpoints import Progress, newest_checkpoint, save_checkpoint


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for name, complete in (
        ("step-00000009", True),
        ("step-00000100", True),
        ("step-00000200", False),
        ("step-00000300.unfinished", True),
    ):
        (tmp_path / name).mkdir()
        if complete:
            (tmp_path / name / "progress.json").write_text("{}")
    assert newest_checkpoint(tmp_path).name == "step-00000100"


def test_the_newest_checkpoints_are_kept(tmp_path):
    accelerator = Accelerator(cpu=True)
    (tmp_path / "step-00000001.unfinished").mkdir()  # of a run that was killed
    for step in (2, 4, 6, 8):
        save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=step), keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000004", "step-00000006", "step-00000008"]
    save_checkpoint(accelerator, tmp_path, Progress(16, "none", step=8))  # again, and only it
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]
