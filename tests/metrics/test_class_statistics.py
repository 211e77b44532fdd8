"""Class statistics against NumPy, from embeddings and from moments; what cannot be measured."""

import numpy as np
import pytest
import torch

import hf_protosphere.metrics.class_statistics as class_statistics_module
from hf_protosphere.metrics.accumulators import ClassMoments, EmbeddingStore
from hf_protosphere.metrics.class_statistics import (
    centre,
    check_batch,
    class_statistics,
    covariance_eigenvalues,
    principal_directions,
    statistics_of_moments,
)

CPU = torch.device("cpu")


def draw(dim, num_classes=3, num=40):
    rng = np.random.default_rng(dim)
    labels = rng.permutation(np.arange(num) % num_classes)
    centres = rng.normal(size=(num_classes, dim))
    return centres[labels] + 0.3 * rng.normal(size=(num, dim)), labels


def assert_statistics(statistics, rows, labels):
    num_classes, dim = statistics.means.shape
    means = np.stack([rows[labels == c].mean(0) for c in range(num_classes)])
    centred = means - means.mean(0)
    assert np.allclose(statistics.means, means)
    assert np.allclose(statistics.centred_means, centred)
    for c in range(num_classes):
        covariance = np.cov(rows[labels == c].T, ddof=0).reshape(dim, dim)
        assert statistics.counts[c] == (labels == c).sum()
        assert statistics.variances[c].item() == pytest.approx(np.trace(covariance))
        found = np.sort(statistics.eigenvalues[c].numpy())
        assert np.allclose(found, np.linalg.eigvalsh(covariance), atol=1e-12)
    values, vectors = np.linalg.eigh(centred.T @ centred / num_classes)
    rank = min(num_classes - 1, dim)
    assert np.allclose(statistics.between_variances, values[::-1][:rank])
    along = ((rows - means[labels]) @ vectors[:, ::-1][:, :rank]) ** 2
    assert np.allclose(statistics.within_variances, along.mean(0))
    assert statistics.scale == pytest.approx(np.sqrt((rows**2).sum(1).mean()))


@pytest.mark.parametrize("dim", [1, 4, 30])  # 30: more dimensions than samples of a class
def test_from_embeddings(dim):
    rows, labels = draw(dim)
    statistics = class_statistics(torch.tensor(rows), torch.tensor(labels), 3)
    assert_statistics(statistics, rows, labels)
    per_class = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert statistics.sample_mean(per_class) == pytest.approx(per_class[labels].mean())


@pytest.mark.parametrize("per_class", [True, False])
def test_from_moments(per_class):
    rows, labels = draw(4)
    moments = ClassMoments.none(3, 4, per_class, CPU)
    sample = EmbeddingStore(3, 4, size=len(rows))  # all of them: the eigenvalues are exact
    for accumulator in (moments, sample):
        accumulator.append(torch.tensor(rows), torch.tensor(labels))
    assert_statistics(statistics_of_moments(moments, sample), rows, labels)


def test_eigenvalues_come_from_the_smaller_gram_matrix():
    for shape in ((5, 20), (20, 5)):
        residual = centre(torch.randn(shape, dtype=torch.float64))[1]
        expected = np.linalg.eigvalsh(np.cov(residual.numpy().T, ddof=0))
        assert np.allclose(np.sort(covariance_eigenvalues(residual)), expected, atol=1e-12)


def test_directions_are_those_of_a_pseudo_inverse():
    residual = centre(torch.randn(6, 10, dtype=torch.float64))[1]
    values, directions = principal_directions(residual)
    assert values.shape == (5,)  # of six centred rows
    assert torch.allclose(directions @ directions.T, torch.eye(5, dtype=torch.float64))
    covariance = residual.T @ residual / 6
    assert torch.allclose(directions.T @ (directions / values[:, None]), torch.linalg.pinv(covariance, hermitian=True))


def test_rounding_around_a_mean_is_nothing():
    rows = torch.full((5, 3), 0.1, dtype=torch.float64) * torch.tensor([1.0, 7.0, 1e3])
    assert (centre(rows)[1] == 0).all()
    rows[0, 0] += 1e-6
    assert (centre(rows)[1] != 0).any()


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.ones(2, 4), torch.arange(2), r"floats \(M, 3\), got torch.float32 \(2, 4\)"),
        (torch.ones(2, 3).long(), torch.arange(2), "floats .* got torch.int64"),
        (torch.ones(2, 3), torch.arange(3), r"integers \(2,\), got .* \(3,\)"),
        (torch.ones(2, 3), torch.ones(2), "integers .* got torch.float32"),
        (torch.tensor([[1.0, 2.0, torch.inf]]), torch.zeros(1).long(), "hold 1 non-finite .* of 3"),
        (torch.tensor([[torch.inf, 2.0, -torch.inf]]), torch.zeros(1).long(), "hold 2 non-finite .* of 3"),
        (torch.ones(2, 3), torch.tensor([0, 5]), r"in \[0, 3\), got 5: raise num_classes"),
    ],
)
def test_batches_that_cannot_be_measured(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        check_batch(embeddings, labels, num_classes=3, dim=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_embeddings_are_measured_also_where_their_sum_overflows(dtype):
    check_batch(torch.full((64, 3), torch.finfo(dtype).max, dtype=dtype), torch.zeros(64).long(), 3, 3)
    check_batch(torch.empty(0, 3, dtype=dtype), torch.empty(0).long(), 3, 3)


def test_classes_of_equal_size_are_the_same_in_batches_of_one(monkeypatch):
    rows, labels = draw(6, num_classes=5, num=100)
    seen = []
    monkeypatch.setattr(
        class_statistics_module, "covariance_eigenvalues",
        lambda rows: seen.append(len(rows)) or covariance_eigenvalues(rows),
    )  # fmt: skip
    monkeypatch.setattr(class_statistics_module, "BLOCK_BYTES", 4 * rows.size)  # all that are read together
    assert_statistics(class_statistics(torch.tensor(rows), torch.tensor(labels), 5), rows, labels)
    assert seen == [1] * 5


def test_only_classes_with_samples_are_in():
    rows, labels = draw(4, num_classes=2)
    statistics = class_statistics(torch.tensor(rows), torch.tensor(2 * labels + 1), 5)
    assert statistics.classes.tolist() == [1, 3]
    assert_statistics(statistics, rows, labels)


@pytest.mark.parametrize("shape", [(5, 7, 9), (2, 9, 7), (7, 9), (1, 3, 3)])
def test_eigenvalues_are_those_of_each_covariance(shape):
    rows = torch.randn(shape, dtype=torch.float64)
    expected = torch.linalg.eigvalsh(rows.mT @ rows / shape[-2]).clamp(min=0)  # (..., D), zeros included
    torch.testing.assert_close(covariance_eigenvalues(rows).sort().values, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("num_classes", "each"), [(1, 4), (2, 2), (9, 1)])
def test_threads_are_shared_by_the_classes_and_the_caller_keeps_its_own(num_classes, each, monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(
        class_statistics_module, "covariance_eigenvalues",
        lambda rows: seen.append(torch.get_num_threads()) or covariance_eigenvalues(rows),
    )  # fmt: skip
    labels = torch.arange(num_classes).repeat(5)
    torch.set_num_threads(4)
    try:
        class_statistics(torch.randn(len(labels), 6), labels, num_classes)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert {*seen} == {each}
