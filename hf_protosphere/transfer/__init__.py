"""A trained network for other classes: `protosphere finetune` and `add-class`.

Imports `training` and below. Start at `finetune.py`."""
