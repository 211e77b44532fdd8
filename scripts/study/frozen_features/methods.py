"""What is compared: losses by their defaults, and cross-entropy in every setting worth trying."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]
# Cross-entropy tuned: the other losses get none of this.
CROSS_ENTROPY: dict[str, Options] = {
    "CE": {},
    "CE, decay 5e-3": {"weight_decay": 5e-3},
    "CE, decay 2e-2": {"weight_decay": 2e-2},
    "CE, rate 0.2": {"learning_rate": 0.2},
    "CE, rate 0.2, decay 5e-3": {"learning_rate": 0.2, "weight_decay": 5e-3},
    "CE, rate 0.02, decay 2e-2": {"learning_rate": 0.02, "weight_decay": 2e-2},
    "CE, smoothing 0.1": {"label_smoothing": 0.1},
}
PROTOTYPES: dict[str, Options] = {
    "NormFace": {"objective": "normface"},
    "NTCE": {"objective": "ntce"},
    "NONL": {"objective": "nonl"},
}
BASELINES: dict[str, Options] = {
    "decoupled NormFace": {"objective": "decoupled_normface"},
    "CosFace, 0.2": {"objective": "normface", "margin_type": "cosface", "margin": 0.2},
    "ArcFace, 0.2": {"objective": "normface", "margin_type": "arcface", "margin": 0.2},
    "ETF + DR": {"objective": "dot_regression"},
    "SupCon + FP": {"objective": "scl"},
    "decoupled SupCon + FP": {"objective": "decoupled_scl"},
    "SINCERE + FP": {"objective": "sincere"},
}
EVERY: dict[str, Options] = {
    **{name: {"objective": "cross_entropy"} | more for name, more in CROSS_ENTROPY.items()},
    **PROTOTYPES,
    **BASELINES,
}
# Of the questions beside accuracy and collapse: cross-entropy as it comes, as it is most accurate
# on validation images (the report says which one that is), and as it collapses most.
SHORT = ("CE", "CE, decay 5e-3", "CE, decay 2e-2", *PROTOTYPES)
TAILS: dict[str, Options] = {
    **{name: EVERY[name] for name in SHORT},
    "CE + LA": EVERY["CE"] | {"logit_adjustment": 1.0},
    "CE + LA, decay 5e-3": EVERY["CE, decay 5e-3"] | {"logit_adjustment": 1.0},
    "CE + LA, decay 2e-2": EVERY["CE, decay 2e-2"] | {"logit_adjustment": 1.0},
    "NormFace + LA": {"objective": "normface", "logit_adjustment": 1.0},
    "NormFace + LA, t 0.1": {"objective": "normface", "logit_adjustment": 1.0, "temperature": 0.1},
    "NTCE, balanced": {"objective": "ntce", "class_weights": "balanced"},
    "NTCE, balanced, t 0.1": {"objective": "ntce", "class_weights": "balanced", "temperature": 0.1},
    "NONL, balanced": {"objective": "nonl", "class_weights": "balanced"},
    "ETF + DR": {"objective": "dot_regression"},
}
QUEUE = 2048
BATCHES: dict[str, Options] = {
    f"{name}, batch {size}": options | {"batch_size": size}
    for size in (32, 256, 2048, 8192)
    for name, options in {"CE": EVERY["CE"], **PROTOTYPES}.items()
} | {
    f"{name}, batch 32, queue {QUEUE}": PROTOTYPES[name] | {"batch_size": 32, "queue_size": QUEUE}
    for name in ("NTCE", "NONL")
}
SHOTS = (5, 20)
METHODS: dict[str, dict[str, Options]] = {  # of each task
    "classify": EVERY,
    "open": {name: EVERY[name] for name in SHORT},
    **{f"{shots} a class": {name: EVERY[name] for name in SHORT} for shots in SHOTS},
    "tail": TAILS,
    "batch": BATCHES,
}
