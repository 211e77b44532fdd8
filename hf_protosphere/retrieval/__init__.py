"""Finding images by images: `protosphere index` and `protosphere search`.

Imports `inference` and below. Start at `image_index.py`; `neighbours.py` is the search itself."""

from ..imports.lazily import lazily

__getattr__ = lazily(__name__, Embedder="embedding", ImageIndex="image_index")
