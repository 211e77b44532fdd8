"""What a transfer suite comes to, for people: one table, in text and Markdown, and one picture."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_protosphere.plots.style import COLORS, new_figure, save_figure
from hf_protosphere.plots.table import format_table
from hf_protosphere.plots.text import for_figure

from ..markdown import markdown_table
from .arguments import METRIC_TITLES

Results = dict[str, Any]  # of `transfer_suite.compare`


def format_suite(results: Results) -> str:
    """The results as a table for people."""
    return "\n".join([format_table(_table(results), 3, remarks=True), *_notes(results)])


def markdown(results: Results) -> str:
    """The same as Markdown."""
    table = markdown_table(_table(results), text_columns=3, remarks=True)
    notes = "\n\n".join(_notes(results))
    return f"# Transfer\n\n{table}\n\n{notes}\n"


def _table(results: Results) -> list[list[str]]:
    models, datasets, baseline = results["models"], results["datasets"], results["baseline"]
    rows = {(row["mode"], row["dataset"], row["model"]): row for row in results["rows"]}
    means = {(row["mode"], row["model"]): row for row in results["means"]}
    names = dict(zip(models, short_names(models)))
    titles = [f"{names[m]} (baseline)" if m == baseline else names[m] for m in models]
    table = [["mode", "data set", "metric", *titles, ""]]
    for mode in results["modes"]:
        for dataset, metric in datasets.items():
            cells = [_cell(rows.get((mode, dataset, model))) for model in models]
            note = "" if "-" not in cells else _why(results, dataset, names)
            table.append([mode, dataset, METRIC_TITLES[metric], *cells, note])
        if (mode, models[0]) in means:
            title = f"mean of {len(means[mode, models[0]]['datasets'])}"
            table.append([mode, title, "", *(_cell(means[mode, model]) for model in models), ""])
    return table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    improvement = row["improvement"]
    return f"{row['value']:.2%}" + ("" if improvement is None else f" ({improvement:+.2%})")


def _why(results: Results, dataset: str, names: dict[str, str]) -> str:
    """Why a data set is not done, in one line."""
    reasons: dict[str, list[str]] = {}
    for failure in results["failures"]:
        if failure["dataset"] == dataset:
            reason = failure["reason"].split("\n")[0]
            reasons.setdefault(reason, []).append(names[failure["model"]])
    if len(reasons) == 1:
        return next(iter(reasons))
    return "; ".join(f"{', '.join(of)}: {reason}" for reason, of in reasons.items()) or "to do"


def _notes(results: Results) -> list[str]:
    notes = []
    if METRIC_TITLES["mean_class_accuracy"] in map(METRIC_TITLES.get, results["datasets"].values()):
        notes.append("mean per class: the mean of the accuracies of the classes.")
    if results["means"] and len(results["datasets"]) > 1:
        notes.append("Means are over the data sets that every model has.")
    if results["baseline"] is not None:
        notes.append(
            f"In brackets: improvement over the baseline, {results['baseline']}, relative to it, "
            "(metric - baseline) / baseline; in a row of means the mean of those above."
        )
    return notes


def short_names(models: Sequence[str]) -> list[str]:
    """What tells the models apart: their names without the parts, up to / or -, that all share.

    Example:
        >>> short_names(["outputs/imagenet-nonl-seed0", "outputs/imagenet-ntce-seed0"])
        ['nonl', 'ntce']
        >>> short_names(["outputs/digits-nonl"])
        ['digits-nonl']
    """
    names = [model.rstrip("/") for model in models]
    if len(names) == 1:
        return [names[0].split("/")[-1]]
    for _ in range(2):  # at the beginning, and of the names in reverse
        shared = re.match(r".*[/-]|", os.path.commonprefix(names))[0]  # noqa: RUF071  (of letters)
        names = [name.removeprefix(shared)[::-1] for name in names]
    return names


def plot_improvements(results: Results, picture: Path) -> None:
    """Relative improvements over the baseline: a bar for each data set and model, and their mean."""
    models, modes = results["models"][1:], results["modes"]
    short = (for_figure(name, 40) for name in short_names(results["models"]))
    names = dict(zip(results["models"], short))
    groups = [*results["datasets"], "mean"]
    means = [row | {"dataset": "mean"} for row in results["means"]]
    bars = {(r["mode"], r["dataset"], r["model"]): r for r in (*results["rows"], *means)}
    figure = new_figure(max(6, 1 + 0.9 * len(groups)), 0.4 + 2.9 * len(modes))
    panels = figure.subplots(len(modes), 1, squeeze=False)[:, 0]
    for axes, mode in zip(panels, modes):
        for i, model in enumerate(models):
            found = [
                (place + (i - (len(models) - 1) / 2) * 0.8 / len(models), row["improvement"])
                for place, group in enumerate(groups)
                if (row := bars.get((mode, group, model))) and row["improvement"] is not None
            ]
            axes.bar(
                [place for place, _ in found], [100 * value for _, value in found],
                width=0.8 / len(models), color=COLORS[i % len(COLORS)], label=names[model],
            )  # fmt: skip
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.axvline(len(groups) - 1.5, color="0.7", linewidth=0.8)
        axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
        axes.set(title=mode, ylabel=f"over {names[results['baseline']]} (%)")
        axes.grid(axis="y", alpha=0.3)
    panels[0].legend(frameon=False, fontsize="small")
    save_figure(figure, picture, 120)
