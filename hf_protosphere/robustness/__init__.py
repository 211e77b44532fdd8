"""Errors on corrupted images, as by ImageNet-C.

Imports `inference` and below. Start at `measure.py`: `corruption_errors`.
"""

from typing import Any

__all__ = ["corruption_errors"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when asked for: reading arguments needs none of it
        from . import measure

        return getattr(measure, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
