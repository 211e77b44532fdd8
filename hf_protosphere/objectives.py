"""The objectives by name: one table of which loss each is, and what follows from that.

A loss on the sphere is told by what its *anchor* is, an image or a prototype, what the anchor is
contrasted with, the K prototypes or the M images of the batch, and whether its own class is in the
denominator. Travels to the Hub with every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .losses import nonl_loss, normface_loss, ntce_loss, supcon_loss


@dataclass(frozen=True)
class Objective:
    """
    Args:
        loss: of (embeddings, prototypes, labels, temperature); where views are contrasted, of
            (embeddings, labels, temperature); of a linear head, of (logits, labels).
        anchor: what is contrasted.
        contrast: with what.
        own_class: whether the anchor's own class is in the denominator too.
        temperature_factor: the default temperature in units of `optimal_temperature`.
        prototypes: the kind that is trained with it by default; None for a linear head.
    """

    loss: Callable[..., Tensor]
    anchor: Literal["image", "prototype"]
    contrast: Literal["prototypes", "images"]
    own_class: bool
    temperature_factor: float = 1.0
    prototypes: Literal["learned", "simplex_etf", "class_means"] | None = "learned"

    @property
    def contrasts_images(self) -> bool:
        """A batch in parts is then another loss than the whole."""
        return self.contrast == "images"

    @property
    def contrasts_views(self) -> bool:
        """Images with images: it needs two views of each, and trains no prototypes."""
        return self.contrasts_images and self.anchor == "image"


OBJECTIVES = {
    "nonl": Objective(nonl_loss, "prototype", "images", own_class=False, temperature_factor=0.4),
    "ntce": Objective(ntce_loss, "prototype", "images", own_class=True, temperature_factor=0.5),
    "scl": Objective(
        supcon_loss, "image", "images", own_class=True, prototypes="class_means"
    ),
    "normface": Objective(normface_loss, "image", "prototypes", own_class=True),
    "cross_entropy": Objective(
        F.cross_entropy, "image", "prototypes", own_class=True, prototypes=None
    ),
}  # fmt: skip


def objective_loss(
    name: str, embeddings: Tensor, logits: Tensor, labels: Tensor, prototypes: Tensor | None,
    temperature: float,
) -> Tensor:  # fmt: skip
    """The objective `name` of a batch.

    Args:
        embeddings: (M, D) or (M, V, D), V views, of unit norm.
        logits: (M, K) or (M, V, K), which a linear head is trained by.
        labels: (M,) int64 in [0, K); for a linear head also (M, K) of probabilities.
        prototypes: (K, D) of any norm; None for a linear head.
    """
    objective = OBJECTIVES[name]
    if objective.contrasts_views:
        # What the model returns has unit norm already: normalising again would cost a pass.
        return objective.loss(embeddings, labels, temperature, normalize=False)
    if embeddings.dim() == 3:  # each view is an instance of its class
        labels = labels.repeat_interleave(embeddings.shape[1], dim=0)
        embeddings, logits = embeddings.flatten(0, 1), logits.flatten(0, 1)
    if objective.prototypes is None:
        return objective.loss(logits, labels)
    return objective.loss(embeddings, prototypes, labels, temperature)


def optimal_temperature(num_classes: int) -> float:
    """t*(K), the scale in which the best temperatures of different numbers of classes agree.

    At the simplex ETF the cosine to the own prototype exceeds those to the K − 1 others by
    Δ = 1 + 1/(K − 1) = K/(K − 1). The softmax over the K prototypes gives the own class
    1 / (1 + (K − 1) exp(−Δ/t)), which is one half at

        t*(K) = Δ / ln(K − 1) = K / ((K − 1) ln(K − 1))      K=10: 0.51   100: 0.22   1000: 0.145

    Far below it the gradient fades before the optimum is reached. The logarithm is taken to be at
    least 1, so that K = 2 and 3 have a finite one: 2.0 and 1.5.
    """
    return num_classes / (num_classes - 1) / math.log(max(num_classes - 1, math.e))


def default_temperature(objective: str, num_classes: int) -> float:
    """The objective's factor, times t*(K)."""
    return OBJECTIVES[objective].temperature_factor * optimal_temperature(num_classes)
