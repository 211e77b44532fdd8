"""Images of none of the classes: thresholds, scores that tell them, `protosphere calibrate`.

Imports `retrieval` and below. Start at `calibrate.py`, or `scores.py` for the scores."""

from ..imports.lazily import lazily

__getattr__ = lazily(__name__, OpenSetClassifier="threshold")
