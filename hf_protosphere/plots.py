"""Pictures of a run. matplotlib is imported only here, and only when a picture is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoints import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by the colour-blind; line styles serve black and white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
CURVES = {
    "inter_class_effective_rank": "class means' effective rank",
    "prototype_effective_rank": "prototypes' effective rank",
    "instance_alignment": "images aligned with their prototype",
    "class_alignment": "class means aligned with prototypes",
    "nc1_cdnv": "classes collapsed (CDNV)",
    "nc2_equiangular": "class means equiangular",
    "nc3_self_duality": "prototypes dual to class means",
}


def plot_curves(metrics: Path, picture: Path) -> None:
    """Loss, accuracy and the attained share of neural collapse over the epochs.

    Args:
        metrics: a run's metrics.jsonl.
        picture: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics)
    # Without pyplot: no global state, no display, safe in any process.
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, collapse = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    _draw(loss, [r["epoch"] for r in records], [r["train_loss"] for r in records], 0, "training")
    loss.set(title="Loss (training batches)", xlabel="epoch", ylabel="loss")

    evaluated = [r for r in records if "validation_accuracy" in r]
    for i, name in enumerate(("validation_accuracy", "train_accuracy")):
        points = [(r["epoch"], 100 * r[name]) for r in records if name in r]
        label = ("validation images", "training batches, augmented")[i]
        _draw(accuracy, *zip(*points), i, label)
    accuracy.set(title="Accuracy by prototypes", xlabel="epoch", ylabel="correct (%)")
    accuracy.legend(loc="lower right")

    measured = [r for r in evaluated if "validation_neural_collapse" in r]
    for i, (name, label) in enumerate(CURVES.items()):
        points = [(r["epoch"], r["validation_neural_collapse"]["attained"][name]) for r in measured]
        if points:
            _draw(collapse, *zip(*points), i, label)
    collapse.axhline(100, color="0.5", linewidth=0.8)
    collapse.set(
        title="Neural collapse of the validation images",
        xlabel="epoch",
        ylabel="share of the optimum attained (%)",
        ylim=(None, 102),
    )
    collapse.legend(loc="lower right", fontsize="small")
    for axes in (loss, accuracy, collapse):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(picture, dpi=120)


def _draw(axes: Axes, x: list[float], y: list[float], i: int, label: str) -> None:
    marker = "o" if len(x) == 1 else None  # a line through one point is invisible
    axes.plot(x, y, color=COLORS[i], linestyle=STYLES[i], marker=marker, label=label)
    axes.grid(alpha=0.3)
