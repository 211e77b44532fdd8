"""What `protosphere inspect` says of a table of images: tables for people and programs, and a sheet of suspects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import ImageOps

from ..data.pixels import read
from ..plots.style import new_figure, save_figure
from ..plots.text import for_figure

BROKEN, LEAKS, COPIES = "images that cannot be decoded", "copies between splits", "copies within a split"
WRONG, OUTLIERS = "likely wrong labels", "images, the farthest from others first"
DETAILS = {BROKEN: "error", LEAKS: "duplicate_of", COPIES: "duplicate_of", WRONG: "suggested_label"}
SHOWN, LINES = 5, 20  # suspects of a kind, and at most so many classes, in the terminal
SIDE = 160  # of a thumbnail, in pixels


def counts(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Images of each class and, of those that can be decoded, each mode, by split; and quantiles of their sizes."""
    good = table[table["error"] == ""]
    sizes = good.groupby("split", sort=False)[["width", "height"]].quantile([0, 0.5, 1])
    classes = pd.crosstab(table["label"], table["split"], dropna=False)
    modes = pd.crosstab(good["mode"], good["split"])
    return {"classes": classes, "modes": modes, "sizes": sizes.rename_axis(["split", "quantile"])}


def suspects(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows that are worth a look, by kind, the worst first."""
    copies = table[table["duplicate_of"] != ""].sort_values("similarity", ascending=False, kind="stable")
    between = copies["split"] != table["split"][copies["first"]].values
    wrong = table[table["suggested_label"] != ""].sort_values("label_score", ascending=False, kind="stable")
    outliers = table.dropna(subset="outlier_score").sort_values("outlier_score", ascending=False, kind="stable")
    found = {BROKEN: table[table["error"] != ""], LEAKS: copies[between], COPIES: copies[~between], WRONG: wrong}
    return {kind: rows for kind, rows in (found | {OUTLIERS: outliers}).items() if len(rows)}


def report_of(table: pd.DataFrame, worst: int) -> dict[str, Any]:
    """As inspection.json holds it: `counts`, and of each kind of `suspects` how many "images" and the "worst"."""

    def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
        return json.loads(rows.to_json(orient="records"))  # NaN as null

    found = {kind: {"images": len(rows), "worst": records(rows.head(worst))} for kind, rows in suspects(table).items()}
    return {name: records(rows.reset_index()) for name, rows in counts(table).items()} | {"suspects": found}


def format_report(table: pd.DataFrame) -> str:
    """Tables for people."""
    tables = [rows.to_string(max_rows=LINES) for rows in counts(table).values() if len(rows)]
    for kind, rows in suspects(table).items():
        shown = rows.head(SHOWN)[["image", "file", "label", DETAILS.get(kind, "outlier_score")]]
        shown = shown.assign(file=shown["file"].map(lambda path: "/".join(Path(path).parts[-2:])))
        tables.append(f"{len(rows):,} {kind}\n{shown.to_string(index=False, max_colwidth=40)}")
    return "\n\n".join(tables)


def draw_suspects(table: pd.DataFrame, images: Dataset, worst: int, picture: Path) -> None:
    """A strip of thumbnails of so many suspects of each kind; above each copy the image that it is a copy of."""

    def strip(rows: pd.Index | pd.Series) -> np.ndarray:
        shown = (read(images[int(row)]["image"], SIDE) for row in rows)
        return np.hstack([ImageOps.pad(image, (SIDE, SIDE), color="white") for image in shown])

    found = {kind: rows.head(worst) for kind, rows in suspects(table).items() if kind != BROKEN}
    width = max(map(len, found.values()), default=4)
    figure = new_figure(1.4 * width + 0.5, 2.8 * max(len(found), 1))
    figure.suptitle("" if found else "nothing to look at")
    for axes, (kind, rows) in zip(figure.subplots(max(len(found), 1), squeeze=False)[:, 0], found.items()):
        lines = [rows["image"], rows["label"]]
        if kind in DETAILS:
            lines.append(rows[DETAILS[kind]].map("rather {}?".format if kind == WRONG else "of {}".format))
        axes.imshow(np.vstack([*map(strip, [rows["first"], rows.index] if kind in (LEAKS, COPIES) else [rows.index])]))
        axes.set_title(kind, loc="left")
        axes.set(xlim=(0, width * SIDE), yticks=[], frame_on=False)
        captions = ["\n".join(map(for_figure, words)) for words in zip(*lines)]
        axes.set_xticks([(i + 0.5) * SIDE for i in range(len(rows))], captions, fontsize=8)
    save_figure(figure, picture, 110)
