"""The study from the data to its tables, on digits that are called as CIFAR-10's classes."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits

from scripts.study import training
from scripts.study.measuring import measure, measure_row, rows_to_measure
from scripts.study.report import END, START, TITLES, write_report
from scripts.study.training import Scale, networks_to_train, prepare_data, train_network

CIFAR10 = (*training.KNOWN, "frog", "horse", "ship", "truck")


@pytest.mark.slow  # trains twelve networks and measures 24 rows: minutes
def test_the_whole_study_and_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "VALIDATION_PER_CLASS", 5)
    monkeypatch.setattr(training, "TEST_PER_CLASS", 20)
    digits = load_digits()
    pixels = np.kron(digits.images, np.ones((4, 4))) * 255 / 16
    images = [PILImage.fromarray(array.astype(np.uint8)).convert("RGB") for array in pixels]
    features = Features({"image": Image(), "label": ClassLabel(names=list(CIFAR10))})
    (tmp_path / "digits").mkdir()
    for split, rows in (("train", range(1200)), ("test", range(1200, 1797))):
        table = {"image": [images[i] for i in rows], "label": digits.target[list(rows)]}
        Dataset.from_dict(table, features=features).to_parquet(
            tmp_path / "digits" / f"{split}-00000-of-00001.parquet"
        )
    out, seeds = tmp_path, (0,)
    scale = Scale(
        train_per_class=60, epochs=1, long_tailed_epochs=3, batch_size=32, transfer_epochs=1
    )
    data = prepare_data(str(tmp_path / "digits"), tmp_path / "data", scale)
    networks = networks_to_train(out, seeds)
    assert len(networks) == 12
    for network in networks:
        train_network(data["known"], out, scale, network)
    assert networks_to_train(out, seeds) == []
    rows = rows_to_measure(out, seeds)
    assert len(rows) == 24
    for row in rows:
        measure_row(data, out, scale, row)
    assert rows_to_measure(out, seeds) == []

    report = tmp_path / "report"
    report.mkdir()
    (report / "RESULTS.md").write_text(f"# Before\n{START}\nold\n{END}\nafter\n")
    write_report(measure(out, seeds), seeds, out, report)
    text = (report / "RESULTS.md").read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for title in TITLES.values():
        assert text.count(f"| {title} |") >= 6
    assert {path.name for path in report.glob("*.png")} == {
        "collapse.png", "transfer.png", "open_world.png"
    }  # fmt: skip
