"""Pictures of calibration and of unknown images. matplotlib is imported when one is drawn.

The suffix of the file to write says the format.
"""

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
        counts = reliability.counts.numpy()
        width, seen = 1 / len(counts), counts > 0
        centres = (np.arange(len(counts)) + 0.5) * width
        accuracy, gap = reliability.accuracy, reliability.confidence - reliability.accuracy
        accuracy, gap = accuracy.numpy()[seen], gap.numpy()[seen]
        style = {"color": COLORS[0], "edgecolor": "white"}
        diagram.bar(centres[seen], accuracy, width, label="accuracy", **style)
        style = {"color": "none", "edgecolor": COLORS[1], "hatch": "///"}
        diagram.bar(centres[seen], gap, width, accuracy, label="to the mean confidence", **style)
        diagram.plot((0, 1), (0, 1), color="0.3", linewidth=1, linestyle="--", label="calibrated")
        error = reliability.expected_calibration_error
        diagram.set(title=f"{title}: ECE {error:.2%}", xlim=(0, 1), ylim=(0, 1))
        histogram.bar(centres, counts, width, color="0.6", edgecolor="white")
        for x, count in zip(centres[seen], counts[seen]):
            histogram.annotate(f"{count:.0f}", (x, count), ha="center", va="bottom", fontsize=7)
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

    known = {name: scores.double().numpy() for name, scores in detection.known.items()}
    unknown = {name: scores.double().numpy() for name, scores in detection.unknown.items()}
    names, threshold = [*known, "roc"], config.rejection_threshold
    rows = [names[i : i + COLUMNS] for i in range(0, len(names), COLUMNS)]
    figure = new_figure(4.5 * COLUMNS, 4.5 * len(rows))
    panels = figure.subplot_mosaic(rows)
    roc = panels["roc"]
    for i, name in enumerate(known):
        axes, both = panels[name], np.concatenate([known[name], unknown[name]])
        # Mahalanobis distances have long tails: beyond the outermost bins lies 1 %.
        bins = np.linspace(*np.quantile(both, (0.005, 0.995)), 61)
        groups = {"known": known[name], "unknown": unknown[name]}
        named = {f"{len(s):,} {label}": s.clip(bins[0], bins[-1]) for label, s in groups.items()}
        draw_shares(axes, bins, named)
        if name == config.rejection_score and threshold is not None:
            axes.axvline(threshold, color="0.3", linestyle=":", label=f"threshold {threshold:.3f}")
        axes.set(title=SCORES[name], xlabel="score")
        axes.legend(loc="upper left")
        rates = roc_curve(np.repeat([1, 0], [len(known[name]), len(unknown[name])]), both)[:2]
        roc.plot(*rates, color=COLORS[i], linestyle=STYLES[i], label=SCORES[name])
    roc.axhline(0.95, color="0.3", linewidth=1, linestyle=":")
    roc.plot((0, 1), (0, 1), color="0.6", linewidth=1)
    roc.set(title="ROC", xlabel="unknown images accepted", ylabel="known images accepted")
    roc.legend(loc="lower right")
    save_figure(figure, picture, 110)
