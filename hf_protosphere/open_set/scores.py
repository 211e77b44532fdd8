"""Scores that tell unknown images from known ones, and need no training beyond the classifier's.

Larger for what looks more known, everywhere. What a score needs beside the model is fitted on outputs for known
images. Tensors in, functions of tensors out; sums are in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..configuration_protosphere import REJECTION_SCORES
from ..prototypes import known_score
from ..retrieval.neighbours import nearest

SCORES = {
    "cosine": "cosine to the nearest prototype", "max_softmax": "maximum softmax", "energy": "energy",
    "mahalanobis": "Mahalanobis", "knn": "nearest neighbours", "vim": "ViM", "neco": "NECO",
}  # fmt: skip
NEIGHBOURS = 10
TINY = 1e-12  # in place of a length of 0

Score = Callable[[Tensor, Tensor], Tensor]  # of embeddings (M, D) and logits (M, K), (M,)


@dataclass(frozen=True)
class Outputs:
    """What a model makes of images."""

    embeddings: Tensor  # (N, D), unit rows
    logits: Tensor  # (N, K), as the model returns them
    labels: Tensor  # (N,) int64

    def __getitem__(self, rows: Tensor | slice) -> "Outputs":
        return Outputs(self.embeddings[rows], self.logits[rows], self.labels[rows])


def mahalanobis(known: Outputs) -> Score:
    """Minus the squared Mahalanobis distance to the nearest class mean, under one covariance (Lee et al. 2018).

    The covariance is Ledoit and Wolf's: at neural collapse the plain one has no inverse.
    """
    from sklearn.covariance import LedoitWolf

    embeddings = known.embeddings.double()
    classes, index = known.labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), embeddings.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, index, embeddings) / index.bincount()[:, None]
    residuals = (embeddings - means[index]).numpy()
    covariance = torch.from_numpy(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    covariance.diagonal().add_(TINY)  # of one image a class
    # Σ = L Lᵀ, so that Σ⁻¹ = W Wᵀ with W = L⁻ᵀ.
    whitening = torch.linalg.cholesky(covariance).inverse().T
    whitened_means = means @ whitening
    return lambda embeddings, _: -torch.cdist(embeddings.double() @ whitening, whitened_means).amin(-1).square()


def knn(known: Outputs, neighbours: int = NEIGHBOURS) -> Score:
    """Minus the distance to the k-th nearest known embedding (Sun et al. 2022): k = 10, or as many as a class has
    on average where those are fewer."""
    k = min(neighbours, max(len(known.labels) // known.logits.shape[1], 1))
    bank = known.embeddings
    return lambda embeddings, _: -(2 - 2 * nearest(embeddings, bank, k).cosines[:, -1].double()).clamp(min=0).sqrt()


def vim(known: Outputs) -> Score:
    """Virtual-logit matching (Wang et al. 2022): logsumexp of the logits less α times the length of the embedding's
    part outside the principal space. α gives that part on average the size of the largest logit.

    The origin is 0, where the cosines to all prototypes are; the principal space has half of the dimensions (the
    paper's 512 of 768, and 1,000 of 2,048).
    """
    embeddings = known.embeddings.double()
    directions = torch.linalg.eigh(embeddings.T @ embeddings).eigenvectors  # the least variance first
    outside = directions[:, : directions.shape[0] - directions.shape[0] // 2]
    lengths = (embeddings @ outside).norm(dim=1).mean().clamp(min=TINY)
    scale = known.logits.double().amax(1).mean() / lengths
    return lambda embeddings, logits: (
        logits.double().logsumexp(-1) - scale * (embeddings.double() @ outside).norm(dim=-1)
    )


def neco(known: Outputs) -> Score:
    """The share of an embedding's length, from the mean of all, that lies in the first principal components (Ben
    Ammar et al. 2024): at neural collapse unknown images are orthogonal to the classes.

    There are K − 1 of them, the dimension of the simplex that K classes collapse to; half of all where that is
    less. Not multiplied by the largest logit, as the paper does for some networks.
    """
    mean = known.embeddings.double().mean(0)
    centred = known.embeddings.double() - mean
    count = min(known.logits.shape[1] - 1, max(centred.shape[1] // 2, 1))
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -count:]  # (D, K − 1)

    def score(embeddings: Tensor, _: Tensor) -> Tensor:
        centred = embeddings.double() - mean
        return (centred @ components).norm(dim=-1) / centred.norm(dim=-1).clamp(min=TINY)

    return score


FITTED = {"mahalanobis": mahalanobis, "knn": knn, "vim": vim, "neco": neco}


def fit_scores(prototypes: Tensor, known: Outputs | None = None) -> dict[str, Score]:
    """All scores by their names in `SCORES`; without known images those that are not fitted on any.

    Args:
        prototypes: (K, D), unit rows.
        known: on the CPU, images that stand for the known ones.
    """

    def of_model(name: str, embeddings: Tensor, logits: Tensor) -> Tensor:
        # In double precision: float32 cannot tell two probabilities near 1 apart.
        return known_score(name, embeddings, logits.double(), prototypes)

    fitted = {} if known is None else {name: fit(known) for name, fit in FITTED.items()}
    return {name: partial(of_model, name) for name in REJECTION_SCORES} | fitted
