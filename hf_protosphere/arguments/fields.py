"""Fields of argument dataclasses: the `help` of a field is its documentation."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def flag(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})
