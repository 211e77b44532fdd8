"""Errors on corrupted images, as by ImageNet-C.

Imports `inference` and below. Start at `errors.py`: `corruption_errors`.
"""
