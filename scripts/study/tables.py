"""Means, paired differences and their intervals, and where they stand: a RESULTS.md, a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.axes import Axes

from hf_protosphere.plots.style import COLORS
from hf_protosphere.transfer.report import mean_and_interval

from ..markdown import markdown_table
from .rows import Measured, Row

START, END = "<!-- tables -->", "<!-- end of tables -->"
Value = Callable[[Measured], float | None]
SHOWN = {  # of neural collapse, and what it is called there
    "CDNV": "nc1_cdnv", "equiangular": "nc2_equiangular", "self-duality": "nc3_self_duality",
    "class alignment": "class_alignment", "instance alignment": "instance_alignment",
}  # fmt: skip


class Results:
    """Rows of one stage, asked by task, data and method: a value for each seed."""

    def __init__(self, rows: dict[Row, Measured]) -> None:
        self.rows = rows

    def methods(self, task: str, data: str) -> list[str]:
        return list(dict.fromkeys(r.method for r in self.rows if (r.task, r.data) == (task, data)))

    def values(self, task: str, data: str, method: str, of: Value) -> list[float]:
        """In the order of the seeds; empty where one row has no such value."""
        return [*self._by_seed(task, data, method, of).values()]

    def pairs(self, task: str, data: str, ours: str, theirs: str, of: Value) -> tuple[list[float], list[float]]:
        """Of two methods, for the seeds that both have."""
        one, other = (self._by_seed(task, data, method, of) for method in (ours, theirs))
        seeds = [seed for seed in one if seed in other]
        return [one[seed] for seed in seeds], [other[seed] for seed in seeds]

    def _by_seed(self, task: str, data: str, method: str, of: Value) -> dict[int, float]:
        found = {
            row.seed: of(measured)
            for row, measured in sorted(self.rows.items(), key=lambda item: item[0].seed)
            if (row.task, row.data, row.method) == (task, data, method)
        }
        return {} if None in found.values() else found


def value(*path: str) -> Value:
    """What a row holds by this name, or under one name by another."""

    def of(measured: Measured) -> float | None:
        for name in path[:-1]:
            measured = measured.get(name, {})
        return measured.get(path[-1])

    return of


def accuracy_and_collapse(*more: tuple[str, Value]) -> dict[str, Value]:
    """The columns of the table that every stage begins with."""
    return {
        "test accuracy (%)": value("test_accuracy"),
        "validation": value("validation_accuracy"),
        **{f"test {title}": collapse("test", name) for title, name in SHOWN.items()},
        "training class alignment": collapse("train", "class_alignment"),
        "training CDNV": collapse("train", "nc1_cdnv"),
        **dict(more),
    }


def collapse(role: str, name: str) -> Value:
    """Per cent that a metric of neural collapse attains on the images of a split."""
    return value(f"{role}_collapse", name)


def cell(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds, to two decimals below 1.

    Example:
        >>> cell([80.0, 82.0]), cell([0.31, 0.33]), cell([])
        ('81.0 ± 1.4', '0.32 ± 0.01', '-')
    """
    if not values:
        return "-"
    form = ".1f" if fmean(values) >= 1 else ".2f"
    deviation = f" ± {spread(values):{form}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{deviation}"


def spread(values: Sequence[float]) -> float:
    """Standard deviation over the seeds; 0 of one."""
    return stdev(values) if len(values) > 1 else 0.0


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None]:
    """Mean of the paired differences of the same seeds, and half the width of its 95 % confidence
    interval (Student's t), which one seed has not."""
    return mean_and_interval([a - b for a, b in zip(ours, theirs, strict=True)])


def verdict(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The paired difference with its interval, and "level" where that holds 0.

    Example:
        >>> verdict([80.0, 82.0, 84.0], [79.0, 80.0, 83.0])
        'level (+1.3 ± 1.4)'
        >>> verdict([80.0, 82.0, 84.0], [75.0, 77.0, 79.0])
        '+5.0 ± 0.0'
        >>> verdict([80.0], [75.0])
        '+5.0 (one seed)'
    """
    mean, half = difference(ours, theirs)
    if half is None:
        return f"{mean:+.1f} (one seed)"
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
            first = next(iter(columns.values()))
            pairs = results.pairs(task, data, method, against, first)
            line.insert(2, "" if method == against else verdict(*pairs))
        lines.append(line)
    return markdown_table([header, *lines])


def write_tables(path: Path, text: str) -> None:
    """Between the two marks of a RESULTS.md; what is written around them stays."""
    before, rest = path.read_text().split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")


def points(
    axes: Axes, results: Results, task: str, data: str, title: str, of: Value, *,
    cross_entropy: Sequence[str], prototypes: Sequence[str],
) -> None:  # fmt: skip
    """Test accuracy beside another value, a point for each method, with its deviations."""
    shown = 0
    for method in results.methods(task, data):
        x, y = (results.values(task, data, method, v) for v in (value("test_accuracy"), of))
        ours, theirs = method in prototypes, method in cross_entropy
        shown += not theirs
        label = "cross-entropy, every setting" if method == cross_entropy[0] else method
        axes.errorbar(
            fmean(x), fmean(y), spread(y), spread(x), capsize=2, linestyle="none",
            color="gray" if theirs else COLORS[(shown - 1) % len(COLORS)],
            marker="o" if ours else "x" if theirs else "^", markersize=7 if ours else 5,
            label=None if theirs and method != cross_entropy[0] else label,
        )  # fmt: skip
    axes.set(xlabel="test accuracy (%)", ylabel=title)
    axes.grid(alpha=0.3)
