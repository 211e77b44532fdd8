"""Finding images by images: `protosphere index` and `protosphere search`.

Imports `inference` and below. Start at `image_index.py`; `neighbours.py` is the search itself.
"""

from typing import Any

__all__ = ["Embedder", "ImageIndex"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when asked for: reading arguments needs none of it
        from . import image_index

        return getattr(image_index, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
