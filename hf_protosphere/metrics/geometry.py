"""How close embeddings are to neural collapse: one formula, one function, tensors only.

Notation: N embeddings h_i (D,) with labels y_i; K classes of n_c samples with means μ_c; μ_G the *unweighted* mean of
the μ_c; prototypes w_c as rows, (K, D), always. At neural collapse each class is one point, and the K points are a
simplex ETF: unit vectors with all cosines −1/(K−1). That needs K ≤ D + 1; for larger K ranks are bounded by D, and
what compares with an ETF cannot reach its optimum. Any float dtype comes in, all is computed in float64, Python floats
come out. Under imbalance all classes weigh the same, unless a docstring says that samples do.

References:
    Koromilas et al., Neural Collapse by Design, ICML 2026, arXiv 2605.20302 (the published set)
    Papyan, Han, Donoho, PNAS 2020 (NC1 to NC4); Galanti, György, Hutter, ICLR 2022 (CDNV)
    Roy, Vetterli, EUSIPCO 2007 (effective rank); Song et al., arXiv 2406.03999 (matrix ratios)
"""

import math

import torch
from torch import Tensor

from ..prototypes import nonnegative_limit
from .class_statistics import ROUNDING, ClassStatistics, centre, covariance_eigenvalues

# Below this share of the embeddings' norm the direction of their mean is rounding of float32: it counts as zero.
GLOBAL_MEAN_FLOOR = 1e-6
COINCIDING = (
    "All {} class means coincide, so that NC1 to NC3 are undefined. "
    "Look for a constant encoder, or for labels that were shuffled or constant."
)
_RANK_EPSILON = 1e-7  # published: added to every normalised singular value
_ENTROPY_FLOOR = 1e-10  # published: smallest eigenvalue that enters a matrix entropy


def effective_rank(eigenvalues: Tensor) -> float:
    """exp(H(p)), p = λ/Σλ (Roy & Vetterli 2007), of a covariance with eigenvalues λ, (D,).

    As published, 1e-7 is added to every p, those of zero eigenvalues included, before p is normalised again. Range
    [1, D]: how many directions the variance uses, whatever its size. A covariance of exact zeros has effective rank 0.

    >>> round(effective_rank(torch.tensor([1.0, 1.0, 0.0])), 4)
    2.0
    """
    if not eigenvalues.any():
        return 0.0
    p = eigenvalues.double() / eigenvalues.double().sum() + _RANK_EPSILON
    p = p / p.sum()
    return math.exp(-(p * p.log()).sum().item())


def intra_class_effective_rank(statistics: ClassStatistics) -> float:
    """Mean over classes of the effective rank of the class covariance (Koromilas et al. 2026).

    Optimum 0; a class is 0 if its samples are equal (to `ROUNDING`), else in [1, min(D, n_c − 1)]:
    any variance left counts, and classes of few samples look better.

    >>> from hf_protosphere.metrics.class_statistics import class_statistics
    >>> points = torch.tensor([[1.0, 0.0], [1.0, 2.0], [-1.0, 0.0]])
    >>> value = intra_class_effective_rank(class_statistics(points, torch.tensor([0, 0, 1]), 2))
    >>> round(value, 4)  # one class on a line, one of a single sample
    0.5
    """
    return sum(effective_rank(values) for values in statistics.eigenvalues) / len(statistics.means)


def inter_class_effective_rank(statistics: ClassStatistics) -> float:
    """Effective rank of the covariance of the K class means, centred on μ_G (Koromilas et al.).

    Optimum and upper end of the range min(K − 1, D); 1 on a line, 0 if all class means coincide."""
    return effective_rank(covariance_eigenvalues(statistics.centred_means))


def prototype_effective_rank(prototypes: Tensor) -> float:
    """Effective rank of the covariance of the prototypes (K, D) (Koromilas et al.). As above.

    >>> round(prototype_effective_rank(torch.eye(4)), 4)
    3.0
    """
    return effective_rank(covariance_eigenvalues(centre(prototypes.double())[1]))


def instance_alignment(statistics: ClassStatistics, prototypes: Tensor) -> float:
    """mean_i ‖w_yi − h_i‖² = mean_i (var_yi + ‖w_yi − μ_yi‖²) (Koromilas et al. 2026).

    Optimum 0, range [0, 4]. Both must be unit vectors, none is normalised here. Samples weigh."""
    offsets = (prototypes.double() - statistics.means).square().sum(1)  # (K,)
    return statistics.sample_mean(statistics.variances + offsets)


def class_alignment(statistics: ClassStatistics, prototypes: Tensor) -> float:
    """mean_c ‖w_c − μ_c/‖μ_c‖‖² (Koromilas et al. 2026). Optimum 0, range [0, 4] for unit w_c."""
    return (prototypes.double() - _unit(statistics.means)).square().sum(1).mean().item()


def attained_nonnegative(attained: dict[str, float], means: Tensor, prototypes: Tensor | None) -> dict[str, float]:
    """Percentages of the alignment that embeddings without a negative entry can attain, √(1 − 1/K)
    of the optimum (`prototypes.nonnegative_limit`), by the percentages of the optimum.

    Empty where that is no limit: class means (K, D) with a negative entry, or of fewer dimensions
    than classes; prototypes (K, D) that have none either, as class means have."""
    limited = prototypes is not None and (means >= 0).all() and (prototypes < 0).any()
    if not limited or means.shape[1] < len(prototypes):
        return {}
    most = 1 - nonnegative_limit(len(prototypes)) / 2
    return {n: min(100.0, attained[n] / most) for n in ("instance_alignment", "class_alignment")}


def class_mean_gram(statistics: ClassStatistics) -> Tensor:
    """Gram matrix (K, K) of unit(unit(μ_c) − unit(mean of all h_i)) (Koromilas et al. 2026).

    As published, the mean of all embeddings is divided by its norm. Hence the ratios below jump at collapse, where
    that mean vanishes: a unit vector is subtracted however short the mean, until it counts as zero
    (`GLOBAL_MEAN_FLOOR`). Samples weigh in the mean: under imbalance the ratios miss their optimum even at collapse.
    """
    mean = statistics.counts @ statistics.means / statistics.counts.sum()  # (D,)
    z = _unit(_unit(statistics.means) - _unit(mean, GLOBAL_MEAN_FLOOR * statistics.scale))
    return z @ z.T


def prototype_gram(prototypes: Tensor) -> Tensor:
    """Gram matrix (K, K) of the normalised prototypes (K, D)."""
    return _unit(prototypes.double()) @ _unit(prototypes.double()).T


def matrix_entropy(gram: Tensor) -> float:
    """H(G) = −Σ λ log λ over the eigenvalues λ of G/K, each at least 1e-10 (Song et al. 2024).

    For (K, K) with a unit diagonal: 0 for equal vectors, log(K − 1) for a simplex ETF, log K for orthogonal ones."""
    symmetric = (gram + gram.T) / (2 * len(gram))
    values = torch.linalg.eigvalsh(symmetric.double()).clamp(min=_ENTROPY_FLOOR)
    return -(values * values.log()).sum().item()


def mutual_information_ratio(first: Tensor, second: Tensor) -> float:
    """(H(G₁) + H(G₂) − H(G₁ ∘ G₂)) / min(H(G₁), H(G₂)) of Gram matrices (K, K) (Song et al. 2024).

    Optimum: `simplex_etf_mutual_information_ratio`; range [0, 1], more than it is not better.
    K = 2: both entropies vanish at collapse. The eigenvalue floor keeps the quotient finite (1 for
    exact collapse), but close to collapse it can be anything in its range: do not read it."""
    h_first, h_second = matrix_entropy(first), matrix_entropy(second)
    return (h_first + h_second - matrix_entropy(first * second)) / min(h_first, h_second)


def entropy_difference_ratio(first: Tensor, second: Tensor) -> float:
    """|H(G₁) − H(G₂)| / max(H(G₁), H(G₂)) of Gram matrices (K, K) (Song et al. 2024).

    Optimum 0, range [0, 1]. K = 2: finite, but not readable close to collapse either."""
    h_first, h_second = matrix_entropy(first), matrix_entropy(second)
    return abs(h_first - h_second) / max(h_first, h_second)


def simplex_etf_mutual_information_ratio(num_classes: int) -> float:
    """MIR of a simplex ETF's Gram matrix with itself; the reference for K > D + 1 too.

    >>> round(simplex_etf_mutual_information_ratio(10), 4)
    0.9524
    """
    etf = torch.full((num_classes, num_classes), -1 / (num_classes - 1), dtype=torch.float64)
    etf.fill_diagonal_(1)
    return mutual_information_ratio(etf, etf)


def nc1_variability(statistics: ClassStatistics) -> float:
    """tr(Σ_W Σ_B⁺)/K, Σ_W = mean_i (h_i − μ_yi)(…)ᵀ, Σ_B = mean_c (μ_c − μ_G)(…)ᵀ (Papyan 2020).

    Optimum 0, range [0, ∞). Summed along the eigenvectors of Σ_B, so variance outside the span of
    the class means does not enter. Samples weigh in Σ_W.

    >>> from hf_protosphere.metrics.class_statistics import class_statistics
    >>> points = torch.tensor([[3.0], [5.0], [-3.0], [-5.0]])
    >>> round(nc1_variability(class_statistics(points, torch.tensor([0, 0, 1, 1]), 2)), 4)
    0.0312
    """
    _check_distinct_means(statistics)
    ratios = statistics.within_variances / statistics.between_variances  # (R,)
    return ratios.sum().item() / len(statistics.means)


def nc1_cdnv(statistics: ClassStatistics) -> float:
    """mean over pairs c ≠ c' of (var_c + var_c') / (2 ‖μ_c − μ_c'‖²) (Galanti et al. 2022).

    Optimum 0, range [0, ∞]; ∞ if two class means coincide, even if both classes are points."""
    means, variances = statistics.means, statistics.variances
    num_classes, total = len(means), 0.0
    for c in range(num_classes - 1):  # K(K − 1)/2 pairs would not always fit
        distances = (means[c + 1 :] - means[c]).norm(dim=1)
        pooled = (variances[c + 1 :] + variances[c]) / 2
        pooled = torch.where(distances <= ROUNDING * statistics.scale, math.inf, pooled)
        total += (pooled / distances.square()).sum().item()
    return total / (num_classes * (num_classes - 1) / 2)


def nc2_equinorm(statistics: ClassStatistics) -> float:
    """Population standard deviation over mean of ‖μ_c − μ_G‖ (Papyan et al. 2020).

    Optimum 0, range [0, √(K − 1)). K = 2: always 0."""
    _check_distinct_means(statistics)
    norms = statistics.centred_means.norm(dim=1)  # (K,)
    return (norms.std(correction=0) / norms.mean()).item()


def nc2_equiangular(statistics: ClassStatistics) -> float:
    """mean over pairs c ≠ c' of |cos(μ_c − μ_G, μ_c' − μ_G) + 1/(K − 1)| (Papyan et al. 2020).

    Optimum 0, range [0, K/(K − 1)]. K = 2: always 0. K > D + 1: never 0. A mean at μ_G: cosine 0."""
    _check_distinct_means(statistics)
    unit = _unit(statistics.centred_means, ROUNDING * statistics.scale)  # (K, D)
    num_classes = len(unit)
    deviations = (unit @ unit.T + 1 / (num_classes - 1)).abs().fill_diagonal_(0)  # (K, K)
    return deviations.sum().item() / (num_classes * (num_classes - 1))


def nc3_self_duality(statistics: ClassStatistics, prototypes: Tensor) -> float:
    """‖W/‖W‖_F − M/‖M‖_F‖_F², M = (μ_c − μ_G)_c and W (K, D) not centred (Papyan et al. 2020).

    Optimum 0, range [0, 4], 2 if unrelated."""
    _check_distinct_means(statistics)
    W, M = prototypes.double(), statistics.centred_means
    return (W / W.norm() - M / M.norm()).square().sum().item()


def nc4_agreement(embeddings: Tensor, statistics: ClassStatistics, prototypes: Tensor) -> Tensor:
    """(N,) bool, whether argmax_c w_c·h = argmin_c ‖h − μ_c‖, of embeddings (N, D) (Papyan 2020).

    NC4 is their share. Optimum 1, range [0, 1]: both decide alike, right or wrong. Samples weigh."""
    means = statistics.centred_means
    origin = statistics.means.mean(0)  # moving it leaves distances alone, and rounding small
    agreeing = []
    for chunk in embeddings.split(8192):  # float64 (N, K) similarities would not always fit
        rows = chunk.double()
        nearest = ((rows - origin) @ means.T - means.square().sum(1) / 2).argmax(1)
        agreeing.append((rows @ prototypes.double().T).argmax(1) == nearest)
    return torch.cat(agreeing)


def _unit(rows: Tensor, floor: float = 1e-12) -> Tensor:
    norms = rows.norm(dim=-1, keepdim=True)
    return torch.where(norms > floor, rows / norms, 0.0)


def _check_distinct_means(statistics: ClassStatistics) -> None:
    if not statistics.centred_means.any():
        raise ValueError(COINCIDING.format(len(statistics.means)))
