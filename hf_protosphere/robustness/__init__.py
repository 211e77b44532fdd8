"""Errors on corrupted images, as by ImageNet-C.

Imports `inference` and below. Start at `measure.py`: `corruption_errors`.
"""

from ..moved import names_of

__getattr__ = names_of(__name__, corruption_errors="robustness.measure")
