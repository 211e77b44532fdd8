"""Errors on corrupted images, as by ImageNet-C.

Imports `inference` and below. Start at `measure.py`: `corruption_errors`."""

from ..imports.lazily import lazily

__getattr__ = lazily(__name__, corruption_errors="measure")
