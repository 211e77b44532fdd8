"""The engine: `protosphere train`, one loop on Accelerate.

Imports `evaluation` and below. Start at `train.py`; `setup.py` makes the parts of a run from its
arguments, `step.py` takes one optimiser step, `finish.py` is the end of a run.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
