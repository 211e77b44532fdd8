"""Which training images come when."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from hf_protosphere.data.samplers import ClassBalancedBatches, EpochSampler


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(100, seed)
        sampler.set_epoch(epoch)
        assert len(sampler) == 100
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(100))
    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


LABELS = np.random.default_rng(0).permutation(np.repeat(range(6), [50, 30, 20, 10, 6, 4]))


def balanced(classes=3, size=6, seed=0, batches_per_step=1, epoch=0, labels=LABELS):
    batches = ClassBalancedBatches(labels, classes, size, seed=seed, batches_per_step=batches_per_step)
    batches.set_epoch(epoch)
    return batches


@pytest.mark.parametrize(("classes", "size"), [(3, 6), (6, 12), (1, 5), (4, 4)])
def test_every_batch_has_so_many_classes_with_so_many_images(classes, size):
    batches = balanced(classes, size)
    assert len(list(batches)) == len(batches) == 120 // size
    seen = Counter()
    for batch in batches:
        counts = Counter(LABELS[i % 120] for i in batch)
        assert list(counts.values()) == [size // classes] * classes
        seen.update(counts)
    assert max(seen.values()) - min(seen.values()) <= size // classes  # classes, equally often


def test_batches_of_one_step_share_no_image():
    # 2 processes x 2 micro-batches; each of 6 classes comes twice in 4 batches of 3, 4 images
    batches = list(balanced(3, 6, batches_per_step=4))
    for step in range(len(batches) // 4):
        indices = [i % 120 for batch in batches[4 * step : 4 * step + 4] for i in batch]
        assert len(set(indices)) == len(indices) == 24


def test_a_class_is_gone_through_before_an_image_comes_again():
    order = {label: [] for label in range(6)}
    for batch in balanced(2, 6):
        for i in batch:
            order[LABELS[i % 120]].append(i)
    for label, indices in order.items():
        assert len(set(indices)) == len(indices)  # repetitions have indices of their own
        members = set(np.flatnonzero(label == LABELS))
        passes = [{i % 120 for i in indices if i // 120 == r} for r in range(20)]
        for earlier, later in pairwise(passes):
            assert not later or earlier == members
    assert max(max(indices) for indices in order.values()) // 120 == 20 // 4 - 1


def test_balanced_order_depends_on_seed_and_epoch_alone():
    orders = {str(list(balanced(seed=seed, epoch=epoch))) for seed in range(2) for epoch in range(3)}
    assert len(orders) == 6
    assert list(balanced(epoch=2)) == list(balanced(epoch=2))
