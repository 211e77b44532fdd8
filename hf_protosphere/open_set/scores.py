"""Scores that tell unknown images from known ones, and need no training beyond the classifier's.

Larger for what looks more known, everywhere. What a score needs beside the model is fitted on known images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..configuration_protosphere import REJECTION_SCORES
from ..inference.covariance import covariance_within_classes
from ..prototypes import known_score
from ..retrieval.neighbours import nearest

SCORES = {
    "cosine": "cosine to the nearest prototype", "max_softmax": "maximum softmax", "energy": "energy",
    "mahalanobis": "Mahalanobis", "knn": "nearest neighbours", "vim": "ViM", "neco": "NECO",
}  # fmt: skip
NEIGHBOURS = 10
PART = 4096  # images
TINY = 1e-12  # in place of a length of 0


@dataclass(frozen=True)
class Outputs:
    """What a model makes of images, on the CPU."""

    embeddings: Tensor  # (N, D), unit rows
    logits: Tensor  # (N, K), as the model returns them
    labels: Tensor  # (N,) int64

    def __getitem__(self, rows: Tensor | slice) -> "Outputs":
        """In float64, as scores are computed: float32 cannot tell two probabilities near 1 apart."""
        return Outputs(self.embeddings[rows].double(), self.logits[rows].double(), self.labels[rows])


Score = Callable[[Outputs], Tensor]  # (N,) float64


def fit_scores(prototypes: Tensor, known: Outputs | None = None) -> dict[str, Score]:
    """All scores by their names in `SCORES`, for unit prototypes (K, D); without known images those that need none."""

    def of_model(name: str) -> Score:
        return lambda images: known_score(name, images.embeddings, images.logits, prototypes)

    def whole(score: Score, images: Outputs) -> Tensor:
        parts = (images[start : start + PART] for start in range(0, len(images.labels), PART))
        return torch.cat([*map(score, parts)])

    fitted = {} if known is None else {name: fit(known[:]) for name, fit in FITTED.items()}
    fitted |= {name: of_model(name) for name in REJECTION_SCORES}
    return {name: partial(whole, fitted[name]) for name in SCORES if name in fitted}


def mahalanobis(known: Outputs) -> Score:
    """Minus the squared Mahalanobis distance to the nearest class mean, under one covariance (Lee et al. 2018)."""
    means, variances, axes = covariance_within_classes(known.embeddings, known.labels)
    whitening = axes * variances.rsqrt()  # W, with Σ⁻¹ = W Wᵀ
    means = means @ whitening
    return lambda images: -torch.cdist(images.embeddings @ whitening, means).amin(-1).square()


def knn(known: Outputs) -> Score:
    """Minus the distance to the k-th nearest known embedding (Sun et al. 2022): k = 10, or as many as a class has
    on average where those are fewer."""
    bank, k = known.embeddings, min(NEIGHBOURS, max(len(known.labels) // known.logits.shape[1], 1))
    return lambda images: -(2 - 2 * nearest(images.embeddings, bank, k).cosines[:, -1].double()).clamp(min=0).sqrt()


def vim(known: Outputs) -> Score:
    """Virtual-logit matching (Wang et al. 2022): logsumexp of the logits less α times the length of the embedding's
    part outside the principal space. α gives that part on average the size of the largest logit.

    The origin is 0, where the cosines to all prototypes are; the principal space has half of the dimensions (the
    paper's 512 of 768, and 1,000 of 2,048)."""
    outside = _principal_axes(known.embeddings)[:, known.embeddings.shape[1] // 2 :]
    scale = known.logits.amax(1).mean() / (known.embeddings @ outside).norm(dim=1).mean().clamp(min=TINY)
    return lambda images: images.logits.logsumexp(-1) - scale * (images.embeddings @ outside).norm(dim=1)


def neco(known: Outputs) -> Score:
    """The share of an embedding's length, from the mean of all, that lies in the first principal components (Ben
    Ammar et al. 2024): at neural collapse unknown images are orthogonal to the classes.

    There are K − 1 of them, the dimension of the simplex that K classes collapse to; half of all where that is
    less. Not multiplied by the largest logit, as the paper does for some networks."""
    mean, count = known.embeddings.mean(0), min(known.logits.shape[1] - 1, max(known.embeddings.shape[1] // 2, 1))
    inside = _principal_axes(known.embeddings - mean)[:, :count]  # (D, K − 1)

    def score(images: Outputs) -> Tensor:
        centred = images.embeddings - mean
        return (centred @ inside).norm(dim=1) / centred.norm(dim=1).clamp(min=TINY)

    return score


def _principal_axes(vectors: Tensor) -> Tensor:
    """(D, D) columns, by the variance around 0 of (N, D) along them, the largest first."""
    return torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)


FITTED = {"mahalanobis": mahalanobis, "knn": knn, "vim": vim, "neco": neco}
