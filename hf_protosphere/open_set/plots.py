"""Pictures of calibration and of unknown images. matplotlib is imported when one is drawn.

The suffix of the file to write says the format."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..configuration_protosphere import ProtoSphereConfig
from ..plots.style import COLORS, STYLES, draw_shares, new_figure, save_figure
from .confidence import Reliability
from .detection import Detection
from .scores import SCORES

COLUMNS = 4  # of panels: three scores or seven, and the ROC


def plot_reliability(bins: Mapping[str, Reliability], picture: Path) -> None:
    """Reliability diagrams side by side, by their titles: accuracy against confidence, and how many images."""
    figure = new_figure(5.5 * len(bins), 6)
    panels = figure.subplots(2, len(bins), height_ratios=(3, 1), sharex=True, sharey="row", squeeze=False)
    for (title, reliability), (diagram, histogram) in zip(bins.items(), panels.T):
        counts, accuracy, confidence = (x.numpy() for x in vars(reliability).values())
        width, seen = 1 / len(counts), counts > 0
        centres = (np.arange(len(counts)) + 0.5) * width
        style = {"color": COLORS[0], "edgecolor": "white"}
        diagram.bar(centres[seen], accuracy[seen], width, label="accuracy", **style)
        gap, style = (confidence - accuracy)[seen], {"color": "none", "edgecolor": COLORS[1], "hatch": "///"}
        diagram.bar(centres[seen], gap, width, accuracy[seen], label="to the mean confidence", **style)
        diagram.plot((0, 1), (0, 1), color="0.3", linewidth=1, linestyle="--", label="calibrated")
        diagram.set(title=f"{title}: ECE {reliability.expected_calibration_error:.2%}", xlim=(0, 1), ylim=(0, 1))
        bars = histogram.bar(centres, counts, width, color="0.6", edgecolor="white")
        histogram.bar_label(bars, [f"{count:.0f}" if count else "" for count in counts], fontsize=7)
        histogram.set(xlabel="confidence (largest score)")
        histogram.margins(y=0.2)  # room for the numbers
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("images")
    panels[0, 0].legend(loc="upper left")
    save_figure(figure, picture, 120)


def plot_unknown(detection: Detection, picture: Path, config: ProtoSphereConfig) -> None:
    """Histograms of the scores of known and unknown images, with the threshold of the model where it has one, and
    the ROC of all scores."""
    from sklearn.metrics import roc_curve

    names, threshold = [*detection.known], config.rejection_threshold
    rows = -(-(len(names) + 1) // COLUMNS)
    figure = new_figure(4.5 * COLUMNS, 4.5 * rows)
    *panels, roc = figure.subplots(rows, COLUMNS).flat
    for i, (name, axes) in enumerate(zip(names, panels, strict=True)):
        groups = {"known": detection.known[name].numpy(), "unknown": detection.unknown[name].numpy()}
        both = np.concatenate([*groups.values()])
        # Mahalanobis distances have long tails: beyond the outermost bins lies 1 %.
        bins = np.linspace(*np.quantile(both, (0.005, 0.995)), 61)
        named = {f"{len(s):,} {label}": s.clip(bins[0], bins[-1]) for label, s in groups.items()}
        draw_shares(axes, bins, named)
        if name == config.rejection_score and threshold is not None:
            axes.axvline(threshold, color="0.3", linestyle=":", label=f"threshold {threshold:.3f}")
        axes.set(title=SCORES[name], xlabel="score")
        axes.legend(loc="upper left")
        rates = roc_curve(np.repeat([1, 0], [*map(len, groups.values())]), both)[:2]
        roc.plot(*rates, color=COLORS[i], linestyle=STYLES[i], label=SCORES[name])
    roc.axhline(0.95, color="0.3", linewidth=1, linestyle=":")
    roc.plot((0, 1), (0, 1), color="0.6", linewidth=1)
    roc.set(title="ROC", xlabel="unknown images accepted", ylabel="known images accepted")
    roc.legend(loc="lower right")
    save_figure(figure, picture, 110)
