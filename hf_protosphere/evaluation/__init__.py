"""How good a classifier is: `protosphere evaluate`, and the metrics that training reports too.

Imports `open_set`, `robustness` and below. Start at `evaluate.py`, the command;
`classifier_metrics.py` computes. `callbacks.py` measures neural collapse in the stock Trainer.
"""
