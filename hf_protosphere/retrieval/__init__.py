"""Finding images by images: `protosphere index` and `protosphere search`.

Imports `inference` and below. Start at `image_index.py`; `neighbours.py` is the search itself.
"""

from ..moved import names_of

__getattr__ = names_of(__name__, Embedder="retrieval.embedding", ImageIndex="retrieval.image_index")
