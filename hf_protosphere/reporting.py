"""What a run and an evaluation print: for people, and flat for trackers."""

from __future__ import annotations

from typing import Any

from .metrics import METRICS


def format_report(report: dict[str, Any], title: str, num_classes: int, dim: int) -> str:
    """The report as a table for people: values beside their optima."""
    rows = [("accuracy by prototypes", f"{report['accuracy']:.2%}", "", "")]
    if num_classes > 5:
        rows.append(("top-5 accuracy by prototypes", f"{report['top5_accuracy']:.2%}", "", ""))
    if "class_means_accuracy" in report:
        rows.append(("accuracy by class means", f"{report['class_means_accuracy']:.2%}", "", ""))
    collapse = report.get("neural_collapse", {})
    for metric in METRICS:
        if metric.name in collapse:
            rows.append(
                (
                    metric.title,
                    f"{collapse[metric.name]:.4g}",
                    f"{metric.optimum(num_classes, dim):.4g}",
                    f"{collapse['attained'][metric.name]:.1f} %",
                )
            )
    if collapse:
        rows.append(("least attained", "", "", f"{collapse['attained']['overall']:.1f} %"))
    header = (f"{title} ({report['num_images']} images)", "value", "optimum", "attained")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in [header, *rows]
    ]
    rule = "─" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:]])


def epoch_line(record: dict[str, Any]) -> str:
    line = f"epoch {record['epoch']:>3}  loss {record['train_loss']:.3f}"
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
        if isinstance(value, dict):
            flat |= flat_record(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
