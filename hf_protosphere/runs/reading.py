"""Files of a run, a model or an index, read as if they came from a stranger: whole and of the kind
that they should be, or refused in one line that says what writes them again."""

import json
from pathlib import Path
from typing import Any

from ..arguments.yaml_files import parse_yaml
from ..checking import read_object
from ..errors import errors_in_one_line


def read_json(path: Path, then: str = "") -> dict[str, Any]:
    """The JSON object in a file; `then` is what to do where it is damaged."""
    with errors_in_one_line(f"{path} cannot be read", then):
        return read_object(path)


def read_json_lines(path: Path, then: str = "") -> list[dict[str, Any]]:
    """The objects of a file that is appended to, one a line; a last line that was cut short by a kill is left out."""
    records = []
    with errors_in_one_line(f"{path} cannot be read", then):
        lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        with errors_in_one_line(f"{path}, line {number}, cannot be read", then):
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"it must be a JSON object, but is {record!r:.40}.")
            records.append(record)
    return records


def read_yaml(path: Path, then: str = "") -> dict[str, Any]:
    with errors_in_one_line(f"{path} cannot be read", then):
        values = parse_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it must hold 'name: value' lines, but holds {values!r:.40}.")
        return {str(name): value for name, value in values.items()}
