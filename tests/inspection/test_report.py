"""What is said and shown of a table of images, whatever they are called."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, Image
from PIL import ImageOps

from hf_protosphere.data.pixels import undecoded
from hf_protosphere.inspection.report import (
    BROKEN,
    COPIES,
    LEAKS,
    OUTLIERS,
    WRONG,
    draw_suspects,
    format_report,
    report_of,
    suspects,
)
from tests.data import image

LONG = "a class whose name is longer than a thumbnail is wide $x_1$"


@pytest.fixture
def table():
    """Six images: one as it should be, a broken one, two copies, a wrong label, and an outlier."""
    rows = {
        "image": ["train[0]", "train[1]", "train[2]", "train[3]", "test[0]", "test[1]"],
        "split": ["train"] * 4 + ["test"] * 2, "file": ["a/b/c.png", "", "", "", "", ""],
        "label": ["cat", "cat", "dog", LONG, "cat", "dog"], "suggested_label": ["", "", "", "cat", "", ""],
        "label_score": [0.1, np.nan, 0.2, 0.97, 0.3, 0.4], "outlier_score": [0.5, np.nan, 0.4, 0.3, 0.4, 0.9],
        "duplicate_of": ["", "", "train[0]", "", "train[0]", ""],
        "similarity": [np.nan, np.nan, 0.8, np.nan, 1.0, np.nan],
        "width": [8, 0, 8, 8, 8, 10], "height": [8, 0, 8, 8, 8, 6], "mode": ["RGB", "", "RGB", "L", "RGB", "RGB"],
        "error": ["", "cut short", "", "", "", ""], "content": ["x"] * 6, "first": [0, 1, 0, 3, 0, 5],
    }  # fmt: skip
    return pd.DataFrame(rows).astype({"label": pd.CategoricalDtype(["cat", "dog", LONG, "none"])})


def test_suspects_are_ranked_by_kind(table):
    found = {kind: rows.index.tolist() for kind, rows in suspects(table).items()}
    assert found == {BROKEN: [1], LEAKS: [4], COPIES: [2], WRONG: [3], OUTLIERS: [5, 0, 2, 4, 3]}
    assert suspects(table.iloc[:1].assign(outlier_score=np.nan)) == {}


def test_the_report_counts_and_is_json(table):
    report = report_of(table, 2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["classes"] == [
        {"label": "cat", "test": 1, "train": 2}, {"label": "dog", "test": 1, "train": 1},
        {"label": LONG, "test": 0, "train": 1}, {"label": "none", "test": 0, "train": 0},
    ]  # fmt: skip
    assert report["modes"] == [{"mode": "L", "test": 0, "train": 1}, {"mode": "RGB", "test": 2, "train": 2}]
    assert report["sizes"][4] == {"split": "test", "quantile": 0.5, "width": 9.0, "height": 7.0}
    outliers = report["suspects"][OUTLIERS]
    assert (outliers["images"], [image["image"] for image in outliers["worst"]]) == (5, ["test[1]", "train[0]"])
    assert report["suspects"][BROKEN]["worst"][0]["label_score"] is None


def test_tables_name_suspects(table):
    lines = [" ".join(line.split()) for line in format_report(table).splitlines()]
    for line in (
        "cat 1 2", "RGB 2 2", "train 0.0 8.0 8.0", f"1 {BROKEN}", "train[1] cat cut short",
        "train[3] a class whose name is longer than a t... cat", "test[0] cat train[0]", "train[2] dog train[0]",
        f"5 {OUTLIERS}", "train[0] b/c.png cat 0.5",
    ):  # fmt: skip
        assert line in lines


def test_the_sheet_shows_copies_beside_their_originals(table, tmp_path, figures):
    images = Dataset.from_dict({"image": [image(i) for i in range(6)]}, features=Features({"image": Image()}))
    draw_suspects(table, undecoded(images), 2, tmp_path / "sheet.png")
    (figure,) = figures
    strips = {axes.get_title(loc="left"): axes for axes in figure.axes}
    captions = {kind: [label.get_text() for label in axes.get_xticklabels()] for kind, axes in strips.items()}
    assert captions == {
        LEAKS: ["test[0]\ncat\nof train[0]"], COPIES: ["train[2]\ndog\nof train[0]"],
        WRONG: ["train[3]\na class whose name …\nrather cat?"], OUTLIERS: ["test[1]\ndog", "train[0]\ncat"],
    }  # fmt: skip
    shown = strips[LEAKS].images[0].get_array()
    for i, half in zip((0, 4), np.split(shown, 2)):  # the original, and below it the copy
        assert np.array_equal(half, np.asarray(ImageOps.pad(image(i), half.shape[:2])))
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_where_nothing_is_suspicious_the_sheet_says_so(table, tmp_path, figures):
    good = table.iloc[:1].assign(outlier_score=np.nan)
    draw_suspects(good, None, 2, tmp_path / "sheet.png")
    assert figures[0].get_suptitle() == "nothing to look at"
