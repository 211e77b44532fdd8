"""A trained network for other classes: `protosphere finetune` and `add-class`. Start at `finetune.py`."""
