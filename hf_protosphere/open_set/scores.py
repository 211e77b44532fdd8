"""Scores that tell unknown images from known ones, and need no training beyond the classifier's.

Larger for what looks more known, everywhere. What a score needs beside the model is fitted on known images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inference.covariance import covariance_within_classes
from ..prototypes import known_score

SCORES = {
    "cosine": "cosine to the nearest prototype", "max_softmax": "maximum softmax", "energy": "energy",
    "mahalanobis": "Mahalanobis", "knn": "nearest neighbours", "vim": "ViM", "neco": "NECO",
}  # fmt: skip
PART = 1024  # images
ROUNDING = 1e-4  # a shorter part of a unit vector is hardly more, in float32


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
Tensors = tuple[Tensor, Tensor]  # axes (D, R) and centers (C, D) of `prototypes.known_score`


def fit_scores(prototypes: Tensor, known: Outputs | None = None) -> dict[str, Score]:
    """All scores by their names in `SCORES`, for unit prototypes (K, D); without known images those that need none."""
    fitted = {} if known is None else {name: fit(known[:]) for name, fit in FITTED.items()}
    return {name: score_by(name, prototypes, fitted.get(name, ())) for name in SCORES if known or name not in FITTED}


def score_by(name: str, prototypes: Tensor, tensors: Sequence[Tensor | None] = ()) -> Score:
    """By what it was fitted to, where it has to be."""

    def score(images: Outputs) -> Tensor:
        parts = (images[start : start + PART] for start in range(0, len(images.labels), PART))
        return torch.cat([known_score(name, x.embeddings, x.logits, prototypes, *tensors) for x in parts])

    return score


def halves(known: Outputs) -> list[Outputs]:
    """One to fit a score to and one to judge it by, by chance and a fixed seed, as new images would come."""
    order = torch.randperm(len(known.labels), generator=torch.Generator().manual_seed(0))
    return [known[order[half::2]] for half in (0, 1)]


def mahalanobis(known: Outputs) -> Tensors:
    """W and the class means, with the inverse of one covariance within all classes as W Wᵀ."""
    means, variances, axes = covariance_within_classes(known.embeddings, known.labels)
    return axes * variances.rsqrt(), means


def knn(known: Outputs) -> Tensors:
    return known.embeddings[:0].T, known.embeddings


def vim(known: Outputs) -> Tensors:
    """What is outside the principal space, times α, which gives that on average the size of the largest logit.

    The origin is 0, where the cosines to all prototypes are; the principal space has half of the dimensions (the
    paper's 512 of 768, and 1,000 of 2,048) that so many images can span."""
    outside = _principal_axes(known.embeddings)[:, min(known.embeddings.shape) // 2 :]
    scale = known.logits.amax(1).mean() / (known.embeddings @ outside).norm(dim=1).mean().clamp(min=ROUNDING)
    return scale * outside, known.embeddings[:0]


def neco(known: Outputs) -> Tensors:
    """The first principal components, and the mean: at neural collapse unknown images are orthogonal to the classes.

    There are K − 1 of them, the dimension of the simplex that K classes collapse to; half of all where that is
    less. Not multiplied by the largest logit, as the paper does for some networks."""
    mean = known.embeddings.mean(0, keepdim=True)
    count = min(known.logits.shape[1] - 1, max(known.embeddings.shape[1] // 2, 1))
    return _principal_axes(known.embeddings - mean)[:, :count], mean


def _principal_axes(vectors: Tensor) -> Tensor:
    """(D, D) columns, by the variance around 0 of (N, D) along them, the largest first."""
    return torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)


FITTED: dict[str, Callable[[Outputs], Tensors]] = {"mahalanobis": mahalanobis, "knn": knn, "vim": vim, "neco": neco}
