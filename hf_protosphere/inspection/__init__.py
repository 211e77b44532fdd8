"""A data set before training: `protosphere inspect`. Start at `inspect.py`; `scores.py` is the science."""
