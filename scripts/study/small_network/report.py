"""The table and the picture of the stage, from its rows alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

from hf_protosphere.plots.style import COLORS, new_figure, save_figure

from ..tables import Results, Value, collapse, table, write_tables
from .stage import CROSS_ENTROPY

SHOWN = {
    "CDNV": "nc1_cdnv", "equiangular": "nc2_equiangular", "self-duality": "nc3_self_duality",
    "class alignment": "class_alignment", "instance alignment": "instance_alignment",
}  # fmt: skip


def _accuracy(role: str) -> Value:
    return lambda measured: measured[f"{role}_accuracy"]


def write(results: Results, folder: Path) -> None:
    where = ("classify", "cifar10")
    tuned = max(
        CROSS_ENTROPY, key=lambda m: fmean(results.values(*where, m, _accuracy("validation")))
    )
    columns: dict[str, Value] = {
        "test accuracy (%)": _accuracy("test"),
        "validation": _accuracy("validation"),
        **{f"test {title}": collapse("test", name) for title, name in SHOWN.items()},
        "training class alignment": collapse("train", "class_alignment"),
        "seconds": lambda measured: measured["seconds"],
    }
    write_tables(folder / "RESULTS.md", table(results, *where, columns, against=tuned))
    figure = new_figure(7, 4.5)
    axes, shown = figure.subplots(), 0
    for method in results.methods(*where):
        x = results.values(*where, method, _accuracy("test"))
        y = results.values(*where, method, collapse("test", "nc1_cdnv"))
        theirs = method in CROSS_ENTROPY
        shown += not theirs
        axes.errorbar(
            fmean(x), fmean(y), stdev(y), stdev(x), capsize=2, linestyle="none",
            color="gray" if theirs else COLORS[shown - 1], marker="x" if theirs else "o",
            label="cross-entropy, every setting" if method == "CE" else None if theirs else method,
        )  # fmt: skip
    axes.set(xlabel="test accuracy (%)", ylabel="CDNV attained on test images (%)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, folder / "small_network.png", 110)
