"""From any source to batches: one reader of data sets, one of labels, one of pixels.

Imports `runs` (whole files) and what is below it. Start at `dataset.py`; batches are made in
`loaders.py`.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
