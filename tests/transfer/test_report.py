"""Trials and their confidence, by SciPy and by hand; the table and the picture."""

import numpy as np
import pytest
from scipy import stats

from hf_protosphere.transfer.report import (
    format_summary,
    mean_and_interval,
    plot_shots,
    summarize,
)


def row(mode, shots, trial, accuracy, **more):
    collapse = {"attained": {"overall": 100 * accuracy}, "nc1_cdnv": 0.5, "nc2_equiangular": 0.25}
    return {
        "mode": mode, "shots": shots, "trial": trial, "accuracy": accuracy, "mean_class_accuracy": accuracy / 2,
        "seconds": 1.5, "trainable_parameters": 1234, "neural_collapse": collapse, **more,
    }  # fmt: skip


def few_shot():
    accuracies = {("full", 1): (0.4, 0.5, 0.6), ("full", 5): (0.8,), ("knn", 1): (0.5, 0.5)}
    return summarize([row(*key, trial, a) for key, of_key in accuracies.items() for trial, a in enumerate(of_key)])


def test_what_a_class_without_images_leaves_undefined_is_a_dash():
    rows = [row("full", None, 0, 0.5, neural_collapse={"attained": {"nc1_cdnv": 9.0}})]
    assert format_summary(summarize(rows)).splitlines()[-1].split()[-4:] == ["-"] * 4


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_students(count):
    values = np.random.default_rng(count).normal(0.7, 0.1, count)
    mean, half = mean_and_interval(values.tolist())
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert mean_and_interval([0.25]) == (0.25, None)


def test_trials_are_averaged_for_each_mode_and_number_of_shots():
    summary = few_shot()
    assert [(s["mode"], s["shots"], s["trials"]) for s in summary] == [("full", 1, 3), ("full", 5, 1), ("knn", 1, 2)]
    first, single, same = summary
    assert first["accuracy"] == pytest.approx(0.5)
    assert first["accuracy_interval"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert first["mean_class_accuracy"] == pytest.approx(0.25)
    assert (first["seconds"], first["trainable_parameters"]) == (1.5, 1234)
    assert first["collapse"] == pytest.approx(50)
    assert (first["nc1_cdnv"], first["nc2_equiangular"]) == (0.5, 0.25)
    assert (first["nc3_self_duality"], first["nc3_self_duality_interval"]) == (None, None)
    assert single["accuracy_interval"] is None
    assert same["accuracy_interval"] == 0


def test_the_table_of_few_shots():
    header, _, *lines, note = format_summary(few_shot()).split("\n")
    assert header.split()[:3] == ["mode", "shots", "accuracy"]
    assert "50.00 ± 24.84 %" in lines[0]
    assert lines[1].split()[:4] == ["full", "5", "80.00%", "40.00%"]
    assert lines[1].split()[4:] == ["1.5", "1,234", "0.5", "0.25", "-", "80.0", "%"]
    assert note == "± half the 95% confidence interval over 3 trials"


def test_the_table_with_all_images_has_neither_shots_nor_trials():
    header, _, line = format_summary(summarize([row("head", None, 0, 0.9)])).split("\n")
    assert "shots" not in header
    assert line.split()[:3] == ["head", "90.00%", "45.00%"]


def test_the_picture_has_a_line_for_each_mode(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    lines, draw = {}, Axes.errorbar

    def errorbar(self, x, y, error, **more):
        lines[more["label"]] = (x, y, error)
        return draw(self, x, y, error, **more)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    plot_shots(few_shot()[::-1], tmp_path / "shots.png")
    assert (tmp_path / "shots.png").read_bytes().startswith(b"\x89PNG")
    assert lines["full"][0] == [1, 5]  # in order, whatever that of the rows
    assert lines["full"][1] == pytest.approx([50, 80])
    assert lines["full"][2] == pytest.approx([24.84, 0], abs=0.01)
    assert lines["knn"] == ([1], [50.0], [0.0])
