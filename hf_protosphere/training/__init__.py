"""The engine: `protosphere train`, one loop on Accelerate.

Imports `evaluation` and below. Start at `train.py`; `setup.py` makes the parts of a run from its
arguments, `step.py` takes one optimiser step, `finish.py` is the end of a run."""
