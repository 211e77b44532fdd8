"""What all pictures share: colours, line styles, and a figure without global state."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by the colour-blind; line styles serve black and white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def new_figure(width: float, height: float) -> "Figure":
    """Without pyplot: no global state, no display, safe in any process. In inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", picture: Path | BinaryIO, dpi: int) -> None:
    """In the format that the suffix says. Letters that the font lacks are boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        figure.savefig(picture, dpi=dpi)


def draw_shares(axes: "Axes", bins: np.ndarray, groups: Mapping[str, np.ndarray]) -> None:
    """Histograms of two groups of images, over one another, and room for their legend."""
    for (label, values), color, hatch, style in zip(groups.items(), COLORS, (None, "///"), STYLES):
        shares = {"weights": np.full(len(values), 100 / len(values)), "color": color}
        axes.hist(values, bins, alpha=0.35, hatch=hatch, **shares)
        axes.hist(values, bins, histtype="step", linestyle=style, linewidth=1.8, label=label, **shares)
    axes.set_ylabel("share of the images (%)")
    axes.margins(y=0.25)
