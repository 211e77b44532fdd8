"""Means, paired differences and their intervals, and where they stand in a RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from hf_protosphere.plots.table import markdown_table
from hf_protosphere.transfer.report import mean_and_interval

from .rows import Measured, Row

START, END = "<!-- tables -->", "<!-- end of tables -->"
Value = Callable[[Measured], float | None]


class Results:
    """Rows of one stage, asked by task, data and method: a value for each seed."""

    def __init__(self, rows: dict[Row, Measured]) -> None:
        self.rows = rows

    def methods(self, task: str, data: str) -> list[str]:
        return list(dict.fromkeys(r.method for r in self.rows if (r.task, r.data) == (task, data)))

    def values(self, task: str, data: str, method: str, of: Value) -> list[float]:
        """In the order of the seeds; empty where one row has no such value."""
        found = [
            of(measured)
            for row, measured in sorted(self.rows.items(), key=lambda item: item[0].seed)
            if (row.task, row.data, row.method) == (task, data, method)
        ]
        return [] if None in found else found


def collapse(role: str, name: str) -> Value:
    """Per cent that a metric of neural collapse attains on the images of a split."""
    return lambda measured: measured.get(f"{role}_collapse", {}).get(name)


def cell(values: Sequence[float], form: str = ".1f") -> str:
    """Mean ± standard deviation over the seeds.

    Example:
        >>> cell([80.0, 82.0]), cell([])
        ('81.0 ± 1.4', '-')
    """
    if not values:
        return "-"
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{spread}"


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean of the paired differences of the same seeds, and half the width of its 95 % confidence
    interval (Student's t)."""
    mean, half = mean_and_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    return mean, half or 0.0


def verdict(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The paired difference with its interval, and "level" where that holds 0.

    Example:
        >>> verdict([80.0, 82.0, 84.0], [79.0, 80.0, 83.0])
        'level (+1.3 ± 1.4)'
        >>> verdict([80.0, 82.0, 84.0], [75.0, 77.0, 79.0])
        '+5.0 ± 0.0'
    """
    mean, half = difference(ours, theirs)
    text = f"{mean:+.1f} ± {half:.1f}"
    return f"level ({text})" if abs(mean) <= half else text


def table(
    results: Results, task: str, data: str, columns: dict[str, Value], *,
    against: str | None = None, methods: Sequence[str] | None = None,
) -> str:  # fmt: skip
    """A line for each method; with `against`, after each value its difference from that method's,
    of the first column."""
    header = ["", *columns]
    if against is not None:
        header.insert(2, f"against {against}")
    lines = []
    for method in methods or results.methods(task, data):
        values = [results.values(task, data, method, of) for of in columns.values()]
        line = [method, *map(cell, values)]
        if against is not None:
            theirs = results.values(task, data, against, next(iter(columns.values())))
            line.insert(2, "" if method == against else verdict(values[0], theirs))
        lines.append(line)
    return markdown_table([header, *lines])


def write_tables(path: Path, text: str) -> None:
    """Between the two marks of a RESULTS.md; what is written around them stays."""
    before, rest = path.read_text().split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")
