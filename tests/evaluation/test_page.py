"""The page: what it says of images, that names are text and nothing else, and how a browser shows it."""

import csv
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix

from hf_protosphere.evaluation import page
from hf_protosphere.evaluation.outcomes import by_class, compare, interval, outcome_table
from hf_protosphere.evaluation.page import nearest_images, plot_confusions, plot_layers, write_page
from hf_protosphere.metrics.neural_collapse import NeuralCollapse
from hf_protosphere.metrics.snapshot import SnapshotCollector

HOSTILE = "<script>alert(1)</script>\" onload='x"
NAMES = ["shirt", HOSTILE, "shoe", "hat"]  # of which there is no hat


def split_of(labels, folder, seed=0):
    """Images of noise in files of hostile names."""
    folder.mkdir()
    rng, paths = np.random.default_rng(seed), []
    for i in range(len(labels)):
        paths.append(str(folder / f"<b>{i}&.png"))
        Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(paths[-1])
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": paths, "label": labels.tolist()}, features)


def embeddings_and_logits(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(F.one_hot(labels, 4) + 0.6 * torch.randn(len(labels), 4, generator=generator), dim=1)
    return embeddings, 5 * embeddings


def table_of(labels, logits, names):
    return outcome_table([(labels, logits.argmax(-1), logits.double().softmax(-1).amax(-1))], names)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Outcomes of two models, the images, and those for training."""
    folder, labels = tmp_path_factory.mktemp("images"), torch.arange(30) % 3
    ours = table_of(labels, embeddings_and_logits(labels)[1], NAMES)
    theirs = table_of(labels, embeddings_and_logits(labels, seed=1)[1], NAMES).drop(columns="given")
    images, train = split_of(labels, folder / "test"), split_of(torch.arange(12) % 3, folder / "train", 1)
    return ours.join(theirs.add_prefix("other_")), images, train


@pytest.fixture(scope="module")
def written(seen, tmp_path_factory):
    outcomes, images, train = seen
    labels = torch.arange(30) % 3
    metric, collector = NeuralCollapse(4, 4), SnapshotCollector(torch.eye(4))
    metric.update(embeddings_and_logits(labels)[0], labels)
    collector.update(embeddings_and_logits(labels)[0], labels)
    n = int((outcomes["given"] == outcomes["predicted"]).sum())
    layers = [{"layer": name, "dim": 4} | metric.compute() for name in ("1", "embeddings")]
    report = {
        "model": "outputs/" + HOSTILE, "dataset": "path/<i>", "split": "test", "num_images": 30, "accuracy": n / 30,
        "mean_class_accuracy": 0.5, "accuracy_interval": interval(n, 30), "expected_calibration_error": 0.1,
        "classes": by_class(outcomes, NAMES), "comparison": {"model": HOSTILE, **compare(outcomes)},
        "neural_collapse": metric.compute(torch.eye(4)) | {"optima": metric.optima}, "by_layer": layers,
        "prediction_sets": {"coverage": 0.934, "promised": 0.9, "mean_size": 1.25},
    }  # fmt: skip
    folder, nearest = (
        tmp_path_factory.mktemp("seen"),
        [[(0, 0.5), (-1, -torch.inf)]] * len(outcomes.query("given != predicted")),
    )
    write_page(folder, report, outcomes, images, collector.snapshot(NAMES, "test"), train, nearest)
    return folder


class Reader(HTMLParser):
    """Elements with their attributes, in their order."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def test_the_page_is_one_file_that_asks_for_nothing_and_can_be_read_aloud(written):
    text = (written / "report.html").read_text()
    found = Reader(text)
    assert not found.all("script", "link", "iframe", "object", "b", "i")  # no name became an element
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    sources = [attributes.get("src", attributes.get("srcset")) for attributes in found.all("img", "source")]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert {a["href"] for a in found.all("a")} == {
        f"{n}.csv" for n in ("classes", "confusion", "errors", "differences")
    }
    assert not re.search(r"url\(|@import|https?:", text.split("<style>")[1].split("</style>")[0])
    assert found.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert all(attributes["alt"].strip() for attributes in found.all("img"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table")) == 4
    assert "Without images, and not measured: hat." in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert re.search(r"93\.4.%<small>90.% promised; 1\.25 classes", text)


def test_the_tables_beside_it_hold_everything(written, seen):
    outcomes, *_ = seen
    tables = {path.stem: list(csv.DictReader(path.open(newline=""))) for path in written.glob("*.csv")}
    assert [row["class"] for row in tables["classes"]] == NAMES
    assert tables["classes"][3]["recall"] == ""
    assert sum(int(row["images"]) for row in tables["confusion"]) == 30
    assert [int(row["row"]) for row in tables["errors"]] == outcomes.query("given != predicted").index.tolist()
    for row in tables["errors"]:
        assert Path(row["file"]).name == f"<b>{row['row']}&.png"
        assert row["given"] == outcomes["given"][int(row["row"])]
    assert [int(row["row"]) for row in tables["differences"]] == outcomes.query(
        "predicted != other_predicted"
    ).index.tolist()


def test_where_nothing_is_wrong_the_tables_have_their_headers(seen, written, tmp_path):
    outcomes, images, _ = seen
    right, labels = outcomes[["given", "confidence"]].assign(predicted=outcomes["given"]), torch.arange(30) % 3
    collector, metric = SnapshotCollector(torch.eye(4)), NeuralCollapse(4, 4)
    collector.update(embeddings_and_logits(labels)[0], labels)
    metric.update(embeddings_and_logits(labels)[0], labels)
    report = {
        "model": "a", "dataset": "b", "split": "test", "num_images": 30, "accuracy": 1.0, "mean_class_accuracy": 1.0,
        "accuracy_interval": interval(30, 30), "expected_calibration_error": 0.1, "classes": by_class(right, NAMES),
        "neural_collapse": metric.compute(torch.eye(4)) | {"optima": metric.optima},
    }  # fmt: skip
    found = write_page(tmp_path, report, right, images, collector.snapshot(NAMES, "test"))
    assert (tmp_path / "errors.csv").read_text().split() == ["row,file,given,confidence,predicted"]
    assert "No image is classified wrong." in (tmp_path / "report.html").read_text()
    assert {path.name for path in found} == {*page.PAGE_FILES} - {"layers.png", "differences.csv"}


def test_errors_are_shown_beside_what_is_nearest_to_them(seen):
    outcomes, images, train = seen
    labels, train_labels = torch.arange(30) % 3, torch.arange(12) % 3
    of_test, of_train = embeddings_and_logits(labels)[0], embeddings_and_logits(train_labels, seed=2)[0]
    asked = []

    def embed(split):
        asked.append(split["row"][:])
        return (of_test, of_train)[len(asked) - 1][asked[-1]]

    numbered = (split.add_column("row", range(len(split))).remove_columns("image") for split in (images, train))
    found = nearest_images(embed, *numbered, outcomes)
    worst = outcomes.query("given != predicted")[: page.SHOWN]
    assert len(found) == len(worst) > 2
    for row, pair in zip(worst.index, found):
        for (near, cosine), name in zip(pair, worst.loc[row, ["given", "predicted"]]):
            cosines = (of_train @ of_test[row]).masked_fill(train_labels != NAMES.index(name), -torch.inf)
            assert cosine == pytest.approx(cosines.max().item())  # −∞ of hats
            assert name == "hat" or near == int(cosines.argmax())


def test_the_matrix_has_its_shares(seen, tmp_path, figures):
    outcomes, *_ = seen
    plot_confusions(outcomes, NAMES, tmp_path / "confusion.png")
    texts = [text for text in figures[-1].axes[0].texts if text.get_visible()]
    shown = {tuple(map(round, text.get_position())): text.get_text() for text in texts}
    matrix = multiclass_confusion_matrix(
        *(torch.tensor([NAMES.index(name) for name in outcomes[of]]) for of in ("predicted", "given")), 4
    )
    assert shown == {(p, g): f"{int(matrix[g, p]) / 10:.0%}" for g, p in matrix.nonzero().tolist()}


def test_of_many_classes_the_matrix_has_those_that_are_confused_most(tmp_path, figures):
    names = [f"class {c}" for c in range(500)]
    labels, predictions = torch.arange(500).repeat(4), torch.arange(500).repeat(4)
    predictions[[7, 507]] = 400  # half of class 7
    predictions[[1400]] = 7
    plot_confusions(outcome_table([(labels, predictions, torch.ones(2000))], names), names, tmp_path / "a.png")
    axes = figures[-1].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["class 7", "class 400", "498 other classes"]
    shown = {tuple(map(round, t.get_position())): t.get_text() for t in axes.texts if t.get_visible()}
    assert shown == {(0, 0): "50%", (1, 0): "50%", (0, 1): "25%", (1, 1): "75%", (2, 2): "100%"}


def test_each_metric_has_its_line_over_the_layers(tmp_path, figures):
    layers = [{"layer": str(i), "attained": {"nc1_cdnv": 10.0 * i}} for i in range(3)]
    plot_layers(layers, tmp_path / "layers.png")
    (line,) = (line for line in figures[-1].axes[0].lines if line.get_label() == "NC1 CDNV")
    assert line.get_ydata().tolist() == [0, 10, 20]


@pytest.mark.slow  # starts Chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_at_every_width(written, width, browser):
    tab, said, asked = browser.new_page(viewport={"width": width, "height": 900}), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((written / "report.html").as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [(written / "report.html").as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert said == []
