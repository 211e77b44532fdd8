"""The table and the picture of the stage, from its rows alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from hf_protosphere.plots.style import new_figure, save_figure

from ..tables import Results, accuracy_and_collapse, collapse, points, table, value, write_tables
from .stage import CROSS_ENTROPY, PROTOTYPES


def write(results: Results, folder: Path) -> None:
    where = ("classify", "cifar10")
    validation = value("validation_accuracy")
    tuned = max(CROSS_ENTROPY, key=lambda m: fmean(results.values(*where, m, validation)))
    columns = accuracy_and_collapse(("seconds", value("seconds")))
    write_tables(folder / "RESULTS.md", table(results, *where, columns, against=tuned))
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    points(
        axes, results, *where, "CDNV attained on test images (%)", collapse("test", "nc1_cdnv"),
        cross_entropy=list(CROSS_ENTROPY), prototypes=list(PROTOTYPES),
    )  # fmt: skip
    axes.legend(frameon=False)
    save_figure(figure, folder / "small_network.png", 110)
