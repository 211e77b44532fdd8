"""The curves are drawn from the log alone, also when it is short."""

import json

import pytest
from PIL import Image

from hf_protosphere.metrics import METRICS
from hf_protosphere.plots import CURVES, plot_curves


def record(epoch, *, evaluated=True, measured=True):
    line = {"step": epoch, "epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.5}
    if evaluated:
        line["validation_accuracy"] = 0.9
        if measured:
            line["validation_neural_collapse"] = {"attained": {m.name: 90.0 for m in METRICS}}
    return line


@pytest.mark.parametrize(
    "records",
    [
        [record(1)],
        [record(epoch, measured=epoch % 2 == 0) for epoch in range(1, 9)],
        [record(1, evaluated=False), record(2, measured=False)],
    ],
)
def test_curves(tmp_path, records):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in records))
    plot_curves(log, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        colors = picture.convert("RGB").getcolors(maxcolors=2**24)
    assert len(colors) > 50  # more than an empty frame


def test_every_curve_is_a_metric():
    assert set(CURVES) <= {metric.name for metric in METRICS}
