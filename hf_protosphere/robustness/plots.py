"""Pictures of corruptions: the errors that they cause, and one image under each."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor

from ..plots.style import COLORS, new_figure, save_figure
from ..plots.text import for_figure
from .corrupted_data import ResizedImages
from .corruptions import corrupt

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_robustness(report: dict[str, Any], split: Dataset, processor: BaseImageProcessor, folder: Path) -> list[Path]:
    """`corruptions.png`, the errors of a report of `corruption_errors`, and, if its images were
    corrupted here, `corrupted_images.png`, the split's first image under every corruption of it."""
    pictures = [folder / "corruptions.png"]
    plot_corruption_errors(report, pictures[0])
    if "num_corrupted_images" not in report:  # those are read from a folder
        pictures.append(folder / "corrupted_images.png")
        image = ResizedImages(split, processor)[0]["pixel_values"].permute(1, 2, 0).numpy()
        plot_corrupted_images(image, list(report["errors"]), report["severities"][-1], pictures[1])
    return pictures


def plot_corruption_errors(report: dict[str, Any], picture: Path) -> None:
    """The error under each corruption in a report of `corruption_errors`, a dot a severity; a baseline's beside it."""
    names = [name.replace("_", " ") for name in report["errors"]]
    figure = new_figure(max(7, 0.75 * len(names) + 3), 5)
    axes = figure.subplots()
    baseline = report.get("baseline")
    _draw(axes, report, -0.15 if baseline else 0, "o", COLORS[0], "the model")
    if baseline:
        _draw(axes, baseline, 0.15, "s", COLORS[1], for_figure(f"baseline {baseline.get('model', '')}", 60))
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    shown = ", ".join(map(str, report["severities"]))
    axes.set(ylabel="error (%)", ylim=(0, None))
    axes.set_title(f"Errors on corrupted images: severities {shown}, darker is more severe")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="best")
    save_figure(figure, picture, 120)


def plot_corrupted_images(image: np.ndarray, corruptions: list[str], severity: int, picture: Path) -> None:
    """An image (H, W, 3) uint8, clean and under each corruption."""
    shown = {"clean": image} | {name: corrupt(image, name, severity, seed=0) for name in corruptions}
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(2 * columns, 2.25 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, pixels) in zip(panels, shown.items()):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(name.replace("_", " "), fontsize="small")
    for axes in panels:
        axes.axis("off")
    figure.suptitle(f"One image under every corruption at severity {severity}")
    save_figure(figure, picture, 110)


def _draw(axes: "Axes", report: dict[str, Any], shift: float, marker: str, color: str, label: str) -> None:
    errors = 100 * np.array(list(report["errors"].values()))  # (corruptions, severities)
    places = np.arange(len(errors)) + shift
    axes.vlines(places, errors.min(1), errors.max(1), color=color, alpha=0.4, linewidth=1)
    for severity, column in zip(report["severities"], errors.T):
        name = label if severity == report["severities"][-1] else None
        axes.scatter(places, column, marker=marker, color=color, alpha=0.1 + 0.18 * severity, label=name)
    style = {"linestyle": "--" if marker == "o" else ":", "linewidth": 1}
    axes.axhline(100 * report["clean_error"], color=color, label=f"{label}, clean images", **style)
