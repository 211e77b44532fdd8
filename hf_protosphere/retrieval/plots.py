"""Pictures of neighbours: a row for each query, the query first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..data.pixels import rgb
from ..plots.style import COLORS, new_figure, save_figure
from ..plots.text import for_figure

RIGHT, WRONG = COLORS[2], COLORS[1]  # green and vermilion, told apart by the colour-blind
SHOWN_QUERIES, SHOWN_NEIGHBOURS = 20, 12


@dataclass(frozen=True)
class PicturedImage:
    """An image, and what is written above it."""

    image: Image.Image
    caption: str
    is_right: bool | None = None  # of the query's class; None when a label is not known


def plot_neighbours(rows: Sequence[tuple[PicturedImage, Sequence[PicturedImage]]], picture: Path) -> None:
    """Queries, each with its neighbours, nearest first; the first 20 and 12 of each are shown."""
    rows = [(query, neighbours[:SHOWN_NEIGHBOURS]) for query, neighbours in rows[:SHOWN_QUERIES]]
    columns = 1 + max(len(neighbours) for _, neighbours in rows)
    figure = new_figure(1.35 * columns + 0.3, 1.65 * len(rows) + 0.6)
    for axes, (query, neighbours) in zip(figure.subplots(len(rows), columns, squeeze=False), rows):
        for panel, shown in zip(axes, [query, *neighbours]):
            small = rgb(shown.image).copy()
            small.thumbnail((224, 224))
            panel.imshow(small)
            panel.set_title(for_figure(shown.caption, 30), fontsize=8)
            panel.set(xticks=[], yticks=[])
            color = {True: RIGHT, False: WRONG, None: "0.7"}[shown.is_right]
            color, width = ("black", 1) if shown is query else (color, 3)
            # Not by colour alone: dashes serve black and white.
            style = "--" if shown.is_right is False else "-"
            panel.spines[:].set(color=color, linewidth=width, linestyle=style)
        for panel in axes[1 + len(neighbours) :]:
            panel.axis("off")
    title = "Queries (left) and the nearest images, with their cosines"
    if any(shown.is_right is not None for _, neighbours in rows for shown in neighbours):
        title += "\ngreen: of the query's class; dashed red: of another"
    figure.suptitle(title, fontsize="medium")
    save_figure(figure, picture, 110)
