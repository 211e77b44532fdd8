"""How good a classifier is: `protosphere evaluate`, and the metrics that training reports too.

Imports `open_set`, `robustness` and below. Start at `evaluate.py`, the command;
`classifier_metrics.py` computes.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
