"""How far a classifier's confidence can be trusted, and the score below which it knows nothing.

Tensors in, numbers out. Sums are in float64."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 15  # of equal width: Guo et al. 2017
# A power of ten lower than what 32-bit scores of about 1 differ by in batches of other sizes.
THRESHOLD_DIGITS = 6
LARGEST_TEMPERATURE = 1000.0  # and its inverse the smallest that is tried


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width over [0, 1]."""

    counts: Tensor  # (B,) images whose confidence, the largest score, falls into each bin
    accuracy: Tensor  # (B,) share of them that is classified right; 0 in an empty bin
    confidence: Tensor  # (B,) their mean confidence; 0 in an empty bin

    @property
    def expected_calibration_error(self) -> float:
        """Σ_b n_b/N |accuracy_b − confidence_b|, in [0, 1]; 0 is the optimum (Naeini et al. 2015, Guo et al. 2017)."""
        return (self.counts @ (self.accuracy - self.confidence).abs() / self.counts.sum()).item()


def reliability(logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> Reliability:
    """
    Args:
        logits: (M, K), with M ≥ 1.
        labels: (M,) int64 in [0, K).
        num_bins: B; bin b holds the confidences in (b/B, (b + 1)/B].

    Example:
        >>> logits = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]]).log()
        >>> bins = reliability(logits, torch.tensor([0, 1, 1]), num_bins=2)
        >>> bins.counts.tolist(), round(bins.expected_calibration_error, 4)
        ([0.0, 3.0], 0.0667)
    """
    confidences, predictions = logits.double().softmax(-1).max(-1)  # (M,), (M,)
    return reliability_of(confidences, predictions == labels, num_bins)


def reliability_of(confidences: Tensor, right: Tensor, num_bins: int = NUM_BINS) -> Reliability:
    """The same of confidences, (M,) float64, and which predictions are right, (M,)."""
    bins = (confidences * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)
    counts = bins.bincount(minlength=num_bins).double()
    hits = bins.bincount(right.double(), num_bins)
    total = bins.bincount(confidences, num_bins)
    return Reliability(counts, hits / counts.clamp(min=1), total / counts.clamp(min=1))


def negative_log_likelihood(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """The mean of −log softmax(logits / temperature) at the labels: logits (M, K), labels (M,)."""
    return F.cross_entropy(logits.double() / temperature, labels).item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The T > 0 for which softmax(logits / T) has the least negative log-likelihood.

    One number, which changes no prediction (temperature scaling, Guo et al. 2017). The likelihood
    is convex in 1/T: there is one optimum, or none.

    Args:
        logits: (M, K), undivided.
        labels: (M,) int64 in [0, K).

    Returns:
        T in (0.001, 1000); or None where none is best: when every image is classified right, a
        smaller one is always better, and when they are right no more than by chance a larger one.
    """
    from scipy.optimize import minimize_scalar

    logits, labels, bound = logits.double().cpu(), labels.cpu(), math.log(LARGEST_TEMPERATURE)
    found = minimize_scalar(
        lambda log: negative_log_likelihood(logits, labels, math.exp(log)),
        bounds=(-bound, bound), method="bounded", options={"xatol": 1e-7},
    )  # fmt: skip
    return None if torch.equal(logits.argmax(-1), labels) or abs(found.x) > bound - 1e-3 else math.exp(found.x)


def conformal_threshold(scores: Tensor, coverage: float) -> float:
    """The score that at least a share `coverage` of images like these is not above.

    It is the ⌈coverage · (n + 1)⌉-th smallest, rounded up. An image drawn like the n here is not above it with a
    probability of at least `coverage`, whatever the distribution, and of less than 1 / (n + 1) more where no two
    scores are equal (split conformal prediction, Vovk et al. 2005).

    Args:
        scores: (n,), larger for what fits less.
        coverage: in (0, 1).

    Raises:
        ValueError: too few images for that coverage.

    Example:
        >>> conformal_threshold(torch.arange(1, 20) / 20, 0.9)  # the eighteenth
        0.9
    """
    # What is a whole number but for the rounding of a product counts as one.
    n, k = len(scores), math.ceil(coverage * (len(scores) + 1) - 1e-9)
    if k > n:
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise ValueError(f"to keep {coverage:.6g} of the images takes at least {needed}, but there are {n}.")
    value = scores.double().kthvalue(k).values.item()
    scale = 10 ** (THRESHOLD_DIGITS - math.ceil(math.log10(max(abs(value), 1))))
    return math.ceil(round(value * scale, 6)) / scale
