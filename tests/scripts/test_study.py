"""The study: rows that are not measured twice, differences in pairs, and stages on small data."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hf_protosphere.data.dataset import ImageDataset
from hf_protosphere.data.image_cache import FeatureSplit
from scripts.study import rows as rows_module
from scripts.study import tables
from scripts.study.frozen_features import report as frozen_report
from scripts.study.frozen_features import stage as frozen
from scripts.study.frozen_features.methods import CROSS_ENTROPY, METHODS, PROTOTYPES
from scripts.study.full_cifar10 import report as full_report
from scripts.study.full_cifar10 import stage as full
from scripts.study.full_cifar10.speed import speeds
from scripts.study.rows import Row, Work, measure
from scripts.study.small_network import report as small_report
from scripts.study.small_network import stage as small
from scripts.study.tables import END, START, Results
from scripts.study.temperature import report as temperature_report
from scripts.study.temperature import stage as temperature
from tests import FIXTURES

CLASSES = 10


def features(count=12, seed=0):
    """Ten classes around corners of a cube in the 96 dimensions of `test_resnet`'s features."""
    generator = torch.Generator().manual_seed(seed)
    splits = {}
    for role in ("train", "validation", "test"):
        labels = torch.arange(CLASSES).repeat(count)
        noise = 0.3 * torch.rand(2, len(labels), 96, generator=generator)
        versions = torch.eye(96)[labels] + noise
        splits[role] = FeatureSplit(versions if role == "train" else versions[0], labels)
    return ImageDataset(splits, [f"class {i}" for i in range(CLASSES)])


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "features_of_data", lambda name, path, model: features(seed=len(name)))
    monkeypatch.setattr(frozen, "TAIL", (12, 2))
    plain = frozen.arguments_of

    def quick(row, model, options, images=0):
        arguments = plain(row, "resnet18", options, images)
        some = {"backbone": "test_resnet", "pretrained": False, "epochs": 2, "evaluate_every": 2}
        return arguments.but(**some, batch_size=min(arguments.batch_size, 20), image_size=32)

    monkeypatch.setattr(frozen, "arguments_of", quick)
    return Work({"clothing": "a", "cifar10": "b"}, tmp_path, {"model": "test_resnet"})


def double(row, work):
    (work.folder / "measured").open("a").write(f"{row}\n")
    return {"twice": 2 * row.seed}


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    # A new process would import all of the library: ten seconds.
    monkeypatch.setattr(rows_module, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    rows = [Row("task", "data", "a method, 0.5", seed) for seed in (1, 2)]
    work = Work({}, tmp_path, {})
    rows[0].path(tmp_path).parent.mkdir(parents=True)
    rows[0].path(tmp_path).write_text(json.dumps({"twice": 7}))
    found = measure(rows, double, work, jobs=1)
    assert [found[row]["twice"] for row in rows] == [7, 4]
    assert (tmp_path / "measured").read_text() == "task, data, a method, 0.5, seed 2\n"
    assert measure(rows, double, work, jobs=1) == found


def test_differences_are_of_the_same_seeds():
    rows = {
        Row("t", "d", method, seed): {"x": base + seed}
        for method, base in (("ours", 3.0), ("theirs", 1.0))
        for seed in (2, 0, 1)
    }
    results = Results(rows)
    ours, theirs = (results.values("t", "d", m, lambda r: r["x"]) for m in ("ours", "theirs"))
    assert ours == [3.0, 4.0, 5.0]
    assert tables.difference(ours, theirs) == (2.0, 0.0)
    # Student's t of two degrees of freedom at 97.5 %: 4.303.
    mean, half = tables.difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3), abs=1e-3))
    assert tables.verdict([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).startswith("level")
    text = tables.table(results, "t", "d", {"x": lambda r: r["x"]}, against="theirs")
    assert "| ours | 4.0 ± 1.0 | +2.0 ± 0.0 |" in text


@pytest.mark.parametrize("task", [task for task in METHODS if task != "batch"])
def test_a_head_is_measured(work, task):
    measured = frozen.measure(Row(task, "clothing", "NTCE", 0), work)
    assert 0 < measured["test_accuracy"] <= 100
    assert 0 <= measured["scaled_calibration_error"] < measured["calibration_error"] + 5
    if task == "classify":
        assert measured["test_collapse"]["class_alignment"] > 50
        assert set(measured["far"]) == set(frozen_report.SCORES)
    if task == "open":
        assert {"near", "known_map", "unseen_map", "unseen_hidden_map"} < measured.keys()
        assert 30 < measured["near"]["neighbours"] <= 100


def test_a_tail_and_few_images_are_drawn_as_they_say():
    data = features(count=12)
    for task, counts in (("tail", None), ("5 a class", [5] * CLASSES)):
        drawn = frozen._few(data, Row(task, "clothing", "NTCE", 3)).class_counts("train")
        assert drawn == counts or (counts is None and min(drawn) == 2 and max(drawn) == 12)


def test_clusters_stand_for_a_hundred_classes(work):
    temperature._classes.cache_clear()
    hundred = temperature._classes("b", "test_resnet", 100, 0)
    few = temperature._classes("b", "test_resnet", 3, 0)
    temperature._classes.cache_clear()
    assert (hundred.num_labels, few.num_labels) == (100, 3)
    labels = hundred.splits["train"].labels
    assert torch.equal(labels // 10, features(seed=7).splits["train"].labels)
    assert sorted(few.splits["train"].labels.unique().tolist()) == [0, 1, 2]


def fake(names):
    return dict.fromkeys(names, 50.0)


def test_the_reports_are_written_between_their_marks(tmp_path):
    collapse = fake(tables.SHOWN.values())
    names = (
        "test_accuracy", "validation_accuracy", "known_map", "known_hidden_map", "unseen_map",
        "unseen_hidden_map", "calibration_error", "scaled_calibration_error", "scaled_nll",
        "test_class_accuracy", "test_means_class_accuracy", "validation_class_accuracy",
        "validation_means_class_accuracy", "seconds", "test_means_accuracy",
        "transfer_accuracy", "clean_error", "corruption_error",
    )  # fmt: skip
    scores = fake(frozen_report.SCORES)
    of_frozen = fake(names) | {"test_collapse": collapse, "train_collapse": collapse, "far": scores, "near": scores}
    rows = {
        "frozen_features": (frozen_report, frozen.rows(["clothing", "cifar10"]), of_frozen),
        "small_network": (small_report, small.rows(["cifar10"]), of_frozen),
        "full_cifar10": (full_report, full.rows(["cifar10", "clothing"]), of_frozen),
        "temperature": (
            temperature_report, temperature.rows(["cifar10"]), {"accuracy": 50.0, "temperature": 1}
        ),
    }  # fmt: skip
    for name, (report, of_stage, measured) in rows.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "RESULTS.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
        better = {row: {**measured, "test_accuracy": 50.0 + row.seed} for row in of_stage}
        report.write(Results(better), folder)
        text = (folder / "RESULTS.md").read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert (folder / f"{name}.png").stat().st_size > 5000
        for method in ("NTCE", "NONL", "NormFace"):
            assert f"| {method}" in text
        first = {row: measured for row, measured in better.items() if row.seed == 0}
        report.write(Results(first), folder)
        assert "±" not in (folder / "RESULTS.md").read_text()  # no deviation of one seed
        drawn = (folder / f"{name}.png").read_bytes()
        more = {row: measured for row, measured in first.items() if row.task in ("tail", "uses")}
        if more:  # the picture, which is of another task, stays
            report.write(Results(more), folder)
            assert (folder / f"{name}.png").read_bytes() == drawn
    assert set(CROSS_ENTROPY) | set(PROTOTYPES) <= set(METHODS["classify"])


def test_how_fast_a_run_collapses_is_read_from_its_records(tmp_path):
    folder = shutil.copytree(FIXTURES / "version_0_1_0" / "finished", tmp_path / "run")
    *_, cells = (line.strip("| ").split(" | ") for line in speeds([folder]).splitlines())
    assert cells[0] == "nonl"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    attained = [r["validation_neural_collapse"]["attained"]["nc1_cdnv"] for r in records]
    epochs = [record["epoch"] for record, value in zip(records, attained) if value >= 50]
    assert cells[2] == str(epochs[0] if epochs else "-")
    assert cells[-1] == f"{attained[-1]:.1f}"
