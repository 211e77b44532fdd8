"""What has its final name is whole, and what is half written is never found."""

import json

import pytest
from accelerate import Accelerator

from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs.checkpoints import Progress, newest_checkpoint, save_checkpoint
from hf_protosphere.runs.files import prepare_output_dir
from hf_protosphere.runs.metrics_log import MetricsLog, read_metrics


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


def test_the_log_forgets_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.append({"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "los')  # a kill in the middle of a line
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    MetricsLog(path, last_step=2).append({"step": 3, "again": True})
    assert read_metrics(path)[-1] == {"step": 3, "again": True}
    assert len(path.read_text().splitlines()) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_only_a_runs_own_files_are_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    (tmp_path / "best").mkdir()
    with pytest.raises(ArgumentError, match="is not empty"):
        prepare_output_dir(tmp_path, resume=False, overwrite=False, bytes_needed=1)
    prepare_output_dir(tmp_path, resume=True, overwrite=False, bytes_needed=1)
    assert (tmp_path / "metrics.jsonl").exists()
    prepare_output_dir(tmp_path, resume=False, overwrite=True, bytes_needed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
