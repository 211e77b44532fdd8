"""Which images look alike, which stand apart, and which labels are likely wrong, by the features of a network.

Tensors in, tensors out. Neighbours are found in whitened features: what all images share, and the few directions in
which most of them differ, hide less of what makes two images the same one."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from ..open_set.confidence import fit_temperature
from ..retrieval.neighbours import Neighbours, nearest

# Measured on labels moved at random (scripts/benchmarks/label_errors.py): 20 neighbours found fewer of them than 50,
# and a shrinkage of 0.3 or 0.6 as many as 0.5, of 0.1 or 1 fewer.
VOTERS, FOLDS, SHRINKAGE = 50, 5, 0.5
VOTE_TEMPERATURE = 0.3  # of cosines of whitened features, which are far smaller than those of plain ones
OUTLIER_NEIGHBOUR = 10


def whitened(features: Tensor) -> Tensor:
    """(N, D) unit rows of features (N, D), centred, with every principal direction divided by the root of its
    variance plus the mean variance: what is noise is not blown up."""
    centred = features.double() - features.double().mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(features))
    scales = (variances.clamp(min=0) + variances.mean().clamp(min=1e-12)).rsqrt()
    return F.normalize((centred @ axes * scales).float(), dim=1)


def neighbours_of(points: Tensor, k: int) -> Neighbours:
    """The k nearest others of each of (N, D) unit rows, N > 1, or all others where there are fewer."""
    found = nearest(points, points, k + 1)
    others = found.rows != torch.arange(len(points))[:, None]
    others[others.all(1), -1] = False  # not among the first of more than k copies
    return Neighbours(*(values[others].view(len(points), -1) for values in (found.cosines, found.rows)))


def near_duplicates(neighbours: Neighbours, threshold: float) -> Tensor:
    """(N,) the first image of the group that each one is in: of images linked by a cosine of the threshold or more."""
    rows, places = torch.nonzero(neighbours.cosines >= threshold, as_tuple=True)
    links = coo_array((np.ones(len(rows)), (rows, neighbours.rows[rows, places])), shape=(len(neighbours.rows),) * 2)
    groups = connected_components(links, directed=False)[1]
    return torch.from_numpy(np.unique(groups, return_index=True)[1][groups])


def outlier_scores(neighbours: Neighbours) -> Tensor:
    """(N,) 1 − the cosine to the tenth neighbour, in [0, 2] (Ramaswamy et al. 2000; of features Sun et al. 2022)."""
    return 1 - neighbours.cosines[:, :OUTLIER_NEIGHBOUR][:, -1]


def folds_of(labels: Tensor, firsts: Tensor, seed: int = 0) -> Tensor:
    """(N,) in [0, 5): class by class as evenly as can be, but duplicates in the fold of the first of them."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    return (torch.empty_like(order).scatter_(0, order, torch.arange(len(order))) % FOLDS)[firsts]


def class_mean_shares(features: Tensor, labels: Tensor, num_classes: int, fold: Tensor) -> Tensor:
    """(N, K) probabilities by the nearest class mean, of the images in other folds alone: linear discriminant analysis
    with a shrunken covariance, at the temperature that makes the labels likeliest (Guo et al. 2017). An image of a
    class that has none in other folds cannot be judged: its row is 0."""
    x, y, folds = features.numpy(), labels.numpy(), fold.numpy()
    logits = torch.full((len(y), num_classes), -torch.inf, dtype=torch.float64)
    for own in np.unique(folds):
        known, unknown = np.flatnonzero(folds != own), np.flatnonzero(folds == own)
        if 1 < len(np.unique(y[known])) < len(known):
            analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of classes of one image
                found = analysis.fit(x[known], y[known]).predict_log_proba(x[unknown])
            logits[np.ix_(unknown, analysis.classes_)] = torch.from_numpy(found).double()
    judged = logits.gather(1, labels[:, None])[:, 0] > -torch.inf
    temperature = fit_temperature(logits[judged], labels[judged]) if judged.any() else None
    return (logits / (temperature or 1)).softmax(1).where(judged[:, None], 0.0)


def neighbour_shares(neighbours: Neighbours, labels: Tensor, num_classes: int, firsts: Tensor) -> Tensor:
    """(N, K) shares of the classes among the neighbours (Bahri et al. 2020), weighted by exp(cosine / 0.3). Duplicates
    of an image have no vote on it; nor have more neighbours than the mean class has images."""
    voters = max(1, min(VOTERS, len(labels) // num_classes))
    cosines, rows = neighbours.cosines[:, :voters], neighbours.rows[:, :voters]
    votes = (cosines / VOTE_TEMPERATURE).exp().where(firsts[rows] != firsts[:, None], 0.0)
    shares = torch.zeros(len(labels), num_classes).scatter_add_(1, labels[rows], votes)
    return shares / shares.sum(1, keepdim=True).clamp(min=1e-12)


def label_scores(class_means: Tensor, votes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How likely each label is wrong, (N,) in [0, 1], and the class that speaks against it, (N,), −1 where none does.

    The score is 1 − the probability of the label, as in confident learning (Northcutt et al. 2021), which is the mean
    of what class means of other images and neighbours give it; of an image that cannot be judged it is 0. A class
    speaks against a label where both prefer it."""
    given, suggested = (torch.arange(len(labels)), labels), class_means.argmax(1)
    agreed = (suggested == votes.argmax(1)) & (votes.max(1).values > votes[given]) & (suggested != labels)
    scores, judged = 1 - (class_means[given] + votes[given]) / 2, class_means.any(1)
    return scores.where(judged, 0.0), suggested.where(agreed & judged, -1)
