"""metrics.jsonl: one record a line, appended as a run measures, read again to resume or draw."""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, errors_in_one_line
from ..metrics.monitoring import first_reached
from .files import append_json, write_text
from .reading import read_json_lines


class MetricsLog:
    """One JSON object a line; on resuming, what came after the checkpoint is dropped."""

    def __init__(self, path: Path, *, last_step: float = math.inf) -> None:
        self.path = path
        records = [record for record in read_metrics(path) if record["step"] <= last_step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))

    def append(self, record: dict[str, Any]) -> None:
        append_json(self.path, record)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    then = "Remove that line: what it measured is lost, and nothing else."
    records = read_json_lines(path, then)
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("step"), int | float):
            raise ArgumentError(f"{path}, line {number}, has no step. {then}")
        with errors_in_one_line(f"{path}, line {number}, is damaged", then):
            first_reached([record])
    return records
