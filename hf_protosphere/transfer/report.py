"""What transfers come to: trials with their confidence, one table, one picture."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..plots.style import COLORS, STYLES, new_figure, save_figure
from ..plots.table import format_table

Row = dict[str, Any]
CONFIDENCE = 0.95
# Metrics of neural collapse in the table, beside the least attained of all.
SHOWN = {"nc1_cdnv": "CDNV", "nc2_equiangular": "equiangular", "nc3_self_duality": "self-duality"}
MEASURES = {
    "accuracy": "accuracy", "mean_class_accuracy": "mean per class",
    "mean_average_precision": "mean average precision", "held_out_accuracy": "held out",
}  # fmt: skip
AVERAGED = (*MEASURES, "seconds", "trainable_parameters", "collapse", *SHOWN)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % confidence interval by Student's t; None of one value.

    Example:
        >>> mean, half = mean_and_interval([0.1, 0.2, 0.3])
        >>> round(mean, 3), round(half, 3)
        (0.2, 0.248)
    """
    if len(values) < 2:
        return fmean(values), None
    from scipy.stats import t

    quantile = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return fmean(values), float(quantile * stdev(values) / len(values) ** 0.5)


def summarize(rows: Sequence[Row]) -> list[Row]:
    """A row for each mode and number of shots, of those of `Transfer`: means over the trials, and f"{name}_interval",
    half the widths of their intervals, or None; "collapse" is the least attained of its metrics, in per cent."""
    groups: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["shots"]), []).append(row)
    summary = []
    for (mode, shots), trials in groups.items():
        averaged: Row = {"mode": mode, "shots": shots, "trials": len(trials)}
        for name in AVERAGED:
            values = [value for row in trials if (value := _value(row, name)) is not None]
            averaged[name], averaged[f"{name}_interval"] = mean_and_interval(values) if values else (None, None)
        summary.append(averaged)
    return summary


def _value(row: Row, name: str) -> float | None:
    collapse = row.get("neural_collapse", {})
    if name == "collapse":
        return collapse.get("attained", {}).get("overall")  # of images of every class
    return collapse.get(name) if name in SHOWN else row.get(name)


def format_summary(summary: Sequence[Row]) -> str:
    """The summary as a table for people."""
    few_shot = any(row["shots"] is not None for row in summary)
    measured = [name for name in MEASURES if any(row[name] is not None for row in summary)]
    header = ["mode", *(["shots"] if few_shot else []), *(MEASURES[name] for name in measured),
              "time (s)", "trained", *SHOWN.values(), "least attained"]  # fmt: skip
    rows = [
        [
            row["mode"], *([str(row["shots"] or "all")] if few_shot else []),
            *(_percentage(row, name) for name in measured),
            f"{row['seconds']:.1f}", f"{row['trainable_parameters']:,.0f}",
            *("-" if row[name] is None else f"{row[name]:.3g}" for name in SHOWN),
            "-" if row["collapse"] is None else f"{row['collapse']:.1f} %",
        ]
        for row in summary
    ]  # fmt: skip
    trials = max(row["trials"] for row in summary)
    note = f"± half the {CONFIDENCE:.0%} confidence interval over {trials} trials" * (trials > 1)
    return "\n".join(filter(None, [format_table([header, *rows]), note]))


def _percentage(row: Row, name: str) -> str:
    mean, interval = row[name], row[f"{name}_interval"]
    if mean is None:
        return "-"
    return f"{mean:.2%}" if interval is None else f"{100 * mean:.2f} ± {100 * interval:.2f} %"


def plot_shots(summary: Sequence[Row], picture: Path) -> None:
    """Accuracy over the number of training images of each class, a line for each mode."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for i, mode in enumerate(dict.fromkeys(row["mode"] for row in summary)):
        rows = sorted((r for r in summary if r["mode"] == mode), key=lambda row: row["shots"])
        axes.errorbar(
            [row["shots"] for row in rows],
            [100 * row["accuracy"] for row in rows],
            [100 * (row["accuracy_interval"] or 0) for row in rows],
            color=COLORS[i % len(COLORS)], linestyle=STYLES[i % len(STYLES)], marker="o",
            markersize=4, capsize=3, label=mode,
        )  # fmt: skip
    shots = sorted({row["shots"] for row in summary})
    axes.set_xscale("log")
    axes.set_xticks(shots, [str(count) for count in shots])
    axes.minorticks_off()
    axes.set(xlabel="training images of each class", ylabel="accuracy (%)")
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, 0), min(top, 100))  # of few trials, intervals go beyond
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, picture, 150)
