"""The covariance within classes, which whitening and Mahalanobis distances share."""

import torch
from torch import Tensor

MOST_IMAGES = 20_000  # that it is taken of


def covariance_within_classes(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The covariance Σ = V diag(λ) Vᵀ of features (N, F) around the means of their classes (Ledoit and Wolf 2004).

    It is shrunken towards a multiple of the identity: of fewer images than features, and at neural collapse, the
    plain one has no inverse.

    Returns:
        The means (C, F) of the classes with images, by their numbers; λ (F,) > 0; V (F, F). All float64.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    every = -(-len(features) // MOST_IMAGES)
    x, y = features[::every].double(), labels[::every].unique(return_inverse=True)[1]
    means = x.new_zeros(int(y.max()) + 1, x.shape[1]).index_add_(0, y, x) / y.bincount()[:, None]
    residuals = x - means[y]
    variances, axes = torch.linalg.eigh(residuals.T @ residuals / len(x))
    share = ledoit_wolf_shrinkage(residuals.cpu().numpy(), assume_centered=True)
    variances = (1 - share) * variances + share * variances.mean()
    return means, variances.clamp(min=1e-6 * variances.mean() + 1e-12), axes  # of one image a class there is none
