"""The numbers of a suite by hand, their table in text and Markdown, and their picture."""

from types import SimpleNamespace

import pytest

from scripts.transfer.report import (
    format_suite,
    markdown,
    plot_improvements,
    short_names,
)
from scripts.transfer.transfer_suite import compare

MODELS = ["digits-first-run", "digits-second-run"]
MODES = ["knn", "prototypes"]
METRICS = {"lower": "accuracy", "upper": "mean_class_accuracy", "third": "accuracy"}
VALUES = {
    ("lower", MODELS[0]): {"knn": 0.5, "prototypes": 0.4},
    ("lower", MODELS[1]): {"knn": 0.6, "prototypes": 0.5},
    ("upper", MODELS[0]): {"knn": 0.8, "prototypes": 0.0},
    ("upper", MODELS[1]): {"knn": 0.6, "prototypes": 0.1},
    ("third", MODELS[0]): {"knn": 0.1},  # and nothing of the second model
}


def entry(dataset, model):
    metric = METRICS[dataset]
    other = {"accuracy": 1.0, "mean_class_accuracy": 1.0, "split": "test", "num_images": 9}
    rows = {mode: other | {metric: value} for mode, value in VALUES.get((dataset, model), {}).items()}
    return SimpleNamespace(
        dataset=dataset, model=model, metric=metric, rows=lambda: rows, arguments=SimpleNamespace(modes=MODES)
    )


@pytest.fixture
def results():
    entries = [entry(dataset, model) for dataset in METRICS for model in MODELS]
    return compare(entries, {("third", MODELS[1]): "no such | images\nat all"})


def test_means_and_improvements(results):
    rows = {(row["mode"], row["dataset"], row["model"]): row for row in results["rows"]}
    assert {key: row["value"] for key, row in rows.items()} == {
        (mode, *key): value for key, modes in VALUES.items() for mode, value in modes.items()
    }
    assert rows["knn", "lower", MODELS[0]]["improvement"] is None  # the baseline
    assert rows["knn", "lower", MODELS[1]]["improvement"] == pytest.approx(0.2)
    means = {(row["mode"], row["model"]): row for row in results["means"]}
    assert {tuple(row["datasets"]) for row in means.values()} == {("lower", "upper")}
    assert means["knn", MODELS[0]]["value"] == pytest.approx(0.65)
    assert means["knn", MODELS[0]]["improvement"] is None
    assert means["knn", MODELS[1]]["value"] == pytest.approx(0.6)
    assert means["knn", MODELS[1]]["improvement"] == pytest.approx((0.2 - 0.25) / 2)
    # Nothing is relative to a baseline of 0.
    assert means["prototypes", MODELS[1]]["improvement"] is None
    assert results["failures"] == [{"dataset": "third", "model": MODELS[1], "reason": "no such | images\nat all"}]


def test_the_table(results):
    header, _, *table = format_suite(results).split("\n")
    assert header.split() == ["mode", "data", "set", "metric", "first", "(baseline)", "second"]
    assert table[0].split() == ["knn", "lower", "accuracy", "50.00%", "60.00%", "(+20.00%)"]
    assert table[2].split(None, 5) == ["knn", "third", "accuracy", "10.00%", "-", "no such | images"]
    assert table[3].split() == ["knn", "mean", "of", "2", "65.00%", "60.00%", "(-2.50%)"]
    assert table[6].split(None, 5) == ["prototypes", "third", "accuracy", "-", "-", "no such | images"]
    notes = table[8:]
    assert [note.split(":")[0].split()[0] for note in notes] == ["mean", "Means", "In"]
    assert "(metric - baseline) / baseline" in notes[-1]


def test_reasons_that_differ_name_their_models():
    failures = {("third", MODELS[0]): "gone", ("third", MODELS[1]): "broken"}
    entries = [entry("lower", model) for model in MODELS]
    entries += [SimpleNamespace(**vars(e) | {"dataset": "third", "rows": dict}) for e in entries]
    table = format_suite(compare(entries, failures)).split("\n")
    assert table[3].endswith("-  first: gone; second: broken")
    assert format_suite(compare(entries, {})).split("\n")[3].endswith("-  to do")


def test_the_table_as_markdown(results):
    text = markdown(results)
    lines = [line for line in text.split("\n") if line.startswith("|")]
    cells = [line.replace("\\|", "").count("|") for line in lines]
    assert cells == [7] * (2 + 8)  # six columns, whatever a reason holds
    assert lines[2] == "| knn | lower | accuracy | 50.00% | 60.00% (+20.00%) |  |"
    assert "| knn | upper | mean per class |" in text
    assert "no such \\| images |" in text


def test_of_one_model_there_is_no_baseline():
    results = compare([entry("lower", MODELS[0]), entry("upper", MODELS[0])], {})
    assert results["baseline"] is None
    assert [row["improvement"] for row in results["rows"]] == [None] * 4
    assert "baseline" not in format_suite(results)


def test_the_picture_has_a_bar_for_each_improvement(results, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bars, draw = [], Axes.bar
    monkeypatch.setattr(Axes, "bar", lambda self, x, y, **more: bars.append(y) or draw(self, x, y, **more))
    plot_improvements(results, tmp_path / "improvements.png")
    assert (tmp_path / "improvements.png").read_bytes().startswith(b"\x89PNG")
    assert bars == [pytest.approx([20.0, -25.0, -2.5]), pytest.approx([25.0])]


def test_short_names():
    assert short_names(["o/first/run", "o/second/run"]) == ["first", "second"]
    assert short_names(["a-b-c", "a-c"]) == ["b-c", "c"]
    assert short_names(["resnet18", "resnet50"]) == ["resnet18", "resnet50"]
    assert short_names(["user/one-name"]) == ["one-name"]
