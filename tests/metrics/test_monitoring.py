"""What measuring costs, and when each metric first attains its target."""

import time

import pytest

from hf_protosphere.metrics.monitoring import Stopwatch, first_reached


def test_the_stopwatch_counts_time_inside_once():
    stopwatch = Stopwatch()
    with stopwatch:
        time.sleep(0.02)
        with stopwatch:
            time.sleep(0.02)
    between = stopwatch.seconds
    assert 0.04 <= between < 0.08
    time.sleep(0.02)
    assert stopwatch.seconds == between
    with pytest.raises(KeyError), stopwatch:
        raise KeyError  # counts to here, and goes on afterwards
    with stopwatch:
        time.sleep(0.01)
    assert stopwatch.seconds >= between + 0.01


def test_first_reached_is_by_split_and_not_later():
    def record(step, train, validation=None):
        line = {"step": step, "epoch": step / 4, "train_neural_collapse": {"attained": train}}
        if validation:
            line["validation_neural_collapse"] = {"attained": validation}
        return line

    records = [
        {"step": 1, "epoch": 0.25, "train_loss": 1.0},
        record(2, {"a": 10.0, "b": 95.0}),
        record(4, {"a": 99.0, "b": 20.0}, {"a": 94.9}),
        record(6, {"a": 100.0, "b": 96.0}, {"a": 90.0}),
    ]
    assert first_reached(records) == {
        "train": {"b": {"step": 2, "epoch": 0.5}, "a": {"step": 4, "epoch": 1.0}},
        "validation": {},
    }
    assert first_reached(records, 90)["validation"] == {"a": {"step": 4, "epoch": 1.0}}
