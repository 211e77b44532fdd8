"""Tables and the picture of the stage, from its rows alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

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
from .stage import PROTOTYPES, SHOTS

WHERE = "cifar10"


def of_classes(first: int, last: int) -> Value:
    """Mean accuracy (%) of those from the first to before the last, which are the rarer the later."""
    return lambda row: 100 * fmean(row["class_accuracies"][first:last]) if "class_accuracies" in row else None


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
TAIL: dict[str, Value] = {
    "test accuracy (%)": value("test_accuracy"),
    **{f"classes {a + 1} to {b}": of_classes(a, b) for a, b in ((0, 3), (3, 7), (7, 10))},
    "by class means": value("test_class_means_accuracy"),
    "test CDNV attained": collapse("test", "nc1_cdnv"),
    "test equiangular": collapse("test", "nc2_equiangular"),
    "test self-duality": collapse("test", "nc3_self_duality"),
}
TRANSFER: dict[str, Value] = {
    f"{name}, {title}": value(f"{name}_{key}")
    for name in ("clothing", "digits")
    for title, key in {
        "all, linear probe": "probe",
        **{f"{n} each": f"features_{n}" for n in SHOTS},
        **{f"{n} each, by embeddings": f"embeddings_{n}" for n in SHOTS},
    }.items()
}
ADDED = {
    f"{title}, {n} each": value(f"{key}_{n}")
    for n in SHOTS
    for title, key in {"known": "known", "new": "new", "harmonic mean": "both"}.items()
}
UNKNOWN = {f"AUROC against clothing, {score}": value("far", score) for score in SCORES}
CORRUPTED = {"clean error (%)": value("clean_error"), "corrupted": value("corruption_error")}


def write(results: Results, folder: Path) -> None:
    tasks, added = {row.task for row in results.rows}, "Ten classes of clothing added to the ten (accuracy, %)"
    sections = [
        ("Accuracy and collapse", "classify", accuracy_and_collapse(), "CE"),
        ("Retrieval, transfer, calibration", "uses", ACCURACY | USES, None),
        ("Unknown images and corruptions", "uses", UNKNOWN | CORRUPTED, None),
        ("A long tail: the rarest class with 90 images, the most frequent with 4,500; one seed", "tail", TAIL, None),
        ("The frozen encoder on other images (test accuracy, %), by few of each class", "transfer", TRANSFER, None),
        (added, "transfer", ADDED, None),  # to prototypes
        ("Settings that were tried, one seed", "settings", accuracy_and_collapse(), None),
    ]
    of = {added: [name for name in results.methods("transfer", WHERE) if not name.startswith("CE")]}
    parts = [
        f"### {title}\n\n{table(results, task, WHERE, columns, against=against, methods=of.get(title))}"
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
