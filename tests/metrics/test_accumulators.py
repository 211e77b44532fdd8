"""What the accumulators remember, against the rows themselves."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from hf_protosphere.metrics import accumulators
from hf_protosphere.metrics.accumulators import ClassMoments, EmbeddingStore, OnDisk

CPU = torch.device("cpu")


def bytes_on_disk(store):
    return sum(block.nbytes for block in store.rows if isinstance(block, OnDisk))


def draw(num=60, num_classes=4, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return rows, torch.randint(num_classes - 1, (num,), generator=generator)  # none of the last


def fill(accumulator, rows, labels, batch=7):
    for start in range(0, len(rows), batch):
        accumulator.append(rows[start : start + batch], labels[start : start + batch])
    return accumulator


@pytest.mark.parametrize("batch", [1, 7, 60])
@pytest.mark.parametrize("memory_limit", [0, 500, 2**20])
def test_a_store_gives_back_every_row_by_class(memory_limit, batch, monkeypatch):
    monkeypatch.setattr(accumulators, "BLOCK_BYTES", 240)
    rows, labels = draw()
    store = fill(EmbeddingStore(4, 3, memory_limit=memory_limit), rows, labels, batch)
    assert store.counts.tolist() == [int((labels == c).sum()) for c in range(4)]
    for c in range(4):
        assert torch.equal(store.of_classes(slice(c, c + 1)), rows[labels == c])  # in the order in which they came
    in_memory = sum(block.nbytes for block in store.rows if isinstance(block, torch.Tensor))
    assert in_memory + bytes_on_disk(store) == rows.nbytes
    assert in_memory <= memory_limit + 240  # the last blocks still grow
    assert len(store.rows) < 1 + 2 * rows.nbytes / 240 + math.log2(60)
    together = [torch.cat(parts) for parts in zip(*store.batches())]
    order = together[1].argsort(stable=True)
    assert torch.equal(together[0][order], rows[labels.argsort(stable=True)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_blocks_on_disk_are_read_in_slices_and_copied_into_memory(dtype, monkeypatch):
    monkeypatch.setattr(accumulators, "BLOCK_BYTES", 100)
    rows, labels = draw()
    store = fill(EmbeddingStore(4, 3, memory_limit=0), rows.to(dtype), labels)
    block, other = store.rows[:2]
    assert isinstance(block, OnDisk)
    assert block.file is other.file  # one, whatever the number of blocks
    expected = rows[: len(block)][labels[: len(block)].argsort(stable=True)].to(dtype)
    for copied in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), block[:]):
        assert type(copied) is torch.Tensor
        assert torch.equal(copied, expected)
    assert torch.equal(block[2:4], block[:][2:4])
    assert block[2:2].shape == (0, 3)
    assert torch.allclose(block, block[:])


def test_a_store_keeps_dtypes_and_merges(monkeypatch):
    monkeypatch.setattr(accumulators, "BLOCK_BYTES", 300)
    rows, labels = draw()
    store = fill(EmbeddingStore(4, 3), rows[:20].half(), labels[:20])
    other = fill(EmbeddingStore(4, 3, memory_limit=0), rows[20:], labels[20:])
    assert store.of_classes(slice(0, 1)).dtype == torch.float16
    store.merge(other)
    expected = torch.cat([rows[:20].half().double(), rows[20:]])
    assert torch.equal(store.of_classes(slice(1, 2)), expected[labels == 1])
    assert bytes_on_disk(other) > 0 == bytes_on_disk(fill(EmbeddingStore(4, 3), rows, labels))


def sampled(rows, labels, batch, size=9):
    return fill(EmbeddingStore(4, 3, size=size), rows, labels, batch).settled()


def test_a_sample_is_of_the_rows_and_no_larger_than_asked_for():
    rows, labels = draw(200)
    sample = sampled(rows, labels, 7)
    assert sample.counts.tolist() == labels.bincount(minlength=4).clamp(max=9).tolist()
    for c in range(4):
        kept = sample.of_classes(slice(c, c + 1))
        assert {tuple(row) for row in kept.tolist()} <= {tuple(r) for r in rows[labels == c].tolist()}
        assert len(kept.unique(dim=0)) == len(kept)


def test_a_sample_is_the_same_in_any_order_in_batches_of_any_size_and_merged():
    rows, labels = draw(200)
    sample, order = sampled(rows, labels, 7), torch.randperm(200)
    first, second = sampled(rows[:90], labels[:90], 90), sampled(rows[90:], labels[90:], 11)
    first.merge(second)
    for other in (
        sampled(rows[order], labels[order], 200),
        sampled(rows, labels, 1),
        first.settled(),
    ):
        assert torch.equal(sample.rows[0], other.rows[0])
        assert torch.equal(sample.labels[0], other.labels[0])


def test_the_sample_is_uniform():
    sample = EmbeddingStore(1, 1, size=100)
    for start in range(0, 10_000, 50):
        sample.append(torch.arange(start, start + 50.0)[:, None], torch.zeros(50).long())
        assert sum(map(len, sample.rows)) <= 2 * 100 + 50
    rows = sample.settled().of_classes(slice(0, 1)).flatten()
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
    moments = fill(ClassMoments.none(4, 3, per_class, CPU), rows, labels)
    first = [int((labels == c).nonzero()[0]) for c in range(3)]
    assert torch.equal(moments.origins[:3], rows[first])
    assert_moments(moments, rows, labels, moments.origins)
    elsewhere = torch.randn(4, 3, dtype=torch.float64)
    assert_moments(moments.moved(elsewhere), rows, labels, elsewhere)

    halves = [
        fill(ClassMoments.none(4, 3, per_class, CPU), rows[part], labels[part])
        for part in (slice(0, 30), slice(30, 60))
    ]
    merged = halves[0].merged(halves[1])
    assert_moments(merged, rows, labels, merged.origins)
    for half, part in zip(halves, (slice(0, 30), slice(30, 60))):  # they stay as they were
        assert_moments(half, rows[part], labels[part], half.origins)
