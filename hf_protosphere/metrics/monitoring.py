"""Neural collapse over a training: its records, when each metric arrives, what measuring costs."""

import time
from collections.abc import Iterable, Mapping
from typing import Any


class Stopwatch:
    """Seconds spent inside `with stopwatch:`; inner uses of the same one count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._entered: list[tuple[float, float]] = []  # seconds until then, and when

    def __enter__(self) -> None:
        self._entered.append((self.seconds, time.perf_counter()))

    def __exit__(self, *error: Any) -> None:
        before, started = self._entered.pop()
        self.seconds = before + time.perf_counter() - started


def first_reached(
    records: Iterable[Mapping[str, Any]], target: float = 95.0
) -> dict[str, dict[str, dict[str, float]]]:
    """When each metric of neural collapse first attained `target` per cent of its optimum.

    Args:
        records: of a run's metrics.jsonl, in their order.

    Returns:
        {"train": {"nc1_cdnv": {"step": 120, "epoch": 4}}, "validation": {...}}, without the
        metrics that never did. "overall" is in it: the step at which all of them had.

    >>> collapse = [{"attained": {"overall": percent}} for percent in (40.0, 96.0, 94.0)]
    >>> first_reached({"step": 9 * i, "epoch": i, "eval" + COLLAPSE: collapse[i]} for i in range(3))
    {'eval': {'overall': {'step': 9, 'epoch': 1}}}
    """
    reached: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        for key, collapse in record.items():
            if not key.endswith(COLLAPSE):
                continue
            of_split = reached.setdefault(key.removesuffix(COLLAPSE), {})
            for name, percentage in collapse["attained"].items():
                if percentage >= target and name not in of_split:
                    of_split[name] = {"step": record["step"], "epoch": record["epoch"]}
    return reached


COLLAPSE = "_neural_collapse"  # records hold metrics as "validation_neural_collapse" and so on
