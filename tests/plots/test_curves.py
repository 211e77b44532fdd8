"""The curves are drawn from records alone, also when there are few."""

import pytest
from PIL import Image

from hf_protosphere.metrics.neural_collapse import METRICS
from hf_protosphere.plots.curves import CURVES, _collapse_lines, plot_collapse, plot_curves


def collapse(share):
    figures = {m.name: 0.1 if m.higher_is_better else 1 - share for m in METRICS}
    optima = {m.name: m.optimum(4, 8) for m in METRICS}
    attained = dict.fromkeys([m.name for m in METRICS], 100 * share)
    return figures | {"optima": optima, "attained": attained | {"overall": 100 * share}}


def record(epoch, *, evaluated=True, measured=True):
    line = {"step": epoch, "epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.5}
    if evaluated:
        line["validation_accuracy"] = 0.9
        if measured:
            line["train_neural_collapse"] = collapse(epoch / 10)
            line["validation_neural_collapse"] = collapse(epoch / 11)
    return line


RECORDS = [
    [record(1)],
    [record(epoch, measured=epoch % 2 == 0) for epoch in range(1, 9)],
    [record(1, evaluated=False), record(2, measured=False)],
]


def num_colors(path):
    with Image.open(path) as picture:
        return len(picture.convert("RGB").getcolors(maxcolors=2**24))


@pytest.mark.parametrize("records", RECORDS)
def test_curves(tmp_path, records):
    plot_curves(records, tmp_path / "curves.png")
    assert num_colors(tmp_path / "curves.png") > 50  # more than an empty frame


def test_collapse_of_one_run_shows_every_split_optimum_and_arrival(tmp_path, figures):
    records = [record(epoch) for epoch in range(1, 11)]
    plot_collapse({"run": records}, tmp_path / "collapse.svg", target=50)
    assert (tmp_path / "collapse.svg").stat().st_size > 10_000
    panels = {axes.get_title(): axes for axes in figures[0].axes}
    for info in METRICS:
        axes = panels[info.title]
        lines = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
        assert set(lines) == {"train images", "validation images"}
        assert list(lines["train images"].get_xdata()) == list(range(1, 11))
        stars = sorted(line.get_xdata()[0] for line in axes.lines if line.get_marker() == "*")
        assert stars == [5, 6]  # the first epochs at 50 % of the optimum
        if axes.get_yscale() == "linear":
            heights = [set(line.get_ydata()) for line in axes.lines]
            assert {info.optimum(4, 8)} in heights


def test_the_start_of_a_transfer_is_a_line(tmp_path, figures):
    start = {"step": 0, "epoch": 0, "validation_class_means_accuracy": 0.75}
    plot_curves([start, record(1), record(2)], tmp_path / "curves.png")
    accuracy = figures[0].axes[1]
    (line,) = [line for line in accuracy.lines if line.get_label().startswith("class means")]
    assert set(line.get_ydata()) == {75.0}


def test_collapse_of_several_runs_compares_their_validation_images(tmp_path, figures):
    runs = {"nonl": [record(1), record(2)], "ce": [record(3)]}
    plot_collapse(runs, tmp_path / "collapse.png")
    overall = next(axes for axes in figures[0].axes if axes.get_title().startswith("Least"))
    assert [line.get_label() for line in overall.lines] == ["nonl", "ce"]


def test_what_was_never_measured_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"run was never measured.*--nc_every 1"):
        plot_collapse({"run": RECORDS[2]}, tmp_path / "collapse.png")
    without_prototypes = record(1)
    for key in ("nc4_agreement", "class_alignment"):
        del without_prototypes["validation_neural_collapse"][key]
        del without_prototypes["train_neural_collapse"][key]
    plot_collapse({"run": [without_prototypes]}, tmp_path / "collapse.png")


def test_every_curve_is_a_metric():
    assert set(CURVES) <= {metric.name for metric in METRICS}


def test_names_of_runs_and_splits_are_no_mathematics():
    records = [{"$a$_neural_collapse": {}}]
    both = _collapse_lines({r"$\frac$": records, "_b": records})
    assert [label for label, *_ in both] == [r"\$\frac\$", " _b"]
    assert _collapse_lines({"x": records})[0][0] == r"\$a\$ images"


def test_what_all_names_of_runs_begin_with_is_left_out():
    records = [{"validation_neural_collapse": {}}]
    release = {f"cifar10-airnet-{name}-seed0": records for name in ("ntce", "nonl")}
    assert [label for label, *_ in _collapse_lines(release)] == ["ntce-seed0", "nonl-seed0"]
    assert [label for label, *_ in _collapse_lines({"run1": records, "run2": records})] == ["run1", "run2"]
