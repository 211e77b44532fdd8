"""Tables and the picture of the stage, from its rows alone."""

from __future__ import annotations

from pathlib import Path

from hf_protosphere.plots.style import new_figure, save_figure

from ..measures import SCORES
from ..tables import (
    Results,
    Value,
    accuracy_and_collapse,
    collapse,
    points,
    table,
    value,
    write_tables,
)
from .stage import PROTOTYPES

WHERE = "cifar10"
ACCURACY: dict[str, Value] = {
    "test accuracy (%)": value("test_accuracy"),
    "by class means": value("test_means_accuracy"),
}
USES: dict[str, Value] = {
    "mAP@R of known classes (%)": value("known_map"),
    "of the layer before": value("known_hidden_map"),
    "of clothing": value("unseen_map"),
    "of clothing, by the layer before": value("unseen_hidden_map"),
    "linear probe on clothing": value("transfer_accuracy"),
    "calibration error": value("calibration_error"),
    "after scaling": value("scaled_calibration_error"),
    "log-likelihood after scaling": value("scaled_nll"),
}
UNKNOWN = {f"AUROC against clothing, {score}": value("far", score) for score in SCORES}
CORRUPTED = {"clean error (%)": value("clean_error"), "corrupted": value("corruption_error")}


def write(results: Results, folder: Path) -> None:
    tasks = {row.task for row in results.rows}
    sections = [
        ("Accuracy and collapse", "classify", accuracy_and_collapse(), "CE"),
        ("Retrieval, transfer, calibration", "uses", ACCURACY | USES, None),
        ("Unknown images and corruptions", "uses", UNKNOWN | CORRUPTED, None),
        ("Settings that were tried, one seed", "settings", accuracy_and_collapse(), None),
    ]
    parts = [
        f"### {title}\n\n{table(results, task, WHERE, columns, against=against)}"
        for title, task, columns, against in sections
        if task in tasks
    ]
    write_tables(folder / "RESULTS.md", "\n\n".join(parts))
    if "classify" not in tasks:
        return
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    points(
        axes, results, "classify", WHERE, "CDNV attained on test images (%)", collapse("test", "nc1_cdnv"),
        cross_entropy=["CE", "CE, decay 1"], prototypes=list(PROTOTYPES),
    )  # fmt: skip
    axes.legend(frameon=False)
    save_figure(figure, folder / "full_cifar10.png", 110)
