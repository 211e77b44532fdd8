"""Images of none of the classes: thresholds, scores that tell them, `protosphere calibrate`.

Imports `inference` and below. Start at `calibrate.py`, or `scores.py` for the scores.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
