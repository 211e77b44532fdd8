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
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
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
MOST_DECOMPOSED = 4096  # classes: the eigenvalues of a K×K matrix take seconds, and of 21,841 hours
_NUMBERS = 2**24  # of a block of rows against all classes


def effective_rank(eigenvalues: Tensor) -> float:
    """exp(H(p)), p = λ/Σλ (Roy & Vetterli 2007), of a covariance with eigenvalues λ, (D,).

    As published, 1e-7 is added to every p, those of zero eigenvalues included, before p is normalised again. Range
    [1, D]: how many directions the variance uses, whatever its size. A covariance of exact zeros has effective rank 0.

    >>> round(effective_rank(torch.tensor([1.0, 1.0, 0.0])), 4)
    2.0
    """
    return _effective_ranks(eigenvalues.double()).item()


def _effective_ranks(eigenvalues: Tensor) -> Tensor:
    totals = eigenvalues.sum(-1, keepdim=True)
    p = eigenvalues / totals + _RANK_EPSILON  # (..., D)
    p = p / p.sum(-1, keepdim=True)
    return torch.where(totals[..., 0] > 0, torch.special.entr(p).sum(-1).exp(), 0.0)


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
    return _effective_ranks(statistics.eigenvalues).mean().item()


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


def class_mean_directions(statistics: ClassStatistics) -> Tensor:
    """Rows (K, D) unit(unit(μ_c) − unit(mean of all h_i)), of which the ratios below are (Koromilas et al. 2026).

    As published, the mean of all embeddings is divided by its norm. Hence the ratios jump at collapse, where
    that mean vanishes: a unit vector is subtracted however short the mean, until it counts as zero
    (`GLOBAL_MEAN_FLOOR`). Samples weigh in the mean: under imbalance the ratios miss their optimum even at collapse.
    """
    mean = statistics.counts @ statistics.means / statistics.counts.sum()  # (D,)
    return _unit(_unit(statistics.means) - _unit(mean, GLOBAL_MEAN_FLOOR * statistics.scale))


def matrix_entropy(rows: Tensor) -> float:
    """H(G) = −Σ λ log λ over the eigenvalues λ of G/K, each at least 1e-10, G the Gram matrix (Song et al. 2024).

    For unit rows (K, D): 0 if they are equal, log(K − 1) for a simplex ETF, log K if they are orthogonal."""
    return _entropy(covariance_eigenvalues(rows.double()), len(rows))


def _entropy(values: Tensor, num: int) -> float:  # of `num` eigenvalues, zeros those that are not in `values`
    return torch.special.entr(F.pad(values, (0, num - len(values))).clamp(min=_ENTROPY_FLOOR)).sum().item()


def mutual_information_ratio(first: Tensor, second: Tensor) -> float:
    """(H(G₁) + H(G₂) − H(G₁ ∘ G₂)) / min(H(G₁), H(G₂)), of the Gram matrices of rows (K, D) (Song et al. 2024).

    Optimum: `simplex_etf_mutual_information_ratio`; range [0, 1], more than it is not better. It takes the eigenvalues
    of a K×K matrix, and no detour: `NeuralCollapse` has it of at most `MOST_DECOMPOSED` classes.
    K = 2: both entropies vanish at collapse. The eigenvalue floor keeps the quotient finite (1 for
    exact collapse), but close to collapse it can be anything in its range: do not read it."""
    h_first, h_second = matrix_entropy(first), matrix_entropy(second)
    joint = (first @ first.T).mul_(second @ second.T)
    h_joint = _entropy(torch.linalg.eigvalsh(joint.double() / len(joint)), len(joint))
    return (h_first + h_second - h_joint) / min(h_first, h_second)


def entropy_difference_ratio(first: Tensor, second: Tensor) -> float:
    """|H(G₁) − H(G₂)| / max(H(G₁), H(G₂)), of the Gram matrices of rows (K, D) (Song et al. 2024).

    Optimum 0, range [0, 1]. K = 2: finite, but not readable close to collapse either."""
    h_first, h_second = matrix_entropy(first), matrix_entropy(second)
    return abs(h_first - h_second) / max(h_first, h_second)


def simplex_etf_mutual_information_ratio(num_classes: int) -> float:
    """MIR of a simplex ETF's Gram matrix with itself; the reference for K > D + 1 too.

    >>> round(simplex_etf_mutual_information_ratio(10), 4)
    0.9524
    """
    # K − 1 eigenvalues of G/K are s = 1/(K − 1), and one is 0; of the elementwise square, s(1 − s) and s.
    single = torch.full((num_classes - 1,), 1 / (num_classes - 1), dtype=torch.float64)
    joint = torch.cat([single * (1 - single), single[:1]])
    return 2 - _entropy(joint, num_classes) / _entropy(single, num_classes)


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
    means, variances = statistics.centred_means, statistics.variances
    squares, total = means.square().sum(1), 0.0  # (K,)
    for block in _upper_triangle(means):
        lengths = squares[block, None] + squares[block.start :]
        distances = lengths - 2 * means[block] @ means[block.start :].T  # squared, (n, ≤ K)
        # Where products keep too few digits: the differences themselves.
        for near in (distances < 1e-4 * lengths).triu(1).nonzero().split(_NUMBERS // means.shape[1] + 1):
            first, second = (means[block.start + i] for i in near.unbind(1))
            distances[near.unbind(1)] = (first - second).square().sum(1)
        pooled = (variances[block, None] + variances[block.start :]) / 2
        pooled[distances <= (ROUNDING * statistics.scale) ** 2] = math.inf
        total += (pooled / distances).triu(1).sum().item()
    return total / (len(means) * (len(means) - 1) / 2)


def _upper_triangle(rows: Tensor) -> Iterator[slice]:
    """Blocks of rows that are compared with themselves and with all below."""
    size = _NUMBERS // len(rows) + 1
    return (slice(start, start + size) for start in range(0, len(rows), size))


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
    num, total = len(unit), 0.0
    for block in _upper_triangle(unit):
        total += (unit[block] @ unit[block.start :].T + 1 / (num - 1)).abs_().triu_(1).sum().item()
    return total / (num * (num - 1) / 2)


def nc3_self_duality(statistics: ClassStatistics, prototypes: Tensor) -> float:
    """‖W/‖W‖_F − M/‖M‖_F‖_F², M = (μ_c − μ_G)_c and W (K, D) not centred (Papyan et al. 2020).

    Optimum 0, range [0, 4], 2 if unrelated."""
    _check_distinct_means(statistics)
    W, M = prototypes.double(), statistics.centred_means
    return (W / W.norm() - M / M.norm()).square().sum().item()


def nc4_agreement(statistics: ClassStatistics, prototypes: Tensor) -> Callable[[Tensor], Tensor]:
    """What tells of embeddings (N, D) whether argmax_c w_c·h = argmin_c ‖h − μ_c‖, (N,) bool (Papyan et al. 2020).

    NC4 is their share. Optimum 1, range [0, 1]: both decide alike, right or wrong. Samples weigh."""
    means, origin = statistics.centred_means, statistics.means.mean(0)
    size = max(_NUMBERS // len(means), 2 * means.shape[1])  # of a block, which fills memory as the means do
    scores = means.new_empty(0, dtype=torch.float32)
    nearest = _best(means, means.square().sum(1) / 2, scores)  # moving their origin leaves distances alone
    predicted = _best(prototypes.double(), means.new_zeros(len(means)), scores)
    return lambda embeddings: torch.cat(
        [predicted(rows) == nearest(rows - origin) for rows in map(Tensor.double, embeddings.split(size))]
    )


def _best(vectors: Tensor, offsets: Tensor, scores: Tensor) -> Callable[[Tensor], Tensor]:
    """What finds argmax_c h·v_c − o_c for rows h (n, D): in float32, into the memory of `scores`, and once more in
    float64 where its rounding could decide."""
    single, added, longest, largest = vectors.float(), -offsets.float(), vectors.norm(dim=1).max(), offsets.max()

    def best(rows: Tensor) -> Tensor:
        torch.addmm(added, rows.float(), single.T, out=scores.resize_(len(rows), len(vectors)))
        most, places = scores.topk(min(2, len(vectors)))
        exact, eps = torch.get_float32_matmul_precision() == "highest", torch.finfo(torch.float32).eps
        rounding = (rows.shape[1] + 4) * eps * (rows.norm(dim=1) * longest + largest) if exact else torch.inf
        found, unsure = places[:, 0].clone(), most[:, -1] >= most[:, 0] - 2 * rounding
        found[unsure] = (rows[unsure] @ vectors.T - offsets).argmax(1)
        return found

    return best


def _unit(rows: Tensor, floor: float = 1e-12) -> Tensor:
    norms = rows.norm(dim=-1, keepdim=True)
    return torch.where(norms > floor, rows / norms, 0.0)


def _check_distinct_means(statistics: ClassStatistics) -> None:
    if not statistics.centred_means.any():
        raise ValueError(COINCIDING.format(len(statistics.means)))
