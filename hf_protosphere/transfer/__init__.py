"""A trained network for other classes: `protosphere finetune`, `add-class` and, in `suite/`,
`transfer-suite`.

Imports `training` and below. Start at `finetune.py`.
"""

from ..moved import names_of

__getattr__ = names_of(__name__)  # of version 0.1.0
