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
_LA, _BALANCED = {"logit_adjustment": 1.0}, {"class_weights": "balanced"}
_ETF = {"prototypes": "simplex_etf", "imprint": False}
TAILS: dict[str, Options] = {
    **{name: EVERY[name] for name in SHORT},
    "CE + LA": EVERY["CE"] | _LA,
    **{
        f"CE + LA, decay {decay}": EVERY["CE"] | _LA | {"weight_decay": float(decay)}
        for decay in ("5e-3", "1e-2", "2e-2")
    },
    "CE + LA, rate 0.2, decay 5e-3": EVERY["CE, rate 0.2, decay 5e-3"] | _LA,
    "NormFace + LA": {"objective": "normface"} | _LA,
    "NormFace + LA, t 0.1": {"objective": "normface", "temperature": 0.1} | _LA,
    "NTCE, balanced": {"objective": "ntce"} | _BALANCED,
    "NTCE, balanced, t 0.07, decay 5e-3": {
        "objective": "ntce", "temperature": 0.07, "weight_decay": 5e-3
    } | _BALANCED,
    "NTCE, balanced, ETF, t 0.07, decay 5e-3": {
        "objective": "ntce", "temperature": 0.07, "weight_decay": 5e-3
    } | _BALANCED | _ETF,
    "NTCE, balanced, ETF, t 0.1": {"objective": "ntce", "temperature": 0.1} | _BALANCED | _ETF,
    "NONL, balanced": {"objective": "nonl"} | _BALANCED,
    "ETF + DR": {"objective": "dot_regression"},
}  # fmt: skip
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
