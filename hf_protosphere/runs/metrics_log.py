"""metrics.jsonl: one record a line, appended as a run measures, read again to resume or draw."""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, errors_in_one_line
from ..metrics.monitoring import first_reached
from .files import write_text
from .reading import read_json_lines


def begin_metrics(path: Path, last_step: float = math.inf) -> Path:
    """The path, of a file that holds nothing of after the step that a run goes on from."""
    records = [record for record in read_metrics(path) if record["step"] <= last_step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    return path


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
