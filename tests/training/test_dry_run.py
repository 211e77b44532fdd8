"""A dry run makes every check, takes two steps and leaves nothing behind."""

import pytest

from hf_protosphere.cli import main
from hf_protosphere.training.dry_run import dry_run


def test_the_flag_leaves_the_output_folder_alone(digits_folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    main(
        f"train --dataset_name {digits_folder} --backbone test_resnet --batch_size 8 --dry_run "
        f"--num_workers 0 --overwrite --output_dir {tmp_path / 'run'}".split()
    )
    assert "two steps taken" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_the_plan_is_that_of_the_whole_run(arguments, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "hf_protosphere.data.dataset.without_bad_images", lambda *_: decoded.append(_)
    )
    plan = dry_run(arguments(epochs=5, batch_size=16, gradient_accumulation_steps=2))
    assert (plan["images_per_step"], plan["steps"], plan["images"]) == (32, 15, 480)
    assert plan["hours"] == pytest.approx(5 * plan["seconds_per_epoch"] / 3600)
    assert decoded == []  # of 108 images two steps take 64
    assert not (tmp_path / "run").exists()
