"""The study's tables and pictures, from its rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hf_protosphere.plots.style import COLORS, STYLES, new_figure
from hf_protosphere.plots.table import markdown_table
from hf_protosphere.runs.metrics_log import read_metrics

from .measuring import NEW_CLASS_IMAGES, RACE, SHOTS, TRANSFER_MODES
from .training import OBJECTIVES, Network

Row = dict[str, Any]
Rows = dict[str, dict[tuple[str, int], Row]]
TITLES = {
    "cross_entropy": "CE", "normface": "NormFace", "ntce": "NTCE", "nonl": "NONL",
    "simplex_etf": "simplex ETF", "scl": "SCL + FP",
}  # fmt: skip
METRIC_TITLES = {
    "nc1_cdnv": "CDNV", "nc2_equiangular": "equiangular", "nc3_self_duality": "self-duality",
    "nc4_agreement": "agreement", "overall": "least attained",
}  # fmt: skip
SCORES = ("cosine", "max_softmax", "energy", "mahalanobis")
START, END = "<!-- tables -->", "<!-- end of tables -->"


def write_report(rows: Rows, seeds: Sequence[int], output_dir: Path, folder: Path) -> None:
    """Pictures into the folder, and the tables into its RESULTS.md between two marks; what is
    written around them stays."""
    text = "\n\n".join(
        f"### {title}\n\n{table(rows, seeds)}"
        for title, table in (
            ("Accuracy and neural collapse on the six known classes", _known),
            ("Steps to the neural collapse that cross-entropy ends with", _race),
            ("Transfer to the four other classes", _transfer),
            ("The four other classes added without training", _new_classes),
            ("Telling the four other classes from the six", _unknown),
            ("Long-tailed training", _long_tailed),
            ("Corruptions", _corruptions),
            ("Time", _time),
        )
    )
    path = folder / "RESULTS.md"
    before, rest = path.read_text().split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")
    _plot_collapse(output_dir, seeds, folder / "collapse.png")
    _plot_transfer(rows["transfer"], seeds, folder / "transfer.png")
    _plot_open_world(rows, seeds, folder / "open_world.png")


def _values(
    rows: dict[tuple[str, int], Row], objective: str, seeds: Sequence[int], of: Callable[[Row], Any]
) -> list[float]:
    return [value for seed in seeds if (value := of(rows[objective, seed])) is not None]


def _cell(values: list[float], form: str = ".1f", scale: float = 1.0) -> str:
    """Mean ± standard deviation over the seeds."""
    if not values:
        return "-"
    scaled = [scale * value for value in values]
    spread = f" ± {stdev(scaled):{form}}" if len(scaled) > 1 else ""
    return f"{fmean(scaled):{form}}{spread}"


def _attained(report: Row) -> dict[str, float]:
    return report["neural_collapse"]["attained"]


def _known(rows: Rows, seeds: Sequence[int]) -> str:
    known = rows["known"]
    lines = []
    for objective, title in TITLES.items():
        collapse = [
            _values(known, objective, seeds, lambda r, n=n: _attained(r["test"])[n])
            for n in METRIC_TITLES
        ]
        accuracy = _values(known, objective, seeds, lambda row: row["test"]["accuracy"])
        lines.append([title, _cell(accuracy, scale=100), *map(_cell, collapse)])
    for name, title in (("linear", "SCL + LP"), ("normalized_linear", "SCL + NLP")):
        accuracy = _values(known, "scl", seeds, lambda r, n=name: r["classifiers"][n]["accuracy"])
        lines.append([title, _cell(accuracy, scale=100), *["-"] * len(METRIC_TITLES)])
    header = ["", "accuracy (%)", *(f"{title} (%)" for title in METRIC_TITLES.values())]
    table = markdown_table([header, *lines])
    return f"{table}\n\nOn test images. Neural collapse is what is attained of the optimum."


def _race(rows: Rows, seeds: Sequence[int]) -> str:
    lines = []
    for objective, title in TITLES.items():
        cells = []
        for name in RACE:
            steps = _values(rows["race"], objective, seeds, lambda row, n=name: row[n])
            reached = f" ({len(steps)} of {len(seeds)})" if len(steps) < len(seeds) else ""
            cells.append(_cell(steps, ".0f") + reached if steps else "never")
        lines.append([title, *cells])
    goals = ", ".join(
        f"{METRIC_TITLES[name]} "
        + _cell(_values(rows["race"], "cross_entropy", seeds, lambda r, n=name: r["goal"][n]))
        for name in RACE
    )
    table = markdown_table([["", *(METRIC_TITLES[name] for name in RACE)], *lines])
    return (
        f"{table}\n\nOptimiser steps until a metric is as near to its optimum as cross-entropy's "
        f"is at the end of its training ({goals} % attained), on validation images, measured twice "
        "an epoch. Where not every seed got there, how many did: the mean is theirs alone."
    )


def _transfer_accuracy(row: Row, mode: str, shots: int | None) -> float:
    found = [r for r in row["rows"] if (r["mode"], r["shots"]) == (mode, shots)]
    return found[0]["accuracy"]


def _transfer(rows: Rows, seeds: Sequence[int]) -> str:
    shots: list[int | None] = [*map(int, SHOTS.split(",")), None]
    columns = [(mode, count) for mode in TRANSFER_MODES.split(",") for count in shots]
    header = ["", *(f"{mode}, {count or 'all'}" for mode, count in columns)]
    lines = [
        [
            title,
            *(
                _cell(
                    _values(
                        rows["transfer"], objective, seeds,
                        lambda row, m=mode, n=count: _transfer_accuracy(row, m, n),
                    ),
                    scale=100,
                )
                for mode, count in columns
            ),
        ]
        for objective, title in TITLES.items()
    ]  # fmt: skip
    table = markdown_table([header, *lines])
    return (
        f"{table}\n\nTest accuracy (%) with so many training images of each class. "
        "Prototypes are class means of the embeddings, the linear probe takes the backbone's "
        "features, full fine-tuning keeps the objective."
    )


def _new_classes(rows: Rows, seeds: Sequence[int]) -> str:
    added = rows["new_classes"]
    columns: dict[str, Callable[[Row], float]] = {
        "six classes, before": lambda row: row["before"],
        "the six of ten": lambda row: row["plain"]["known"],
        "the four of ten": lambda row: row["plain"]["unknown"],
        "the six, centred": lambda row: row["centred"]["known"],
        "the four, centred": lambda row: row["centred"]["unknown"],
    }
    lines = [
        [title, *(_cell(_values(added, name, seeds, of), scale=100) for of in columns.values())]
        for name, title in TITLES.items()
        if name != "cross_entropy"
    ]
    table = markdown_table([["", *columns], *lines])
    return (
        f"{table}\n\nTest accuracy (%) of the six known classes and of the "
        f"four new ones, of {NEW_CLASS_IMAGES} images each, when all ten can be answered. Centred: "
        "the mean embedding of the known classes is subtracted from the new means."
    )


def _unknown(rows: Rows, seeds: Sequence[int]) -> str:
    header = ["", *(f"{s}, {m}" for s in SCORES for m in ("AUROC", "FPR95"))]
    lines = [
        [
            title,
            *(
                _cell(
                    _values(
                        rows["unknown"], objective, seeds,
                        lambda row, s=score, m=metric: row["scores"][s][m],
                    ),
                    scale=100,
                )
                for score in SCORES
                for metric in ("auroc", "fpr95")
            ),
        ]
        for objective, title in TITLES.items()
    ]  # fmt: skip
    table = markdown_table([header, *lines])
    return f"{table}\n\nIn per cent. 50 is chance for AUROC, 95 for FPR95."


def _long_tailed(rows: Rows, seeds: Sequence[int]) -> str:
    tailed = rows["long_tailed"]
    groups = ("many", "medium", "few")
    lines = []
    for objective, title in TITLES.items():
        test = [
            lambda row: row["test"]["accuracy"],
            lambda row: row["test"]["class_means_accuracy"],
            *(lambda row, g=g: row["test"]["accuracy_by_frequency"].get(g) for g in groups),
        ]
        cells = [_cell(_values(tailed, objective, seeds, of), scale=100) for of in test]
        lines.append([title, *cells])
    for name, title in (("linear", "SCL + LP"), ("normalized_linear", "SCL + NLP")):
        accuracy = _values(tailed, "scl", seeds, lambda r, n=name: r["classifiers"][n]["accuracy"])
        lines.append([title, _cell(accuracy, scale=100), *["-"] * 4])
    counts = next(iter(tailed.values()))["train_counts"]
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    header = ["", "accuracy (%)", "by class means (%)", *(f"{group} (%)" for group in groups)]
    table = markdown_table([header, *lines])
    return (
        f"{table}\n\nTraining images: {shown}. Many: over 100, few: under 20. Test "
        "images are balanced."
    )


def _corruptions(rows: Rows, seeds: Sequence[int]) -> str:
    errors = rows["corruptions"]
    lines = []
    for objective, title in TITLES.items():
        clean = _values(errors, objective, seeds, lambda row: row["clean_error"])
        mean = _values(errors, objective, seeds, lambda row: row["mean_corruption_error"])
        worse = [after - before for before, after in zip(clean, mean)]
        over = [
            fmean(
                row["errors"][c][0] / errors["cross_entropy", seed]["errors"][c][0]
                for c in row["errors"]
            )
            for seed in seeds
            for row in [errors[objective, seed]]
        ]
        lines.append([title, *(_cell(values, scale=100) for values in (clean, mean, worse, over))])
    header = ["", "clean error (%)", "mean corruption error (%)", "increase", "over CE's (%)"]
    row = next(iter(errors.values()))
    table = markdown_table([header, *lines])
    return (
        f"{table}\n\n{len(row['errors'])} corruptions at severity "
        f"{row['severities'][0]}, {row['num_images']} test images. Over CE's: error of each "
        "corruption over that of the cross-entropy network of the same seed, averaged."
    )


def _time(rows: Rows, seeds: Sequence[int]) -> str:
    lines = []
    for objective, title in TITLES.items():
        cells = [
            _cell(_values(rows[stage], objective, seeds, lambda r: r["training_seconds"]), ".0f")
            for stage in ("known", "long_tailed")
        ]
        lines.append([title, *cells])
    table = markdown_table([["", "training (s)", "long-tailed (s)"], *lines])
    return f"{table}\n\nOf one network."


def _plot_collapse(output_dir: Path, seeds: Sequence[int], picture: Path) -> None:
    """Metrics over training, means over the seeds."""
    figure = new_figure(12, 3.8)
    for axes, name in zip(figure.subplots(1, 3), RACE):
        for i, (objective, title) in enumerate(TITLES.items()):
            curves: dict[int, list[float]] = {}
            for seed in seeds:
                log = Network(objective, seed).folder(output_dir) / "metrics.jsonl"
                for record in read_metrics(log):
                    if "validation_neural_collapse" in record:
                        attained = record["validation_neural_collapse"]["attained"][name]
                        curves.setdefault(record["step"], []).append(attained)
            points = [(step, fmean(values)) for step, values in sorted(curves.items())]
            axes.plot(*zip(*points), color=COLORS[i], linestyle=STYLES[i], label=title)
        axes.set(title=METRIC_TITLES[name], xlabel="optimiser step", ylabel="attained (%)")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(picture, dpi=110)


def _plot_transfer(rows: dict[tuple[str, int], Row], seeds: Sequence[int], picture: Path) -> None:
    """Accuracy of each way of transfer over the number of images."""
    shots: list[int | None] = [*map(int, SHOTS.split(",")), None]
    figure = new_figure(12, 3.8)
    modes = TRANSFER_MODES.split(",")
    for axes, mode in zip(figure.subplots(1, len(modes), sharey=True), modes):
        for i, (objective, title) in enumerate(TITLES.items()):
            cells = [
                [100 * _transfer_accuracy(rows[objective, seed], mode, n) for seed in seeds]
                for n in shots
            ]
            spread = [stdev(values) if len(values) > 1 else 0 for values in cells]
            axes.errorbar(
                range(len(shots)), [fmean(values) for values in cells], spread, color=COLORS[i],
                linestyle=STYLES[i], marker="o", markersize=4, capsize=3, label=title,
            )  # fmt: skip
        axes.set_xticks(range(len(shots)), [str(n or "all") for n in shots])
        axes.set(title=mode, xlabel="training images of each class")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy (%)")
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(picture, dpi=110)


def _plot_open_world(rows: Rows, seeds: Sequence[int], picture: Path) -> None:
    """Unknown images, corruptions and the long tail, a bar for each loss."""
    panels: list[tuple[str, str, Callable[[Row], float]]] = [
        ("unknown", "AUROC of the cosine (%)", lambda row: row["scores"]["cosine"]["auroc"]),
        ("unknown", "AUROC of Mahalanobis (%)", lambda r: r["scores"]["mahalanobis"]["auroc"]),
        ("corruptions", "mean corruption error (%)", lambda row: row["mean_corruption_error"]),
        ("long_tailed", "long-tailed accuracy (%)", lambda row: row["test"]["accuracy"]),
    ]
    figure = new_figure(13, 3.4)
    for axes, (stage, title, of) in zip(figure.subplots(1, len(panels)), panels):
        for i, objective in enumerate(OBJECTIVES):
            values = [100 * value for value in _values(rows[stage], objective, seeds, of)]
            spread = stdev(values) if len(values) > 1 else 0
            axes.bar(i, fmean(values), yerr=spread, color=COLORS[i], capsize=3)
        axes.set_xticks(range(len(TITLES)), TITLES.values(), rotation=40, ha="right", fontsize=8)
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3, axis="y")
    figure.savefig(picture, dpi=110)
