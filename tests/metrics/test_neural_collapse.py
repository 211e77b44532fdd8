"""The metrics against published values, slow numpy oracles, exact collapse and impossible input."""

import errno
import io
import math
import pickle
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection
from torchmetrics.wrappers import BootStrapper, MetricTracker
from torchmetrics.wrappers.bootstrapping import _bootstrap_sampler

from hf_protosphere.metrics import accumulators, geometry
from hf_protosphere.metrics.class_statistics import class_statistics
from hf_protosphere.metrics.neural_collapse import METRICS, NeuralCollapse
from tests import FIXTURES
from tests.metrics.test_accumulators import bytes_on_disk

PUBLISHED = FIXTURES / "metrics.npz"
METRIC_TITLES = {info.name for info in METRICS}
KEEPS = ["embeddings", "moments", 500]
PROTOTYPE_FREE = {info.name for info in METRICS if not info.needs_prototypes}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def simplex_etf(num_classes, dim, seed=0):
    """K unit rows in D dimensions with all cosines −1/(K−1), float64."""
    corners = np.eye(num_classes) - 1 / num_classes  # (K, K), of rank K − 1
    basis = np.linalg.svd(corners)[2][: num_classes - 1]  # (K − 1, K)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, num_classes - 1)))[0]
    return torch.from_numpy(unit(corners @ basis.T @ rotation.T))


def measure(embeddings, labels, prototypes=None, num_classes=None):
    num_classes = num_classes or len(prototypes)
    metric = NeuralCollapse(num_classes, embeddings.shape[1])
    metric.update(torch.as_tensor(embeddings), torch.as_tensor(labels))
    return metric.compute(None if prototypes is None else torch.as_tensor(prototypes))


def random_case(counts, dim, noise, seed=0):
    """Unit embeddings (N, D) around random unit prototypes, in shuffled order."""
    rng = np.random.default_rng(seed)
    prototypes = unit(rng.normal(size=(len(counts), dim)))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centres = unit(prototypes + 0.3 * noise * rng.normal(size=prototypes.shape))
    embeddings = unit(centres[labels] + noise * rng.normal(size=(len(labels), dim)))
    return embeddings, labels, prototypes


# The oracles: written from the formulas, D × D covariances, double loops.


def oracle_effective_rank(covariance):
    s = np.linalg.svd(covariance, compute_uv=False)
    if s.sum() < 1e-25:
        return 0.0
    p = s / s.sum() + 1e-7
    p = p / p.sum()
    return np.exp(-np.sum(p * np.log(p)))


def oracle_entropy(gram):
    values = np.maximum(np.linalg.eigvalsh(gram / len(gram)), 1e-10)
    return -np.sum(values * np.log(values))


def oracle(embeddings, labels, prototypes):
    K, D = prototypes.shape
    N = len(labels)
    classes = [embeddings[labels == c] for c in range(K)]
    means = np.stack([rows.mean(0) for rows in classes])
    centre = means.mean(0)
    M = means - centre
    variances = [np.mean([np.sum((h - means[c]) ** 2) for h in classes[c]]) for c in range(K)]

    within = np.zeros((D, D))
    for h, y in zip(embeddings, labels):
        within += np.outer(h - means[y], h - means[y]) / N
    between = sum(np.outer(m, m) for m in M) / K

    gram_w = unit(prototypes) @ unit(prototypes).T
    z = unit(unit(means) - unit(embeddings.mean(0)))
    gram_m = z @ z.T
    h_w, h_m, h_joint = map(oracle_entropy, (gram_w, gram_m, gram_w * gram_m))

    norms = np.linalg.norm(M, axis=1)
    pairs = list(permutations(range(K), 2))
    agree = 0
    for h in embeddings:
        nearest = np.argmin([np.sum((h - means[c]) ** 2) for c in range(K)])
        agree += np.argmax([prototypes[c] @ h for c in range(K)]) == nearest
    return {
        "intra_class_effective_rank": np.mean(
            [oracle_effective_rank(np.cov(rows.T, ddof=0).reshape(D, D)) for rows in classes]
        ),
        "inter_class_effective_rank": oracle_effective_rank(np.cov(means.T).reshape(D, D)),
        "prototype_effective_rank": oracle_effective_rank(np.cov(prototypes.T).reshape(D, D)),
        "instance_alignment": np.mean([np.sum((prototypes[y] - h) ** 2) for h, y in zip(embeddings, labels)]),
        "class_alignment": np.mean([np.sum((prototypes[c] - unit(means[c])) ** 2) for c in range(K)]),
        "mutual_information_ratio": (h_w + h_m - h_joint) / min(h_w, h_m),
        "entropy_difference_ratio": abs(h_w - h_m) / max(h_w, h_m),
        "nc1_variability": np.trace(within @ np.linalg.pinv(between, 1e-13, hermitian=True)) / K,
        "nc1_cdnv": np.mean(
            [(variances[a] + variances[b]) / (2 * np.sum((means[a] - means[b]) ** 2)) for a, b in pairs]
        ),
        "nc2_equinorm": norms.std() / norms.mean(),
        "nc2_equiangular": np.mean([abs(M[a] @ M[b] / (norms[a] * norms[b]) + 1 / (K - 1)) for a, b in pairs]),
        "nc3_self_duality": np.sum((prototypes / np.linalg.norm(prototypes) - M / np.linalg.norm(M)) ** 2),
        "nc4_agreement": agree / N,
    }


CASES = {
    "n_c above D": ([20] * 3, 5),
    "n_c below D": ([6] * 4, 30),
    "n_c on both sides of D": ([25, 4, 9, 8], 8),
    "imbalance, one sample in a class": ([30, 1, 7, 2, 12], 9),
    "K = 2": ([15, 10], 6),
    "K = D": ([10] * 7, 7),
    "K = D + 1": ([10] * 8, 7),
    "K above D + 1": ([9] * 12, 4),
}


@pytest.mark.parametrize("case", range(3))
def test_published_values(case):
    with np.load(PUBLISHED) as data:
        fields = {key[6:]: data[key] for key in data if key.startswith(f"case{case}/")}
    inputs = [fields.pop(key) for key in ("embeddings", "labels", "prototypes")]
    result = measure(*inputs)
    assert len(fields) == 7
    for name, published in fields.items():
        assert result[name] == pytest.approx(float(published), abs=1e-10), name


@pytest.mark.parametrize("noise", [0.02, 0.4])
@pytest.mark.parametrize("case", CASES)
def test_equals_oracle(case, noise):
    embeddings, labels, prototypes = random_case(*CASES[case], noise)
    result = measure(embeddings, labels, prototypes)
    expected = oracle(embeddings, labels, prototypes)
    assert result.keys() == expected.keys() | {"attained"}
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-8, abs=1e-10), name


@pytest.mark.parametrize("case", CASES)
def test_attained_percentages(case):
    counts, dim = CASES[case]
    embeddings, labels, prototypes = random_case(counts, dim, noise=0.3)
    k, result = len(counts), measure(embeddings, labels, prototypes)
    rank, ratio = min(k - 1, dim), geometry.simplex_etf_mutual_information_ratio(k)
    expected = {
        "intra_class_effective_rank": lambda v: 1 - v / min(dim, max(counts) - 1),
        "inter_class_effective_rank": lambda v: v / rank,
        "prototype_effective_rank": lambda v: v / rank,
        "instance_alignment": lambda v: 1 - v / 2,
        "class_alignment": lambda v: 1 - v / 2,
        "mutual_information_ratio": lambda v: v / ratio,
        "entropy_difference_ratio": lambda v: 1 - v,
        "nc1_variability": lambda v: 1 / (1 + v),
        "nc1_cdnv": lambda v: 1 / (1 + v),
        "nc2_equinorm": lambda v: 1 - v,
        "nc2_equiangular": lambda v: 1 - v,
        "nc3_self_duality": lambda v: 1 - v / 2,
        "nc4_agreement": lambda v: v,
    }
    attained = result["attained"]
    overall = attained.pop("overall")
    assert list(attained) == [info.name for info in METRICS] == list(expected)
    for name, share in expected.items():
        assert attained[name] == pytest.approx(100 * np.clip(share(result[name]), 0, 1)), name
    if k == 2:  # the entropy ratios are not readable for two classes
        del attained["mutual_information_ratio"], attained["entropy_difference_ratio"]
    assert overall == min(attained.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (2, 5), (3, 2), (10, 9), (10, 64)])
def test_collapse_onto_a_simplex_etf_is_every_optimum(num_classes, dim, dtype):
    etf = simplex_etf(num_classes, dim).to(dtype)
    labels = torch.arange(num_classes).repeat(7)
    result = measure(etf[labels], labels, etf)
    for info in METRICS:
        optimum = info.optimum(num_classes, dim)
        # the published 1e-7 per dimension moves ranks by up to K·D·1e-7·log(1e7)
        assert result[info.name] == pytest.approx(optimum, abs=1e-3 if "rank" in info.name else 3e-6)
    assert result["intra_class_effective_rank"] == 0
    assert result["attained"]["overall"] == pytest.approx(100, abs=1e-3)


@pytest.mark.parametrize(("spare", "duality", "entropies"), [(4, 98.45, 86.85), (20, 96.49, 89.06)])
def test_collapse_onto_some_vertices_of_a_larger_simplex(spare, duality, entropies):
    vertices, labels = simplex_etf(10 + spare, 64)[:10], torch.arange(10).repeat(7)
    attained = measure(vertices[labels], labels, vertices)["attained"]
    told = {"nc3_self_duality": duality, "entropy_difference_ratio": entropies, "overall": entropies}
    for name, value in attained.items():
        assert value == pytest.approx(told.get(name, 100.0), abs=0.02), name


def test_one_ulp_of_rounding_is_no_variance():
    etf = simplex_etf(4, 6)
    labels = torch.arange(4).repeat(50)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 6)))
    assert measure(etf[labels] + 1e-16 * noise, labels, etf)["intra_class_effective_rank"] == 0
    assert measure(etf[labels] + 1e-9 * noise, labels, etf)["intra_class_effective_rank"] > 5


def test_ratios_jump_where_the_global_mean_vanishes():
    # As published: the mean's direction counts in full, however short it is, until it is rounding.
    etf = simplex_etf(6, 20)
    labels = torch.arange(6).repeat(10)
    offset = torch.ones(20, dtype=torch.float64)
    exact = measure(etf[labels], labels, etf)
    rounding = measure(etf[labels] + 1e-9 * offset, labels, etf)
    short = measure(etf[labels] + 1e-4 * offset, labels, etf)
    assert exact["entropy_difference_ratio"] < 1e-9
    assert rounding["entropy_difference_ratio"] < 1e-6
    assert short["entropy_difference_ratio"] > 0.05


def test_duplicated_samples_change_nothing():
    embeddings, labels, prototypes = random_case([9, 5, 7], 6, 0.3)
    once = measure(embeddings, labels, prototypes)
    twice = measure(np.tile(embeddings, (2, 1)), np.tile(labels, 2), prototypes)
    for info in METRICS:
        assert twice[info.name] == pytest.approx(once[info.name], rel=1e-9), info.name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_and_label_dtypes_do_not_matter(batch_size, dtype):
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([9, 5, 7], 6, 0.3))
    metric = NeuralCollapse(3, 6)
    for rows, y in zip(embeddings.split(batch_size), labels.split(batch_size)):
        metric.update(rows, y.to(dtype))
    metric.update(embeddings[:0], labels[:0])
    assert metric.compute(prototypes) == measure(embeddings, labels, prototypes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_low_precision_is_measured_in_float64(dtype):
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([9, 5, 7], 6, 0.3))
    embeddings = embeddings.to(dtype).requires_grad_()
    metric = NeuralCollapse(3, 6)
    metric.update(embeddings, labels)
    rows = metric._store.of_classes(slice(0, 1))
    assert rows.dtype == dtype
    assert not rows.requires_grad
    assert metric.compute(prototypes) == measure(embeddings.detach().double(), labels, prototypes)


def test_large_offset_does_not_cancel():
    embeddings, labels, prototypes = random_case([40, 30, 50], 6, 0.3)
    near = measure(embeddings, labels, prototypes)
    far = measure(embeddings + 1e4, labels, prototypes)
    for name in PROTOTYPE_FREE | {"nc3_self_duality"}:
        assert far[name] == pytest.approx(near[name], rel=1e-6), name


def test_prototypes_are_not_cached():
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([9, 5, 7], 6, 0.3))
    metric = NeuralCollapse(3, 6)
    metric.update(embeddings, labels)
    first, other = metric.compute(prototypes), metric.compute(prototypes.roll(1, 0))
    without = metric.compute()
    assert first["instance_alignment"] < other["instance_alignment"]
    assert without.keys() == PROTOTYPE_FREE | {"attained"}
    assert without["attained"].keys() == PROTOTYPE_FREE | {"overall"}
    assert all(without[name] == first[name] for name in PROTOTYPE_FREE)
    metric.reset()
    metric.update(embeddings, labels)
    assert metric.compute(prototypes) == first


def test_float32_prototypes_on_float64_embeddings():
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([9, 5, 7], 6, 0.3))
    rounded = prototypes.float()
    assert measure(embeddings, labels, rounded) == measure(embeddings, labels, rounded.double())


WITHIN = {"intra_class_effective_rank", "nc1_variability", "nc1_cdnv"}
OF_ALL = {
    "inter_class_effective_rank", "mutual_information_ratio", "entropy_difference_ratio",
    "nc3_self_duality", "nc4_agreement",
}  # fmt: skip


def test_one_sample_per_class_tells_nothing_of_what_varies_within():
    etf = simplex_etf(5, 8)
    result = measure(etf, torch.arange(5), etf)
    assert METRIC_TITLES - result.keys() == WITHIN
    assert result["attained"].keys() == METRIC_TITLES - WITHIN


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        ([9, 0, 12, 7, 0], OF_ALL),
        ([9, 0, 12, 1, 0], OF_ALL),
        ([0, 9, 0, 0, 5], OF_ALL | {"nc2_equinorm", "nc2_equiangular"}),
        ([1, 1, 0, 1, 1], OF_ALL | WITHIN),
        ([0, 0, 6, 0, 0], METRIC_TITLES - {"intra_class_effective_rank", "instance_alignment",
                                           "class_alignment", "prototype_effective_rank"}),
    ],
)  # fmt: skip
def test_classes_without_samples_are_named_and_the_others_measured(keep, counts, undefined):
    embeddings, labels, prototypes = map(torch.from_numpy, random_case(counts, 6, 0.3))
    metric = NeuralCollapse(5, 6, keep=keep)
    metric.update(embeddings, labels)
    result = metric.compute(prototypes)
    assert result["absent_classes"] == [c for c, count in enumerate(counts) if not count]
    left_out = {"nc4_agreement"} if keep == "moments" else set()
    assert METRIC_TITLES - result.keys() == undefined | left_out
    assert result["attained"].keys() == METRIC_TITLES - undefined - left_out
    present = [c for c, count in enumerate(counts) if count]
    if len(present) > 1:  # as if there were no other classes
        expected = measure(embeddings, torch.tensor([present.index(c) for c in labels]), prototypes[present])
        for name in METRIC_TITLES & result.keys() - {"prototype_effective_rank"}:
            assert result[name] == pytest.approx(expected[name], rel=1e-8), name
    assert result["prototype_effective_rank"] == geometry.prototype_effective_rank(prototypes)
    ratio = result["prototype_effective_rank"] / 4  # of K classes, not of those present
    assert result["attained"]["prototype_effective_rank"] == pytest.approx(100 * ratio)


def test_two_classes_stay_finite_close_to_collapse():
    etf = simplex_etf(2, 4)
    labels = torch.arange(2).repeat(20)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 4)))
    for size in (0.0, 1e-12, 1e-6, 1e-3):
        result = measure(etf[labels] + size * noise, labels, etf)
        assert all(math.isfinite(result[info.name]) for info in METRICS)
        for name in ("mutual_information_ratio", "entropy_difference_ratio"):
            assert -1e-6 <= result[name] <= 1 + 1e-6
    assert geometry.simplex_etf_mutual_information_ratio(2) == pytest.approx(1, abs=1e-6)


def test_more_classes_than_a_simplex_holds():
    corners = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])  # 4 classes in a plane
    labels = torch.arange(4).repeat(3)
    result = measure(corners[labels], labels, corners)
    assert result["inter_class_effective_rank"] == pytest.approx(2, abs=1e-6)
    assert result["attained"]["inter_class_effective_rank"] == pytest.approx(100)
    # cosines 0, 0, −1 against −1/3
    assert result["nc2_equiangular"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)
    assert result["attained"]["overall"] < 90


def test_coinciding_class_means():
    points = torch.tensor([[1.0, 0.1], [1.0, 0.3], [0.7, 0.2]] * 2).double()
    labels = torch.tensor([0, 1, 2] * 2)
    same = points[[0, 0, 2] * 2]
    assert measure(points, labels, num_classes=3)["nc1_cdnv"] == 0
    result = measure(same, labels, num_classes=3)  # points, but two of them the same
    assert result["nc1_cdnv"] == math.inf
    assert result["attained"]["nc1_cdnv"] == result["attained"]["overall"] == 0
    statistics = class_statistics(points[[0] * 6] * 0.1, labels, 3)
    assert geometry.inter_class_effective_rank(statistics) == 0
    for formula in (geometry.nc1_variability, geometry.nc2_equinorm, geometry.nc2_equiangular):
        with pytest.raises(ValueError, match="All 3 class means coincide"):
            formula(statistics)
    with pytest.raises(ValueError, match="All 3 class means coincide"):
        geometry.nc3_self_duality(statistics, points[:3])


def test_class_mean_at_the_centre_has_cosine_zero():
    points = torch.tensor([[-0.1], [0.0], [0.1]]).double() + 0.7
    result = measure(points, torch.arange(3), num_classes=3)
    assert result["nc2_equiangular"] == pytest.approx((0.5 + 0.5 + 0.5) / 3)


def test_the_mutual_information_of_many_classes_is_left_out(monkeypatch):
    embeddings, labels, prototypes = random_case([9, 5, 7], 6, 0.3)
    expected = measure(embeddings, labels, prototypes)
    monkeypatch.setattr(geometry, "MOST_DECOMPOSED", 2)
    result = measure(embeddings, labels, prototypes)
    assert expected.keys() - result.keys() == {"mutual_information_ratio"}
    least = min(value for name, value in result["attained"].items() if name != "overall")
    assert result["attained"]["overall"] == least


def test_table_describes_every_metric():
    names = [info.name for info in METRICS]
    assert len(set(names)) == 13
    assert {info.name for info in METRICS if info.higher_is_better} == {
        "inter_class_effective_rank",
        "prototype_effective_rank",
        "mutual_information_ratio",
        "nc4_agreement",
    }
    for info in METRICS:
        formula = getattr(geometry, info.name)
        assert info.reference.split()[0] in formula.__doc__ or "rank" in info.name
        assert info.title
        assert info.higher_is_better == (info.optimum(5, 8) > 0)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4).long(), r"floats \(M, 2\).* \(4, 3\)"),
        (torch.zeros(4), torch.zeros(4).long(), r"floats \(M, 2\).* \(4,\)"),
        (torch.zeros(4, 2).long(), torch.zeros(4).long(), "floats.*int64"),
        (torch.zeros(4, 2), torch.zeros(3).long(), r"labels.*\(4,\).*\(3,\)"),
        (torch.zeros(4, 2), torch.zeros(4, 1).long(), r"labels.*\(4,\).*\(4, 1\)"),
        (torch.zeros(4, 2), torch.zeros(4), "labels must be integers.*float32"),
        (torch.tensor([[math.nan, 1], [math.inf, 0]]), torch.tensor([0, 1]), "2 non-finite"),
        (torch.zeros(4, 2), torch.tensor([0, 3, -1, 7]), r"\[0, 3\), got -1, 3, 7"),
    ],
)
def test_update_refuses(embeddings, labels, message):
    metric = NeuralCollapse(3, 2)
    with pytest.raises(ValueError, match=message):
        metric.update(embeddings, labels)
    assert not metric.rows


def test_compute_refuses():
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([9, 5, 7], 6, 0.3))
    metric = NeuralCollapse(5, 6)
    with (
        pytest.warns(UserWarning, match="before the `?`?update"),
        pytest.raises(ValueError, match="No embeddings"),
    ):
        metric.compute()
    metric.update(embeddings, labels)
    metric = NeuralCollapse(3, 6)
    metric.update(embeddings, labels)
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(6, 3\)"):
        metric.compute(prototypes.T)
    with pytest.raises(ValueError, match="1 zero rows"):
        metric.compute(prototypes * torch.tensor([[1], [0], [1]]))
    prototypes[1, 2] = math.nan
    with pytest.raises(ValueError, match="1 non-finite"):
        metric.compute(prototypes)


@pytest.mark.parametrize(("num_classes", "dim"), [(1, 4), (3, 0)])
def test_constructor_refuses(num_classes, dim):
    with pytest.raises(ValueError, match=f"embedding_dim ≥ 1, got {num_classes} and {dim}"):
        NeuralCollapse(num_classes, dim)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match=r"keep must be.*got 'everything'"):
        NeuralCollapse(3, 4, keep="everything")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        NeuralCollapse(3, 4, keep=1)
    with pytest.raises(ValueError, match=r"33554432000 bytes.*keep a number"):
        NeuralCollapse(1000, 2048, keep="moments")


# What is kept.


def kept(result):
    return {name: value for name, value in result.items() if name in METRIC_TITLES}


@pytest.mark.parametrize("case", CASES)
def test_moments_give_the_same_metrics_but_nc4(case):
    embeddings, labels, prototypes = map(torch.from_numpy, random_case(*CASES[case], 0.3))
    metric = NeuralCollapse(*prototypes.shape, keep="moments")
    for batch in range(0, len(labels), 7):
        metric.update(embeddings[batch : batch + 7], labels[batch : batch + 7])
    expected = kept(measure(embeddings, labels, prototypes))
    del expected["nc4_agreement"]
    assert metric._moments.per_class
    result = metric.compute(prototypes)
    assert result["attained"].keys() == expected.keys() | {"overall"}
    assert kept(result) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("noise", [1e-3, 1e-6, 0.0])
def test_moments_do_not_cancel_close_to_collapse_nor_far_from_the_origin(noise):
    embeddings, labels, _ = random_case([40, 30, 50], 6, noise)
    for offset in (0.0, 1e4):
        metric = NeuralCollapse(3, 6, keep="moments")
        metric.update(torch.from_numpy(embeddings + offset), torch.from_numpy(labels))
        expected = kept(measure(embeddings + offset, labels, num_classes=3))
        assert kept(metric.compute()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_beyond_the_memory_limit_a_file_holds_the_embeddings(monkeypatch, dtype):
    monkeypatch.setattr(accumulators, "BLOCK_BYTES", 300)
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([20, 1, 30, 9], 6, 0.3))
    embeddings = embeddings.to(dtype)
    results = []
    for memory_limit in (10**9, 700, 0):
        metric = NeuralCollapse(4, 6, memory_limit=memory_limit)
        for batch in range(0, 60, 7):
            metric.update(embeddings[batch : batch + 7], labels[batch : batch + 7])
        results.append(metric.compute(prototypes))
        assert (bytes_on_disk(metric._store) > 0) == (memory_limit < 10**9)
        metric.update(embeddings[:7], labels[:7])  # and on after a look
    assert results[0] == results[1] == results[2]


def test_embeddings_of_several_dtypes():
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([20, 11, 30], 6, 0.3))
    metric = NeuralCollapse(3, 6)
    metric.update(embeddings[:20].half(), labels[:20])
    metric.update(embeddings[20:], labels[20:])
    rounded = torch.cat([embeddings[:20].half().double(), embeddings[20:]])
    assert kept(metric.compute(prototypes)) == pytest.approx(kept(measure(rounded, labels, prototypes)))


def test_a_full_disk_is_named(monkeypatch):
    class FullFile:
        def seek(self, *position):
            return 0

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(accumulators.tempfile, "TemporaryFile", lambda **_: FullFile())
    monkeypatch.setattr(accumulators, "BLOCK_BYTES", 300)
    metric = NeuralCollapse(3, 6, memory_limit=0, directory="/scratch")
    embeddings, labels, _ = map(torch.from_numpy, random_case([20, 11, 30], 6, 0.3))
    with pytest.raises(OSError, match=r"memory_limit=0.*/scratch.*give another directory"):
        metric.update(embeddings, labels)


def test_a_sample_of_every_class():
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([300, 4, 500], 6, 0.3))
    whole = measure(embeddings, labels, prototypes)
    metric = NeuralCollapse(3, 6, keep=50)
    for batch in range(0, len(labels), 64):
        metric.update(embeddings[batch : batch + 64], labels[batch : batch + 64])
        assert sum(map(len, metric.rows)) <= 2 * 50 * 3 + 64
    result = metric.compute(prototypes)
    assert result["samples_per_class"] == 50
    assert not metric._moments.per_class
    assert "samples_per_class" not in whole
    assert metric._store.settled().counts.tolist() == [50, 4, 50]
    for name in METRIC_TITLES - {"intra_class_effective_rank", "nc4_agreement"}:
        assert result[name] == pytest.approx(whole[name], rel=1e-8), name
    # Of 6 directions, and of 50 random samples.
    assert result["intra_class_effective_rank"] == pytest.approx(whole["intra_class_effective_rank"], rel=0.1)
    assert result["nc4_agreement"] == pytest.approx(whole["nc4_agreement"], abs=0.15)
    enough = NeuralCollapse(3, 6, keep=500)
    enough.update(embeddings, labels)
    assert kept(enough.compute(prototypes)) == pytest.approx(kept(whole), rel=1e-8)


def test_the_caller_may_use_a_buffer_again():
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([20, 11, 30], 6, 0.3))
    for keep in KEEPS:
        metric, buffer = NeuralCollapse(3, 6, keep=keep), torch.empty_like(embeddings)
        metric.update(buffer.copy_(embeddings), labels)
        buffer.zero_()
        again = NeuralCollapse(3, 6, keep=keep)
        again.update(embeddings, labels)
        assert metric.compute(prototypes) == again.compute(prototypes)


def parts(rank, num_parts, keep, num_classes=4):
    """The same four classes, split unevenly: only all parts together hold all of them."""
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([9, 5, 7, 1], 6, 0.3))
    order = labels.argsort()
    ends = {2: [0, 10, 22], 3: [0, 10, 22, 22]}[num_parts]  # one of three has nothing
    mine = order[ends[rank] : ends[rank + 1]]
    metric = NeuralCollapse(num_classes, 6, keep=keep)
    if len(mine):
        metric.update(embeddings[mine], labels[mine])
    return metric, prototypes


def whole(keep):
    embeddings, labels, prototypes = map(torch.from_numpy, random_case([9, 5, 7, 1], 6, 0.3))
    metric = NeuralCollapse(4, 6, keep=keep)
    metric.update(embeddings, labels)
    return kept(metric.compute(prototypes))


@pytest.mark.parametrize("keep", KEEPS)
def test_merged_states_equal_one_metric(keep):
    (metric, prototypes), (other, _) = parts(0, 2, keep), parts(1, 2, keep)
    assert metric.compute(prototypes)["absent_classes"] == [2, 3]
    metric.merge_state(other)
    assert kept(metric.compute(prototypes)) == pytest.approx(whole(keep), rel=1e-9)
    with pytest.raises(ValueError, match=r"but has \[4, 7, .*, and not \[4, 6"):
        metric.merge_state(NeuralCollapse(4, 7, keep=keep))


def _compute_in_process(rank, rendezvous, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=3)
    for keep in [*KEEPS, 4]:  # 4: fewer than there are
        metric, prototypes = parts(rank, 3, keep)
        queue.put((keep, metric.compute(prototypes)))
        queue.put((keep, parts(rank, 3, keep, num_classes=6)[0].compute()))
    dist.destroy_process_group()


def test_three_processes_equal_one(tmp_path, forkserver):
    queue = forkserver.Queue()
    arguments = [(rank, tmp_path / "rendezvous", queue) for rank in range(3)]
    processes = [forkserver.Process(target=_compute_in_process, args=args) for args in arguments]
    for process in processes:
        process.start()
    results = [queue.get(timeout=240) for _ in range(len(processes) * 2 * (len(KEEPS) + 1))]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    for keep, result in results:
        expected = whole(keep)
        if "absent_classes" in result:
            assert result.pop("absent_classes") == [4, 5]
            expected = {name: expected[name] for name in kept(result)}
        assert kept(result) == pytest.approx(expected, rel=1e-9), keep


# A metric of torchmetrics.

WAYS = {
    "in memory": {},
    "on disk": {"memory_limit": 0},
    "moments": {"keep": "moments"},
    "a sample of all": {"keep": 500},
    "a sample": {"keep": 4},
}


@pytest.fixture(params=WAYS)
def make(request, monkeypatch):
    """A new metric of four classes, which has each of its own ways to keep what it is fed."""
    monkeypatch.setattr(accumulators, "BLOCK_BYTES", 300)
    return partial(NeuralCollapse, 4, 6, **WAYS[request.param])


def batches():
    """Of 60 embeddings 12; the last class is in two of them only, and the first is alone in one."""
    embeddings, labels, _ = map(torch.from_numpy, random_case([20, 10, 25, 5], 6, 0.3))
    order = torch.cat([labels.argsort()[:5], labels.argsort()[5:].flip(0)])
    return list(zip(embeddings[order].split(5), labels[order].split(5)))


def updated(metric, start=0, stop=12):
    for embeddings, labels in batches()[start:stop]:
        metric.update(embeddings, labels)
    return metric


def called(metric):
    for embeddings, labels in batches():
        alone = NeuralCollapse(4, 6, keep=metric.keep)
        alone.update(embeddings, labels)
        assert metric(embeddings, labels) == alone.compute()
    return metric


def saved(metric):
    metric.persistent(True)
    file = io.BytesIO()
    torch.save(updated(metric, 0, 7).state_dict(prefix="metric."), file)
    file.seek(0)
    state = {k.removeprefix("metric."): v for k, v in torch.load(file, weights_only=True).items()}
    for _ in range(2):  # what was loaded stays as it was
        metric.reset()
        metric.load_state_dict(state)
        updated(metric, 7)
    return metric


def merged(metric):
    updated(metric, 0, 4)
    for start, stop in ((4, 4), (4, 9), (9, 12)):
        other = metric.clone()
        other.reset()
        updated(other, start, stop)
        before = kept(other.compute()) if stop > start else None
        metric.merge_state(other if start == 4 else other.metric_state)
        assert before is None or kept(other.compute()) == before
    return metric


def in_a_collection(metric):
    others = {"same": metric.clone(), "larger": NeuralCollapse(5, 6)}
    return updated(MetricCollection({"it": metric, **others}))["same"]


def on_the_cpu(metric):
    options = {"memory_limit": metric.memory_limit, "compute_on_cpu": True}
    return updated(NeuralCollapse(4, 6, keep=metric.keep, **options))


def tracked(metric):
    tracker = MetricTracker(metric, maximize=False)
    for _ in range(2):
        tracker.increment()
        updated(tracker)
    first, second = tracker.compute_all()
    assert first == second
    return tracker[-1]


JOURNEYS = {
    "called": called,
    "saved": saved,
    "merged": merged,
    "cloned": lambda metric: updated(updated(metric, 0, 7).clone(), 7),
    "pickled": lambda metric: updated(pickle.loads(pickle.dumps(updated(metric, 0, 7))), 7),
    "moved": lambda metric: updated(updated(metric, 0, 7).to("cpu").set_dtype(torch.half), 7),
    "computed on the CPU": on_the_cpu,
    "in a collection": in_a_collection,
    "tracked": tracked,
}  # fmt: skip


@pytest.mark.parametrize("journey", JOURNEYS)
def test_the_figures_are_the_same_whatever_torchmetrics_does_with_it(make, journey):
    prototypes = torch.from_numpy(random_case([20, 10, 25, 5], 6, 0.3)[2])
    expected = kept(updated(make()).compute(prototypes))
    metric = JOURNEYS[journey](make())
    for _ in range(2):  # and computing changes nothing
        assert kept(metric.compute(prototypes)) == pytest.approx(expected, rel=1e-9)
    if journey in ("called", "saved", "merged", "cloned"):
        assert (bytes_on_disk(metric._store) > 0) == (metric.memory_limit == 0)


def test_a_bootstrap_is_of_one_of_the_metrics(make):
    bootstrap = BootStrapper(make()["nc1_cdnv"], num_bootstraps=3, raw=True, quantile=0.5)
    torch.manual_seed(0)
    updated(bootstrap)
    expected = [NeuralCollapse(4, 6) for _ in range(3)]
    torch.manual_seed(0)
    for embeddings, labels in batches():
        for metric in expected:
            drawn = _bootstrap_sampler(len(labels))
            metric.update(embeddings[drawn], labels[drawn])
    values = [metric.compute()["nc1_cdnv"] for metric in expected]
    assert bootstrap.compute()["raw"].tolist() == pytest.approx(values)


def test_one_of_the_metrics_is_a_tensor():
    one, values = updated(NeuralCollapse(4, 6))["overall"], updated(NeuralCollapse(4, 6)).compute()
    assert one.compute() == values["attained"]["overall"]
    assert pickle.loads(pickle.dumps(one)).compute() == one.compute()
    assert "overall" in repr(one)
    one.reset()
    assert one(*batches()[0]).isnan()  # of one class
    tracker = MetricTracker(NeuralCollapse(4, 6)["nc1_cdnv"], maximize=False)
    tracker.increment()
    updated(tracker)
    assert tracker.best_metric() == values["nc1_cdnv"]
    with pytest.raises(KeyError, match=r"cdnv is none of .*nc1_cdnv"):
        NeuralCollapse(4, 6)["cdnv"]


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.ones(3, 6), torch.tensor([0, 1, 4]), "got 4"),
        (torch.full((1, 6), math.nan), torch.tensor([0]), "6 non-finite"),
        (torch.ones(3, 6), torch.tensor([0, 1, 3]), None),  # the means of these coincide
        (torch.ones(0, 6), torch.tensor([], dtype=torch.long), None),
    ],
)
def test_no_batch_costs_what_was_kept(make, embeddings, labels, message):
    metric = updated(make(), 0, 11)
    before = kept(metric.compute())
    if message:
        with pytest.raises(ValueError, match=message):
            metric(embeddings, labels)
        assert kept(metric.compute()) == before
    elif len(labels):
        with pytest.warns(UserWarning, match="All 3 class means coincide"):
            assert "nc1_variability" not in metric(embeddings, labels)
    else:
        assert metric(embeddings, labels)["absent_classes"] == [0, 1, 2, 3]
    updated(metric, 11)
    expected = updated(make())
    if not message:
        expected.update(embeddings, labels)
    assert kept(metric.compute()) == pytest.approx(kept(expected.compute()))


def test_a_state_of_other_sizes_is_refused():
    state = updated(NeuralCollapse(4, 6))
    state.persistent(True)
    for other in (NeuralCollapse(5, 6), NeuralCollapse(4, 6, keep=4)):
        with pytest.raises(ValueError, match=r"has \[4, 6, -1\], and not \[[45], 6, "):
            other.load_state_dict(state.state_dict())
        assert not other.rows
