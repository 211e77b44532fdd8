"""Which training images come when: functions of the seed and the epoch alone."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler


class ByEpoch:
    """What is drawn anew in every epoch, as a function of its number."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class EpochSampler(ByEpoch, Sampler[int]):
    """All indices in [0, num_samples), in an order that depends only on (seed, epoch)."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        return iter(torch.randperm(self.num_samples, generator=generator).tolist())


class ClassBalancedBatches(ByEpoch, Sampler[list[int]]):
    """Batches of C classes with S images each: every class comes equally often in an epoch.

    Batches that belong to one step, those of all processes and micro-batches, share no image as long as each class has
    enough of them; a class is gone through before an image of it comes again. An image's r-th repetition within the
    epoch has the index i + r · num_samples, so that it can be augmented anew.

    Args:
        labels: (N,) of the training images; every class in [0, K) has some.
        classes_per_batch: C, at most K.
        batch_size: C · S.
        batches_per_step: batches that are one step; Accelerate deals them out to the processes in turn.
    """

    drop_last = True  # what Accelerate asks of batch samplers

    def __init__(
        self, labels: Sequence[int], classes_per_batch: int, batch_size: int, *, seed: int, batches_per_step: int = 1
    ) -> None:
        labels = np.asarray(labels)
        self.members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
        self.num_samples, self.batch_size = len(labels), batch_size
        self.classes_per_batch, self.batches_per_step = classes_per_batch, batches_per_step
        self.seed, self.steps = seed, self.num_samples // (batch_size * batches_per_step)

    def __len__(self) -> int:
        return self.steps * self.batches_per_step

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        classes = _ShuffledPasses(np.arange(len(self.members)), rng)
        images = [_ShuffledPasses(members, rng) for members in self.members]
        images_per_class = self.batch_size // self.classes_per_batch
        seen: Counter[int] = Counter()
        for _ in range(self.steps):
            chosen = [classes.take(self.classes_per_batch) for _ in range(self.batches_per_step)]
            # All of a class for the whole step at once: that is what keeps batches disjoint.
            times = Counter(label for batch in chosen for label in batch)
            drawn = {label: iter(images[label].take(count * images_per_class)) for label, count in times.items()}
            for batch in chosen:
                indices = []
                for label in batch:
                    for _, i in zip(range(images_per_class), drawn[label]):
                        indices.append(int(i) + seen[i] * self.num_samples)
                        seen[i] += 1
                yield indices


class _ShuffledPasses:
    """Items in an endless series of shuffled passes; any n in a row differ, up to their number."""

    def __init__(self, items: np.ndarray, rng: np.random.Generator) -> None:
        self.items, self.rng = items, rng
        self.queue = items[:0]

    def take(self, count: int) -> list[int]:
        parts = [self.queue]
        while sum(map(len, parts)) < count:
            following = self.rng.permutation(self.items)
            # Those that wait already come last in the next pass.
            waiting = np.isin(following, parts[-1])
            parts = [*parts, following[~waiting], following[waiting]]
        queue = np.concatenate(parts)
        self.queue = queue[count:]
        return queue[:count].tolist()
