"""The page of an evaluation, report.html: one file that works offline, with its pictures and tables beside it. What it
says is in `report_template.html`."""

import base64
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from jinja2 import Environment
from torch import Tensor

from ..data.labels import labels_of
from ..data.pixels import read, undecoded
from ..metrics.neural_collapse import METRICS
from ..metrics.snapshot import Snapshot
from ..open_set.plots import plot_reliability
from ..plots.sphere import NAMED_CLASSES, plot_sphere
from ..plots.style import COLORS, STYLES, new_figure, save_figure
from ..plots.text import for_figure
from .outcomes import calibration, confusions
from .report import LAYER_TITLES

TABLES = ("classes.csv", "confusion.csv", "errors.csv", "differences.csv")
PAGE_FILES = ("report.html", *TABLES, "confusion.png", "reliability.png", "layers.png", "sphere_narrow.png")
SHOWN, SIDE = 12, 160  # thumbnails, and their pixels
TEMPLATE = Path(__file__).with_name("report_template.html")
Nearest = Sequence[Sequence[tuple[int, float]]]


def nearest_images(
    embed: Callable[[Dataset], Tensor], images: Dataset, train: Dataset, outcomes: pd.DataFrame
) -> Nearest:
    """What the most confident errors are like: for each, a training image of the given and one of the predicted class,
    and its cosine, which is −∞ where the class has none. Training images of other classes are not embedded."""
    worst = outcomes.query("given != predicted").head(SHOWN)
    classes = worst[["given", "predicted"]].to_numpy(object)  # (E, 2)
    given = np.array(train.features["label"].names, object)[labels_of(train)]
    among = np.flatnonzero(np.isin(given, classes))
    if not len(among):
        return []
    cosines = embed(images.select(worst.index.tolist())).float() @ embed(train.select(among.tolist())).float().T
    of_class = torch.tensor(classes[:, :, None] == given[among])  # (E, 2, M)
    best, found = cosines[:, None].where(of_class, -torch.inf).max(-1)
    return [[*zip(*pair)] for pair in zip(among[found].tolist(), best.tolist())]


def write_page(
    folder: Path, report: dict[str, Any], outcomes: pd.DataFrame, images: Dataset, snapshot: Snapshot,
    train: Dataset | None = None, nearest: Nearest = (),
) -> list[Path]:  # fmt: skip
    """The page, its tables and its own pictures, into a folder whose other pictures it shows too. Returns the paths of
    what it wrote. `nearest` is what `nearest_images` finds in `train`."""
    before, names = {*folder.iterdir()}, [row["class"] for row in report["classes"]]
    plot_confusions(outcomes, names, folder / "confusion.png")
    plot_reliability({"Confidence": calibration(outcomes)}, folder / "reliability.png")
    plot_sphere(snapshot, folder / "sphere_narrow.png", stacked=True)
    if "by_layer" in report:
        plot_layers(report["by_layer"], folder / "layers.png")

    files = pd.DataFrame({"file": undecoded(images).flatten()["image.path"][:]}, dtype=object)
    outcomes = files.join(outcomes, how="right").rename_axis("row").reset_index()
    tables = {"classes": pd.DataFrame(report["classes"], dtype=object), "confusion": confusions(outcomes)}
    tables["errors"] = outcomes.query("given != predicted")
    if "comparison" in report:
        tables["differences"] = outcomes.query("predicted != other_predicted")
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    pictures = {path.stem: _address(path.read_bytes(), "png") for path in folder.glob("*.png")}
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text("utf-8"))
    shown = {"report": report, "metrics": METRICS, "pictures": pictures, "nearest": nearest, "shown": SHOWN, **tables}
    content = page.render(shown, images=images, train=train, thumbnail=_thumbnail)
    (folder / "report.html").write_text(content, encoding="utf-8")
    return sorted({*folder.iterdir()} - before)


def _thumbnail(images: Dataset, row: int) -> str:
    image, made = read(undecoded(images.select([row]))[0]["image"], SIDE), BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(made, "JPEG", quality=85)
    return _address(made.getvalue(), "jpeg")


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def plot_confusions(outcomes: pd.DataFrame, class_names: Sequence[str], picture: Path) -> None:
    """What share of the images of each class is taken for which; of many classes, those that are confused most."""
    from sklearn.metrics import ConfusionMatrixDisplay

    if len(class_names) > NAMED_CLASSES:
        pairs = confusions(outcomes.query("given != predicted")).head(NAMED_CLASSES)[["given", "predicted"]]
        shown = pd.unique(pairs.to_numpy().ravel())[: NAMED_CLASSES - 1]
        rest = f"{len(class_names) - len(shown):,} other classes"
        outcomes = outcomes[["given", "predicted"]].where(outcomes[["given", "predicted"]].isin(shown), rest)
        class_names = [*shown, rest]
    figure = new_figure(4 + 0.42 * len(class_names), 3 + 0.42 * len(class_names))
    display = ConfusionMatrixDisplay.from_predictions(
        outcomes["given"], outcomes["predicted"], labels=class_names, display_labels=[*map(for_figure, class_names)],
        normalize="true", values_format=".0%", xticks_rotation="vertical", cmap="cividis", ax=figure.subplots(),
        im_kw={"vmin": 0, "vmax": 1}, text_kw={"fontsize": 7},
    )  # fmt: skip
    for text in display.text_.flat:
        text.set_visible(text.get_text() != "0%")
    display.ax_.set(xlabel="predicted class", ylabel="given class", title="shares of the images of each class")
    save_figure(figure, picture, 110)


def plot_layers(layers: Sequence[dict[str, Any]], picture: Path) -> None:
    """What `collapse_by_layer` measured: how much of its optimum each metric attains, over depth."""
    figure = new_figure(8, 5)
    axes, names = figure.subplots(), [layer["layer"] for layer in layers]
    for (name, title), color, style in zip(LAYER_TITLES.items(), COLORS, STYLES):
        attained = [layer["attained"].get(name, np.nan) for layer in layers]
        axes.plot(names, attained, color=color, linestyle=style, marker="o", label=title)
    axes.set(xlabel="layer", ylabel="attained of the optimum (%)", ylim=(-3, 103))
    axes.legend(loc="upper left")
    save_figure(figure, picture, 110)
