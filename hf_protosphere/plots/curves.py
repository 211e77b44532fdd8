"""Curves over a training. matplotlib is imported only when a picture is drawn."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics.monitoring import COLLAPSE
from ..metrics.neural_collapse import METRICS, MetricInfo
from .style import COLORS, STYLES, new_figure, save_figure
from .text import for_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]

CURVES = {
    "inter_class_effective_rank": "class means' effective rank",
    "prototype_effective_rank": "prototypes' effective rank",
    "instance_alignment": "images aligned with their prototype",
    "class_alignment": "class means aligned with prototypes",
    "nc1_cdnv": "classes collapsed (CDNV)",
    "nc2_equiangular": "class means equiangular",
    "nc3_self_duality": "prototypes dual to class means",
}


def plot_curves(records: Records, picture: Path) -> None:
    """Loss, accuracy and the attained share of neural collapse over the epochs, from a run's metrics.jsonl."""
    figure = new_figure(13, 4)
    loss, accuracy, collapse = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    _draw(loss, _points(records, "train_loss"), 0, "training")
    loss.set(title="Loss (training batches)", xlabel="epoch", ylabel="loss")

    for i, name in enumerate(("validation_accuracy", "train_accuracy")):
        label = ("validation images", "training batches, augmented")[i]
        _draw(accuracy, [(epoch, 100 * value) for epoch, value in _points(records, name)], i, label)
    for _, value in _points(records, "validation_class_means_accuracy"):  # of epoch 0
        label = "class means, before training"
        accuracy.axhline(100 * value, color="0.5", linestyle=":", label=label)
    accuracy.set(title="Accuracy by prototypes", xlabel="epoch", ylabel="correct (%)")
    _legend(accuracy, loc="lower right")

    for i, (name, label) in enumerate(CURVES.items()):
        _draw(collapse, _attained(records, "validation", name), i, label)
    collapse.axhline(100, color="0.5", linewidth=0.8)
    collapse.set(
        title="Neural collapse of the validation images", xlabel="epoch",
        ylabel="share of the optimum attained (%)", ylim=(None, 102),
    )  # fmt: skip
    _legend(collapse, loc="lower right", fontsize="small")
    for axes in (loss, accuracy, collapse):
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, picture, 120)


def plot_collapse(runs: Mapping[str, Records], picture: Path, target: float = 95.0) -> None:
    """Every metric of neural collapse over training, against its optimum.

    Of one run a line for each set of images that was measured; of several the last (validation) of each.

    Args:
        runs: records with "epoch" and "..._neural_collapse" (as `NeuralCollapse.compute` returns
            it, and "optima"), by the name of their run.
        target: percentage of an optimum whose first attainment is marked.

    Raises:
        ValueError: no record holds a metric of neural collapse.
    """
    lines = _collapse_lines(runs)
    figure = new_figure(16, 11)
    panels = figure.subplots(4, 4).flatten()
    for axes, info in zip(panels, METRICS):
        measured = (of for _, records, split in lines for _, of in _points(records, split + COLLAPSE))
        optima = {of["optima"][info.name] for of in measured}  # more than one if the runs differ in K or D
        values: list[float] = []
        for i, (label, records, split) in enumerate(lines):
            found = ((epoch, of.get(info.name, math.nan)) for epoch, of in _points(records, split + COLLAPSE))
            points = [(epoch, value) for epoch, value in found if math.isfinite(value)]
            _draw(axes, points, i, label)
            values += [value for _, value in points]
            attained = dict(_attained(records, split, info.name))
            arrivals = [point for point in points if attained[point[0]] >= target]
            if arrivals:
                axes.plot(*arrivals[0], "*", color=COLORS[i % len(COLORS)], markersize=13)
        _draw_optima(axes, info, optima, values)
    overall, *rest = panels[len(METRICS) :]
    for i, (label, records, split) in enumerate(lines):
        _draw(overall, _attained(records, split, "overall"), i, label)
    overall.set(title="Least attained of all", ylabel="% of the optimum", xlabel="epoch")
    handles, labels = overall.get_legend_handles_labels()
    for axes in rest:
        axes.axis("off")
    rest[0].legend(handles, labels, loc="upper left", frameon=False)
    rest[-1].text(
        0, 0.95, f"★ first at {target:g} % of its optimum or more\ngrey line: the optimum",
        va="top", transform=rest[-1].transAxes,
    )  # fmt: skip
    figure.suptitle("Neural collapse over training: every metric and its optimum", fontsize="large")
    save_figure(figure, picture, 110)


def _collapse_lines(runs: Mapping[str, Records]) -> list[tuple[str, Records, str]]:
    """(label, records, split) of every line to draw."""
    lines, shared = [], os.path.commonprefix([*runs]).rfind("-") + 1  # noqa: RUF071  (of a release all begin alike)
    for name, records in runs.items():
        keys = dict.fromkeys(key for record in records for key in record)
        splits = [key.removesuffix(COLLAPSE) for key in keys if key.endswith(COLLAPSE)]
        if not splits:
            raise ValueError(f"{name} was never measured for neural collapse: train with --nc_every 1.")
        # The last is the validation split: the training images are measured first.
        if len(runs) > 1:
            lines.append((for_figure(name[shared:], 40), records, splits[-1]))
        else:
            lines += [(f"{for_figure(split)} images", records, split) for split in splits]
    return lines


def _draw_optima(axes: "Axes", info: MetricInfo, optima: set[float], values: list[float]) -> None:
    axes.set(title=info.title, xlabel="epoch")
    positive = [value for value in values if value > 0]
    if optima == {0.0} and positive and max(positive) > 20 * min(positive):
        axes.set_yscale("log")  # on which 0 lies infinitely far below
        axes.set_ylabel("optimum 0, log scale")
    elif values:
        for optimum in optima:
            axes.axhline(optimum, color="0.5", linewidth=2.5, alpha=0.6, zorder=0)
        axes.set_ylabel(f"optimum {', '.join(f'{optimum:.4g}' for optimum in sorted(optima))}")
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def _points(records: Records, name: str) -> list[tuple[float, Any]]:
    return [(record["epoch"], record[name]) for record in records if name in record]


def _attained(records: Records, split: str, name: str) -> list[tuple[float, float]]:
    points = ((epoch, collapse["attained"]) for epoch, collapse in _points(records, split + COLLAPSE))
    return [(epoch, attained[name]) for epoch, attained in points if name in attained]


def _draw(axes: "Axes", points: list[tuple[float, float]], i: int, label: str) -> None:
    axes.grid(alpha=0.3)
    if points:
        marker = "o" if len(points) == 1 else None  # a line through one point is invisible
        style = {"color": COLORS[i % len(COLORS)], "linestyle": STYLES[i % len(STYLES)]}
        axes.plot(*zip(*points), **style, marker=marker, label=label)


def _legend(axes: "Axes", **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)
