"""The table that decided the temperatures, and its picture, from the rows alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from hf_protosphere.plots.style import COLORS, STYLES, new_figure, save_figure

from ...markdown import markdown_table
from ..rows import Measured
from ..tables import Results, cell, write_tables
from .stage import CLASSES, EPOCHS, FACTORS, LEARNED, OBJECTIVES


def _accuracy(measured: Measured) -> float:
    return measured["accuracy"]


def write(results: Results, folder: Path) -> None:
    parts = []
    for epochs in EPOCHS:
        lines = [["factor", *(f"K = {count}" for count in CLASSES), "mean"]]
        for method in results.methods(f"{epochs} epochs", f"K={CLASSES[0]}"):
            found = [results.values(f"{epochs} epochs", f"K={count}", method, _accuracy) for count in CLASSES]
            lines.append([method, *map(cell, found), f"{fmean(map(fmean, found)):.1f}"])
        parts.append(f"### {epochs} epochs\n\n{markdown_table(lines)}")
    learned = [["", *(f"K = {count}" for count in CLASSES)]]
    for title in OBJECTIVES:
        if (method := f"{title}, {LEARNED}") in results.methods("40 epochs", "K=10"):
            values = [
                results.values("40 epochs", f"K={count}", method, lambda m: m["temperature"]) for count in CLASSES
            ]
            learned.append([method, *map(cell, values)])
    parts.append(f"### Learned temperatures, after 40 epochs\n\n{markdown_table(learned)}")
    write_tables(folder / "RESULTS.md", "\n\n".join(parts))
    _draw(results, folder / "temperature.png")


def _draw(results: Results, picture: Path) -> None:
    """Accuracy less that of each K's best, over the factor."""
    figure = new_figure(13, 3.6)
    for axes, title in zip(figure.subplots(1, len(OBJECTIVES), sharey=True), OBJECTIVES):
        for count, color, style in zip(CLASSES, COLORS, STYLES):
            values = [
                fmean(results.values("40 epochs", f"K={count}", f"{title}, {factor}", _accuracy)) for factor in FACTORS
            ]
            lost = [value - max(values) for value in values]
            axes.plot(FACTORS, lost, color=color, linestyle=style, marker="o", label=f"K = {count}")
        axes.set(title=title, xlabel="temperature / t*(K)", xscale="log")
        axes.set_xticks(FACTORS, map(str, FACTORS))
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("validation accuracy, less the best (points)")
    figure.axes[0].legend(frameon=False, fontsize="small")
    save_figure(figure, picture, 110)
