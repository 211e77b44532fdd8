"""An evaluation as a table for people, and flat for trackers."""

from collections.abc import Sequence
from typing import Any

from transformers.utils import flatten_dict

from ..data.labels import some
from ..metrics.neural_collapse import METRICS
from ..plots.table import format_table
from ..plots.text import shorten

ACCURACIES = {
    "accuracy": "accuracy by prototypes", "top5_accuracy": "top-5 accuracy by prototypes",
    "class_means_accuracy": "accuracy by class means",
}  # fmt: skip
FREQUENCIES = {"many": "> 100 training images", "medium": "20 to 100", "few": "< 20"}


def format_report(
    report: dict[str, Any], title: str, *,
    reached: dict[str, dict[str, float]] | None = None, target: float = 95.0, class_names: Sequence[str] = (),
) -> str:  # fmt: skip
    """The report as a table for people: values beside their optima.

    Args:
        reached: the epoch at which each metric first attained `target` per cent, as `first_reached`
            says it of the validation split: a last column.
        class_names: to name those without images.
    """
    accuracies = {words: report[name] for name, words in ACCURACIES.items() if name in report}
    for group, accuracy in report.get("accuracy_by_frequency", {}).items():
        accuracies[f"accuracy, classes with {FREQUENCIES[group]}"] = accuracy
    rows = [[words, f"{accuracy:.2%}", "", "", ""] for words, accuracy in accuracies.items()]
    if sets := report.get("prediction_sets"):
        least = min(share for share in sets["class_coverages"] if share is not None)
        words = f"coverage by sets ({sets['set_score']}, {sets['promised']:.4g} promised)"
        rows.append([words, f"{sets['coverage']:.2%}", "", "", ""])
        rows.append(["least coverage of a class", f"{least:.2%}", "", "", ""])
        rows.append(["classes in a set", f"{sets['mean_size']:.3f}", "", "", ""])
    collapse = report.get("neural_collapse", {})
    titles = {metric.name: metric.title for metric in METRICS} | {"overall": "least attained"}
    for name, percentage in collapse.get("attained", {}).items():
        values = [f"{of[name]:.4g}" if name in of else "" for of in (collapse, collapse["optima"])]
        epoch = f"epoch {reached[name]['epoch']:.4g}" if name in (reached or {}) else "-"
        rows.append([titles[name], *values, f"{percentage:.1f} %", epoch])
    attained = f"validation at {target:g} %"
    header = [f"{title} ({report['num_images']} images)", "value", "optimum", "attained", attained]
    table = format_table([row[: 5 if reached is not None else 4] for row in [header, *rows]])
    if limited := collapse.get("attained_nonnegative"):
        shares = (f"{titles[name]} {share:.1f} %" for name, share in limited.items())
        table += f"\n(embeddings without negative entries: of what those attain, {', '.join(shares)})"
    if missing := [class_names[c] for c in collapse.get("absent_classes", [])]:
        table += f"\n(no image of {some(missing)}: what needs every class is not defined)"
    return table


def format_accuracy(report: dict[str, Any]) -> str:
    """How sure the accuracy is, and how it compares."""
    line = "accuracy {:.2%}, 95 % interval {:.2%} to {:.2%}".format(report["accuracy"], *report["accuracy_interval"])
    if of := report.get("comparison"):
        points, low, high = (f"{100 * x:+.2f}" for x in (of["difference"], *of["difference_interval"]))
        line += f"\n{of['accuracy']:.2%} of {shorten(of['model'], 60)}: {points} points, 95 % interval {low} to {high}"
        line += f"; right in this one only {of['only_ours_right']:,}, in the other only {of['only_theirs_right']:,} "
        line += f"images: p = {of['p_value']:.2g} (McNemar)"
    return line


def format_classes(classes: Sequence[dict[str, Any]], most: int = 20) -> str:
    """The classes by name, as a table for people; of more than `most`, the worst."""
    shown = [of for of in classes if of["images"]]
    if more := max(len(shown) - most, 0):
        shown = sorted(shown, key=lambda of: of["f1"])[:most]
    rows = [["class", "images", "precision", "recall", "F1", "confused with"]]
    for of in shown:
        shares = ("-" if of[name] is None else f"{of[name]:.1%}" for name in ("precision", "recall", "f1"))
        taken = f"{shorten(of['confused_with'], 40)} ({of['confused_images']:,})" if of["confused_with"] else ""
        rows.append([shorten(of["class"], 40), f"{of['images']:,}", *shares, taken])
    others = f"\n(the worst by F1; --output and --pictures have the {more:,} others too)" if more else ""
    return format_table(rows, remarks=True) + others


BY_LAYER = ("nc1_variability", "nc1_cdnv", "nc2_equinorm", "nc2_equiangular", "inter_class_effective_rank")
LAYER_TITLES = {info.name: info.title for info in METRICS if info.name in BY_LAYER}


def format_layers(layers: Sequence[dict[str, Any]]) -> str:
    """What `collapse_by_layer` measured, as a table for people."""
    rows = [[x["layer"], str(x["dim"]), *(f"{x[m]:.4g}" if m in x else "-" for m in LAYER_TITLES)] for x in layers]
    return format_table([["layer", "dim", *LAYER_TITLES.values()], *rows])


def flat_record(record: dict[str, Any]) -> dict[str, float]:
    """Nested records as trackers want them, without constants: {"validation_neural_collapse/nc1_cdnv": 0.1}."""
    flat = flatten_dict(record, delimiter="/")
    return {k: v for k, v in flat.items() if v != {} and not {"optima", "absent_classes"} & {*k.split("/")}}
