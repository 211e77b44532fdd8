"""Finding images by images: `protosphere index` and `protosphere search`.

Imports `inference` and below. Start at `image_index.py`; `neighbours.py` is the search itself.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Embedder": "embedding",
    "ImageIndex": "image_index",
    "nearest": "neighbours",
    "retrieval_metrics": "neighbours",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # imported when asked for: reading arguments needs none of it
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
