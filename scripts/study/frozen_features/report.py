"""Tables and the picture of the stage, from its rows alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from hf_protosphere.plots.style import new_figure, save_figure

from ..measures import SCORES
from ..tables import (
    SHOWN,
    Results,
    Value,
    accuracy_and_collapse,
    collapse,
    points,
    spread,
    table,
    value,
    verdict,
    write_tables,
)
from .methods import CROSS_ENTROPY, METHODS, PROTOTYPES, SHOTS

MEASURES = ("nc1_cdnv", "nc2_equiangular", "class_alignment")  # that are compared one by one


def write(results: Results, folder: Path) -> None:
    names = list(dict.fromkeys(row.data for row in results.rows))
    tasks = {row.task for row in results.rows}
    parts = []
    for title, task, section in (
        ("Accuracy and collapse", "classify", _accuracy),
        ("Collapse against cross-entropy's", "classify", _against),
        ("Retrieval, far unknown images, calibration", "classify", _uses),
        ("Three classes left out: near unknown images, seen and unseen classes", "open", _open),
        ("Few images", f"{SHOTS[0]} a class", _few),
        ("Long tails", "tail", _tail),
        ("Batches", "batch", _batch),
    ):
        if task in tasks:
            parts.append(f"### {title}")
            parts += [f"**{name}**\n\n{section(results, name)}" for name in names]
    write_tables(folder / "RESULTS.md", "\n\n".join(parts))
    if "classify" in tasks:
        _draw(results, names, folder / "frozen_features.png")


def best(task: str, name: str, results: Results, data: str) -> str:
    """The setting of cross-entropy with the largest value of this: chosen to its favour, but for
    "validation_accuracy"."""
    settings = [m for m in METHODS[task] if m.startswith("CE")]
    return max(settings, key=lambda m: fmean(results.values(task, data, m, value(name))))


def near_best(results: Results, data: str) -> list[str]:
    """Settings of cross-entropy within one deviation of the best one's accuracy on test images."""
    of = {m: results.values("classify", data, m, value("test_accuracy")) for m in CROSS_ENTROPY}
    top = of[best("classify", "test_accuracy", results, data)]
    return [m for m in of if fmean(of[m]) >= fmean(top) - spread(top)]


def _accuracy(results: Results, data: str) -> str:
    tuned = best("classify", "validation_accuracy", results, data)
    return table(results, "classify", data, accuracy_and_collapse(), against=tuned)


def _against(results: Results, data: str) -> str:
    settings = near_best(results, data)
    lines = []
    for name in MEASURES:
        of = collapse("test", name)
        most = max(settings, key=lambda m: fmean(results.values("classify", data, m, of)))
        theirs = results.values("classify", data, most, of)
        ours = ", ".join(f"{m} {verdict(results.values('classify', data, m, of), theirs)}" for m in PROTOTYPES)
        title = next(title for title, metric in SHOWN.items() if metric == name)
        lines.append(f"- test {title}: {most} attains {fmean(theirs):.1f}; {ours}")
    said = f"Of the settings within one deviation of its best accuracy ({'; '.join(settings)}):"
    return "\n".join([said, "", *lines])


def _uses(results: Results, data: str) -> str:
    columns: dict[str, Value] = {
        "mAP@R (%)": value("known_map"),
        "of the layer before": value("known_hidden_map"),
        **{f"far AUROC, {score}": value("far", score) for score in SCORES},
        "calibration error": value("calibration_error"),
        "after scaling": value("scaled_calibration_error"),
        "log-likelihood after scaling": value("scaled_nll"),
    }
    theirs = best("classify", "known_map", results, data)
    return table(results, "classify", data, columns, against=theirs)


def _open(results: Results, data: str) -> str:
    columns: dict[str, Value] = {
        "mAP@R of seen classes (%)": value("known_map"),
        "of the layer before": value("known_hidden_map"),
        "unseen classes": value("unseen_map"),
        "of the layer before, unseen": value("unseen_hidden_map"),
        "accuracy of seven": value("test_accuracy"),
        **{f"near AUROC, {score}": value("near", score) for score in SCORES},
    }
    return table(results, "open", data, columns, against=best("open", "known_map", results, data))


def _few(results: Results, data: str) -> str:
    parts = []
    for shots in SHOTS:
        task = f"{shots} a class"
        columns: dict[str, Value] = {
            f"mean accuracy of classes, {task} (%)": value("test_class_accuracy"),
            "by class means": value("test_means_class_accuracy"),
        }
        theirs = best(task, "test_class_accuracy", results, data)
        parts.append(table(results, task, data, columns, against=theirs))
    return "\n\n".join(parts)


def _tail(results: Results, data: str) -> str:
    parts = []
    for how, name in (("", ""), (", by class means", "means_")):
        of = f"test_{name}class_accuracy"
        columns: dict[str, Value] = {
            f"mean accuracy of classes{how} (%)": value(of),
            "validation": value(f"validation_{name}class_accuracy"),
        }
        theirs = best("tail", of, results, data)
        parts.append(table(results, "tail", data, columns, against=theirs))
    return "\n\n".join(parts)


def _batch(results: Results, data: str) -> str:
    columns: dict[str, Value] = {"test accuracy (%)": value("test_accuracy"), "seconds": value("seconds")}
    return table(results, "batch", data, columns)


def _draw(results: Results, names: list[str], picture: Path) -> None:
    """Accuracy beside collapse and retrieval, a point for each method, with its deviations."""
    figure = new_figure(11, 4.2 * len(names))
    panels: dict[str, Value] = {
        "CDNV attained on test images (%)": collapse("test", "nc1_cdnv"),
        "mAP@R among test images (%)": value("known_map"),
    }
    for row, data in zip(figure.subplots(len(names), len(panels), squeeze=False), names):
        for axes, (title, of) in zip(row, panels.items()):
            points(
                axes, results, "classify", data, title, of,
                cross_entropy=list(CROSS_ENTROPY), prototypes=list(PROTOTYPES),
            )  # fmt: skip
            axes.set_title(data)
    figure.axes[-1].legend(fontsize="x-small", frameon=False)
    save_figure(figure, picture, 110)
