"""Errors on corrupted images, as by ImageNet-C.

Imports `inference` and below. Start at `errors.py`: `corruption_errors`.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
