"""Errors on corrupted images as a table for people."""

from __future__ import annotations

from typing import Any

from ..plots.table import format_table


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
