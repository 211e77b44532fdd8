"""What a run and an evaluation print: for people, and flat for trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .adaptation import count_parameters, count_trained_parameters
from .metrics import METRICS

if TYPE_CHECKING:
    from .training import TrainingRun

FREQUENCIES = {
    "many": "> 100 training images", "medium": "20 to 100", "few": "< 20"
}  # fmt: skip


def format_report(
    report: dict[str, Any],
    title: str,
    *,
    reached: dict[str, dict[str, float]] | None = None,
    reached_on: str = "validation",
    target: float = 95.0,
) -> str:
    """The report as a table for people: values beside their optima.

    Args:
        reached: the epoch at which each figure first attained `target` per cent, as `first_reached`
            says it of one split, `reached_on`: a last column.
    """
    rows = [["accuracy by prototypes", f"{report['accuracy']:.2%}", "", "", ""]]
    if "top5_accuracy" in report:
        rows.append(["top-5 accuracy by prototypes", f"{report['top5_accuracy']:.2%}", "", "", ""])
    if "class_means_accuracy" in report:
        means = report["class_means_accuracy"]
        rows.append(["accuracy by class means", f"{means:.2%}", "", "", ""])
    for group, accuracy in report.get("accuracy_by_frequency", {}).items():
        rows.append([f"accuracy, classes with {FREQUENCIES[group]}", f"{accuracy:.2%}", "", "", ""])
    collapse = report.get("neural_collapse", {})
    shown = {metric.name: metric for metric in METRICS if metric.name in collapse}
    for name in [*shown, "overall"] if collapse else []:
        metric = shown.get(name)
        value = f"{collapse[name]:.4g}" if metric else ""
        optimum = f"{collapse['optima'][name]:.4g}" if metric else ""
        percentage = f"{collapse['attained'][name]:.1f} %"
        epoch = f"epoch {reached[name]['epoch']:.4g}" if reached and name in reached else "-"
        rows.append(
            [metric.title if metric else "least attained", value, optimum, percentage, epoch]
        )
    header = [f"{title} ({report['num_images']} images)", "value", "optimum", "attained"]
    header.append(f"{reached_on} at {target:g} %")
    columns = 5 if reached is not None else 4
    return format_table([row[:columns] for row in [header, *rows]])


CLASSIFIERS = {
    "class_means": "fixed prototypes (class means)",
    "linear": "linear probe",
    "normalized_linear": "normalised linear probe",
}


def format_classifiers(classifiers: dict[str, dict[str, float]], split: str) -> str:
    """Accuracy and price of the classifiers on a frozen backbone, as results.json holds them."""
    header = [f"on the frozen backbone, {split}", "accuracy", "one pass (s)", "training (s)"]
    rows = [
        [
            CLASSIFIERS[name], f"{c['accuracy']:.2%}", f"{c['pass_seconds']:.1f}",
            f"{c['training_seconds']:.1f}",
        ]
        for name, c in classifiers.items()
    ]  # fmt: skip
    return format_table([header, *rows])


def format_robustness(report: dict[str, Any]) -> str:
    """Errors on corrupted images as `corruption_errors` returns them: a row for each corruption."""
    baseline, severities = report.get("baseline"), report["severities"]
    corruptions = len(report["errors"])

    def row(name: str, errors: list[float | None], compared: list[float | None]) -> list[str]:
        shown = [*errors, *(compared if baseline else [])]
        return [name, *("" if value is None else f"{value:.1%}" for value in shown)]

    def mean(of: dict[str, Any], name: str) -> float:
        return sum(of["errors"][name]) / len(severities)

    header = ["error under corruption", *(f"severity {s}" for s in severities), "mean"]
    if baseline:
        header += ["baseline", "over baseline"]
    blank = [None] * len(severities)
    rows = [row("(clean images)", [*blank, report["clean_error"]],
                [baseline["clean_error"] if baseline else None, None])]  # fmt: skip
    for name, errors in report["errors"].items():
        compared = [mean(baseline, name), report["errors_over_baseline"][name]] if baseline else []
        rows.append(row(name, [*errors, mean(report, name)], compared))
    raw = [baseline["mean_corruption_error"] if baseline else None]
    over = report.get("mean_corruption_error_over_baseline")
    rows.append(
        row(f"mean of the {corruptions}", [*blank, report["mean_corruption_error"]], [*raw, over])
    )
    notes = ["Mean: over severities, then over corruptions; not mCE, which is over a baseline."]
    if baseline:
        relative = report["relative_mean_corruption_error_over_baseline"]
        rows.append(row("mean of what is lost to clean images", [*blank, None], [None, relative]))
        notes += [
            "Over baseline: the sum over severities over the baseline's, then the mean (mCE, where "
            "the baseline is AlexNet);",
            "in the last row after taking off the clean errors (relative mCE). 100 % is as bad as "
            f"the baseline{', ' + baseline['model'] if 'model' in baseline else ''}.",
        ]
    notes += [f"Undefined: {reason}." for reason in report.get("undefined", {}).values()]
    if "num_resized" in report:
        resized, all_ = report["num_resized"], report["num_corrupted_images"]
        notes.append(
            f"Of {all_} images that were corrupted already {all_ - resized} had the model's input "
            f"size and stayed as they are, {resized} were resized and cropped."
        )
    return "\n".join([format_table([header, *rows]), *notes])


def format_table(rows: list[list[str]], text_columns: int = 1) -> str:
    """The first row is the header; the first columns are text, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *(line.rstrip() for line in lines[1:])])


def announcement(run: TrainingRun) -> str:
    """What is about to be trained, on what, for how long."""
    config, arguments, accelerator = run.model.config, run.arguments, run.accelerator
    parameters, trained = count_parameters(run.model), count_trained_parameters(run.model)
    share = "" if trained == parameters else f", {trained:,} of them trained"
    sizes = ", ".join(
        f"{name} {run.images.num_train if name == 'train' else len(split)}"
        for name, split in run.images.splits.items()
    )
    lines = [
        f"{config.objective} on {config.backbone} ({parameters / 1e6:.2f} M parameters{share}, "
        f"embeddings of {run.model.protosphere.embedding_dim}, {config.prototypes} prototypes)",
        f"{arguments.dataset_name}: {config.num_labels} classes, {sizes}; "
        f"{config.image_size} px, {config.num_channels} channel(s)",
        f"{arguments.epochs} epochs of {run.steps_per_epoch} steps of {run.images_per_step} "
        f"images, {accelerator.num_processes} process(es) on {accelerator.device.type}"
        f"{'' if arguments.dry_run else f'; → {run.output_dir}'}",
    ]
    if arguments.imbalance:
        counts = ", ".join(map(str, run.train_counts))
        lines.append(f"long-tailed ({arguments.imbalance}): {counts} images a class")
    if run.validation == "train":
        lines.append("No validation images: validating on the training set.")
    return "\n".join(lines)


def epoch_line(record: dict[str, Any]) -> str:
    line = f"epoch {record['epoch']:>5.4g}"
    if "train_loss" in record:
        line += f"  loss {record['train_loss']:.3f}"
    if "validation_accuracy" in record:
        line += f"  validation accuracy {record['validation_accuracy']:.2%}"
    if "validation_neural_collapse" in record:
        attained = record["validation_neural_collapse"]["attained"]["overall"]
        line += f"  neural collapse {attained:.1f} %"
    return line


def flat_record(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested records as trackers want them: {"validation_neural_collapse/nc1_cdnv": 0.1}."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if name == "optima":  # constants
            continue
        if isinstance(value, dict):
            flat |= flat_record(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
