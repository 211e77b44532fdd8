"""How good a classifier is: `protosphere evaluate`, and the metrics that training reports too.

Imports `open_set`, `robustness` and below. Start at `evaluate.py`, the command; `classifier_metrics.py`
and `outcomes.py` compute, `page.py` shows. `callbacks.py` measures collapse in the stock Trainer."""
