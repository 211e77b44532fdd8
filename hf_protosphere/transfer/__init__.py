"""A trained network for other classes: `protosphere finetune`, `add-class` and, in `suite/`,
`transfer-suite`.

Imports `training` and below. Start at `finetune.py`.
"""
