"""The log of metrics: a line a record, and none that is not whole."""

import os

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs.files import append_json
from hf_protosphere.runs.metrics_log import begin_metrics, read_metrics


def test_the_log_forgets_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert begin_metrics(path) == path
    for step in (1, 2, 3):
        append_json(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "los')  # a kill in the middle of a line
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    append_json(begin_metrics(path, 2), {"step": 3, "again": True})
    assert read_metrics(path)[-1] == {"step": 3, "again": True}
    assert len(path.read_text().splitlines()) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_no_log_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    begin_metrics(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_record_is_read_at_once_and_costs_no_wait_for_the_disk(tmp_path, monkeypatch):
    log = begin_metrics(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(AssertionError("waited")))
    append_json(log, {"step": 1, "values": {"a": [0.1, float("inf")]}})
    assert read_metrics(log) == [{"step": 1, "values": {"a": [0.1, float("inf")]}}]


UNMEASURED = '{"step": 1, "train_neural_collapse": {"attained": 3}}'


@pytest.mark.parametrize("line", ["{", "[1]", '{"epoch": 1}', '{"step": "x"}', UNMEASURED])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ArgumentError, match=rf"^{path}, line 2, .* Remove that line"):
        read_metrics(path)
