"""What the accumulators remember, against the rows themselves."""

import math

import numpy as np
import pytest
import torch

from hf_protosphere.metrics import accumulators
from hf_protosphere.metrics.accumulators import ClassMoments, EmbeddingSample, EmbeddingStore

CPU = torch.device("cpu")


def draw(num=60, num_classes=4, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return rows, torch.randint(num_classes - 1, (num,), generator=generator)  # none of the last


def fill(accumulator, rows, labels, batch=7):
    for start in range(0, len(rows), batch):
        accumulator.append(rows[start : start + batch], labels[start : start + batch])
    return accumulator


@pytest.mark.parametrize("memory_limit", [0, 500, 2**20])
def test_a_store_gives_back_every_row_by_class(memory_limit, monkeypatch):
    monkeypatch.setattr(accumulators, "BLOCK_BYTES", 200)
    rows, labels = draw()
    store = fill(EmbeddingStore(4, 3, memory_limit), rows, labels)
    assert store.counts.tolist() == [int((labels == c).sum()) for c in range(4)]
    for c in range(4):
        assert torch.equal(store.rows(c), rows[labels == c])  # in the order in which they came
    assert store.bytes_in_memory + store.bytes_on_disk == rows.nbytes
    assert store.bytes_in_memory <= memory_limit
    together = [torch.cat(parts) for parts in zip(*store.batches())]
    order = together[1].argsort(stable=True)
    assert torch.equal(together[0][order], rows[labels.argsort(stable=True)])


def test_a_store_keeps_dtypes_and_merges():
    rows, labels = draw()
    store = fill(EmbeddingStore(4, 3, 2**20), rows[:20].half(), labels[:20])
    other = fill(EmbeddingStore(4, 3, 0), rows[20:], labels[20:])
    assert store.rows(0).dtype == torch.float16
    store.merge(other)
    expected = torch.cat([rows[:20].half().double(), rows[20:]])
    assert torch.equal(store.rows(1), expected[labels == 1])
    assert "in memory" in str(store)
    assert "in a temporary file" in str(other)


def test_a_sample_is_of_the_rows_and_no_larger_than_asked_for():
    rows, labels = draw(200)
    sample = fill(EmbeddingSample(4, 3, size=9), rows, labels)
    assert sample.counts.tolist() == labels.bincount(minlength=4).tolist()
    for c in range(4):
        kept = sample.rows(c)
        assert len(kept) == min(9, int((labels == c).sum()))
        assert {tuple(row) for row in kept.tolist()} <= {
            tuple(r) for r in rows[labels == c].tolist()
        }
        assert len(kept.unique(dim=0)) == len(kept)
    other = fill(EmbeddingSample(4, 3, size=9), rows, labels)
    other.merge(sample)
    assert other.counts.sum() == 400
    assert len(other.rows(0)) == 9


def test_the_sample_is_uniform():
    sample = EmbeddingSample(1, 1, size=100)
    for start in range(0, 10_000, 50):
        sample.append(torch.arange(start, start + 50.0)[:, None], torch.zeros(50).long())
    rows = sample.rows(0).flatten()
    assert len(rows.unique()) == 100
    assert rows.mean() == pytest.approx(5000, abs=3 * 10_000 / math.sqrt(12 * 100))
    assert rows.std() == pytest.approx(10_000 / math.sqrt(12), rel=0.2)


def second_moments(rows, origin):
    return sum((np.outer(row - origin, row - origin) for row in rows.numpy()), np.zeros((3, 3)))


def assert_moments(moments, rows, labels, origins):
    pooled = np.zeros((3, 3))
    for c in range(4):
        members, origin = rows[labels == c], origins[c]
        assert moments.counts[c] == len(members)
        assert torch.allclose(moments.sums[c], (members - origin).sum(0))
        assert torch.allclose(moments.squares[c], (members - origin).square().sum())
        of_class = second_moments(members, origin.numpy())
        pooled += of_class
        if moments.per_class:
            assert np.allclose(moments.second[c], of_class)
    if not moments.per_class:
        assert np.allclose(moments.second, pooled)


@pytest.mark.parametrize("per_class", [True, False])
def test_moments_are_sums_of_outer_products_around_any_origin(per_class):
    rows, labels = draw()
    moments = fill(ClassMoments(4, 3, per_class, CPU), rows, labels)
    first = [int((labels == c).nonzero()[0]) for c in range(3)]
    assert torch.equal(moments.origins[:3], rows[first])
    assert_moments(moments, rows, labels, moments.origins)
    elsewhere = torch.randn(4, 3, dtype=torch.float64)
    assert_moments(moments.moved(elsewhere), rows, labels, elsewhere)

    halves = [
        fill(ClassMoments(4, 3, per_class, CPU), rows[part], labels[part])
        for part in (slice(0, 30), slice(30, 60))
    ]
    halves[0].merge(halves[1])
    assert_moments(halves[0], rows, labels, halves[0].origins)
