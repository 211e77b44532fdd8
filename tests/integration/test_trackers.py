"""The real trackers, on this machine alone."""

import time

from trackio.sqlite_storage import SQLiteStorage

from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train


def run(digits_folder, folder, **options):
    defaults = {
        "dataset_name": str(digits_folder), "output_dir": str(folder / "digits-7"), "backbone": "test_resnet",
        "epochs": 2, "batch_size": 32, "num_workers": 0, "nc_every": 0, "project": "collapse", "pictures": False,
    }  # fmt: skip
    return train(TrainArguments(**defaults | options))


def test_trackio(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    run(digits_folder, tmp_path, report_to=["trackio"])
    logs = SQLiteStorage.get_logs("collapse", "digits-7")
    assert [record["step"] for record in logs] == [3, 6]
    assert all("validation_accuracy" in record for record in logs)


def test_wandb(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(digits_folder, tmp_path, report_to=["wandb"])
    (log,) = (tmp_path / "digits-7" / "wandb").rglob("*.wandb")
    deadline = time.monotonic() + 60  # a service of wandb's writes it, at its own pace
    while b"validation_accuracy" not in log.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
