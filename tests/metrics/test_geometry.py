"""Every formula on points whose value is known by hand; test_neural_collapse.py has the oracle."""

import math

import numpy as np
import pytest
import torch

from hf_protosphere.metrics import geometry
from hf_protosphere.metrics.class_statistics import class_statistics


def statistics_of(points, labels):
    points = torch.tensor(points, dtype=torch.float64)
    return class_statistics(points, torch.tensor(labels), max(labels) + 1)


# Two classes on a line, their means 4 apart, each with variance 1.
LINE = statistics_of([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1])
# Two classes in a plane, of prototypes at right angles.
PLANE = statistics_of([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 1, 1])
PROTOTYPES = torch.tensor([[0.0, 1.0], [0.0, 1.0]])


def test_effective_rank_counts_directions_whatever_their_size():
    for scale in (1e-12, 1.0, 1e12):
        values = scale * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        assert geometry.effective_rank(values) == pytest.approx(3, abs=1e-4)
    assert geometry.effective_rank(torch.zeros(4)) == 0
    half = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)  # entropy 1.5·log 2
    assert geometry.effective_rank(half) == pytest.approx(2**1.5, abs=1e-4)


def test_ranks_of_classes_means_and_prototypes():
    assert geometry.intra_class_effective_rank(LINE) == pytest.approx(1, abs=1e-5)
    assert geometry.intra_class_effective_rank(PLANE) == 0
    assert geometry.inter_class_effective_rank(PLANE) == pytest.approx(1, abs=1e-5)
    assert geometry.prototype_effective_rank(torch.eye(5)) == pytest.approx(4, abs=1e-4)


def test_variability_and_cdnv():
    # Σ_W = 1, Σ_B = 4: tr(Σ_W Σ_B⁺)/K = 1/8; (1 + 1) / (2 · 16)
    assert geometry.nc1_variability(LINE) == pytest.approx(1 / 8)
    assert geometry.nc1_cdnv(LINE) == pytest.approx(1 / 16)


def test_alignments_are_mean_squared_distances():
    # the first image is √2 from its prototype, the other two are on it; classes weigh alike
    assert geometry.instance_alignment(PLANE, PROTOTYPES) == pytest.approx(2 / 3)
    assert geometry.class_alignment(PLANE, PROTOTYPES) == pytest.approx(1)


def test_norms_and_angles_of_the_centred_means():
    # Means 0, 3 and 6 on a line: distances 3, 0, 3 from the centre; cosines 0, −1, 0.
    statistics = statistics_of([[0.0], [3.0], [6.0]], [0, 1, 2])
    assert geometry.nc2_equinorm(statistics) == pytest.approx(math.sqrt(2) / 2)
    assert geometry.nc2_equiangular(statistics) == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)


def test_self_duality_of_opposite_and_of_scaled_prototypes():
    means = LINE.centred_means
    assert geometry.nc3_self_duality(LINE, 5 * means) == pytest.approx(0)
    assert geometry.nc3_self_duality(LINE, -means) == pytest.approx(4)
    same = torch.ones_like(means)  # orthogonal to the centred means
    assert geometry.nc3_self_duality(LINE, same) == pytest.approx(2)


def test_agreement_is_of_both_decisions_right_or_wrong():
    rng = np.random.default_rng(0)
    rows, prototypes = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    labels = np.arange(50) % 4
    statistics = class_statistics(torch.tensor(rows), torch.tensor(labels), 4)
    means = [rows[labels == c].mean(0) for c in range(4)]
    expected = [
        np.argmax([w @ row for w in prototypes]) == np.argmin([np.linalg.norm(row - mean) for mean in means])
        for row in rows
    ]
    got = geometry.nc4_agreement(statistics, torch.tensor(prototypes))(torch.tensor(rows))
    assert got.tolist() == expected
    assert 0 < sum(expected) < 50


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(("gap", "agrees"), [(1e-9, True), (-1e-9, False)])
def test_agreement_where_float32_cannot_decide(gap, agrees, precision, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    rows, labels = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]]), np.array([0, 0, 1, 1])
    statistics = class_statistics(torch.tensor(rows), torch.tensor(labels), 2)
    prototypes = torch.tensor([[1 + gap, 0.0], [1.0, 0.0]], dtype=torch.float64)  # of the first class the nearer one?
    assert geometry.nc4_agreement(statistics, prototypes)(torch.tensor(rows[:1])).tolist() == [agrees]


def test_agreement_of_many_rows_in_blocks_of_few(monkeypatch):
    rng = np.random.default_rng(1)
    rows, prototypes, labels = rng.normal(size=(61, 2)), torch.tensor(rng.normal(size=(7, 2))), np.arange(61) % 7
    statistics = class_statistics(torch.tensor(rows), torch.tensor(labels), 7)
    whole = geometry.nc4_agreement(statistics, prototypes)(torch.tensor(rows))
    monkeypatch.setattr(geometry, "_NUMBERS", 1)
    agrees = geometry.nc4_agreement(statistics, prototypes)
    assert torch.equal(agrees(torch.tensor(rows)), whole)
    assert torch.equal(agrees(torch.tensor(rows)), whole)  # whatever is left in the memory of the scores
    assert agrees(torch.empty(0, 2)).shape == (0,)


def test_entropies_in_closed_form():
    assert geometry.matrix_entropy(torch.ones(6, 1)) == pytest.approx(0, abs=1e-7)
    assert geometry.matrix_entropy(torch.eye(6)) == pytest.approx(math.log(6))
    etf = torch.nn.functional.normalize(torch.eye(6, dtype=torch.float64) - 1 / 6, dim=1)
    assert geometry.matrix_entropy(etf) == pytest.approx(math.log(5), abs=1e-7)
    orthogonal = torch.eye(6, dtype=torch.float64)
    # H(I ∘ ETF) = H(I), so that the mutual information is H(ETF), over the smaller entropy
    assert geometry.mutual_information_ratio(orthogonal, etf) == pytest.approx(1, abs=1e-7)
    expected = 1 - math.log(5) / math.log(6)
    assert geometry.entropy_difference_ratio(orthogonal, etf) == pytest.approx(expected, abs=1e-7)


# K < D, D < K < D², and K > D²
@pytest.mark.parametrize(("num_classes", "dim"), [(30, 50), (90, 40), (400, 6)])
def test_many_classes_by_the_plain_definitions(num_classes, dim, monkeypatch):
    """From K×K matrices and all pairs at once; in blocks of a few rows, and in one."""
    rng = np.random.default_rng(num_classes)
    labels = np.arange(num_classes).repeat(rng.integers(1, 9, num_classes))
    prototypes = rng.normal(size=(num_classes, dim))
    prototypes[1] = prototypes[0] + 1e-5 * rng.normal(size=dim)  # near, and products would keep few digits
    rows = prototypes[labels] + 0.1 * rng.normal(size=(len(labels), dim))
    rows[labels == 1] = prototypes[1]
    rows[labels == 0] = prototypes[0]
    statistics = class_statistics(torch.tensor(rows), torch.tensor(labels), num_classes)
    means = np.stack([rows[labels == c].mean(0) for c in range(num_classes)])
    variances = np.array([rows[labels == c].var(0).sum() for c in range(num_classes)])

    def unit(vectors):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def entropy(gram):
        values = np.linalg.eigvalsh(gram / num_classes).clip(1e-10)
        return -(values * np.log(values)).sum()

    grams = [z @ z.T for z in (unit(prototypes), unit(unit(means) - unit(rows.mean(0))))]
    first, second, joint = map(entropy, (*grams, grams[0] * grams[1]))
    pairs = np.triu_indices(num_classes, 1)
    distances = ((means[pairs[0]] - means[pairs[1]]) ** 2).sum(1)
    cosines = unit(means - means.mean(0)) @ unit(means - means.mean(0)).T
    ranks = []
    for c in range(num_classes):
        p = np.linalg.eigvalsh(np.cov(rows[labels == c].T, ddof=0)).clip(0)
        p = p / (p.sum() or 1) + 1e-7
        ranks.append(np.exp(-(p / p.sum() * np.log(p / p.sum())).sum()) if variances[c] > 1e-20 else 0)
    of = torch.tensor(unit(prototypes)), geometry.class_mean_directions(statistics)
    expected = {
        "nc1_cdnv": ((variances[pairs[0]] + variances[pairs[1]]) / 2 / distances).mean(),
        "nc2_equiangular": np.abs(cosines[pairs] + 1 / (num_classes - 1)).mean(),
        "intra_class_effective_rank": np.mean(ranks),
    }
    for numbers in (5 * num_classes, 2**24):
        monkeypatch.setattr(geometry, "_NUMBERS", numbers)
        for name, value in expected.items():
            assert getattr(geometry, name)(statistics) == pytest.approx(value, rel=1e-10), name
    ratio = (first + second - joint) / min(first, second)
    assert geometry.mutual_information_ratio(*of) == pytest.approx(ratio, rel=1e-10)
    assert geometry.entropy_difference_ratio(*of) == pytest.approx(abs(first - second) / max(first, second), rel=1e-8)


def test_etf_ratio_in_closed_form():
    for k in (3, 10, 100):
        # the elementwise square of the ETF's Gram matrix: eigenvalues a once and b (k − 1) times
        a, b = 1 / (k - 1), (1 - 1 / (k - 1) ** 2) / k
        joint = -a * math.log(a) - (k - 1) * b * math.log(b)
        expected = 2 - joint / math.log(k - 1)
        assert geometry.simplex_etf_mutual_information_ratio(k) == pytest.approx(expected, abs=1e-7)


def test_directions_of_class_means_are_seen_from_the_unit_global_mean():
    points = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    got = geometry.class_mean_directions(statistics_of(points.tolist(), [0, 1, 1]))
    mean = points.mean(0) / np.linalg.norm(points.mean(0))
    z = np.array([[1.0, 0.0], [0.0, 1.0]]) - mean
    assert np.allclose(got, z / np.linalg.norm(z, axis=1, keepdims=True))


def test_the_most_that_alignment_attains_without_negative_entries():
    means, attained = torch.eye(4), {"instance_alignment": 43.30127, "class_alignment": 90.0}
    simplex = torch.nn.functional.normalize(means - 0.25, dim=1)
    shares = geometry.attained_nonnegative(attained, means, simplex)  # of sqrt(3/4)
    assert shares == {"instance_alignment": pytest.approx(50), "class_alignment": 100}
    for more in (
        (means - 1e-9, simplex),
        (means, means),  # as after SCL, whose class means are the prototypes
        (means[:, :3], simplex[:, :3]),
        (means, None),
    ):
        assert geometry.attained_nonnegative(attained, *more) == {}
