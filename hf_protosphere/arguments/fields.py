"""Fields of argument dataclasses: the `help` of a field is its documentation."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def decide(arguments: Any, **values: Any) -> None:
    """Give frozen arguments what follows from others of them: for `__post_init__` alone."""
    for name, value in values.items():
        object.__setattr__(arguments, name, value)


def flag(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})
