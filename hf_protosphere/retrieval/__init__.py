"""Finding images by images: `protosphere index` and `protosphere search`.

Imports `inference` and below. Start at `image_index.py`; `neighbours.py` is the search itself.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
