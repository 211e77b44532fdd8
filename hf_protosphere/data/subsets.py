"""Parts of a split, drawn by a seed: long-tailed, a few of each class, balanced, or held out."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from .labels import labels_of


def long_tailed_counts(available: Sequence[int], kind: str, factor: float) -> list[int]:
    """Images to keep of each class, in the order of the classes.

    Args:
        available: images there are of each class.
        kind: "exp", n · factor^(c / (K − 1)) for class c, or "step", n for the first half of the
            classes and n · factor for the others (Cui et al. 2019; Cao et al. 2019). n is what the
            smallest class has.
        factor: smallest class over largest, in (0, 1].

    Returns:
        At least 1 of each class, never more than there are.

    Example:
        >>> long_tailed_counts([500] * 5, "exp", 0.01)
        [500, 158, 50, 15, 5]
        >>> long_tailed_counts([500] * 5, "step", 0.01)
        [500, 500, 5, 5, 5]
    """
    num_classes, largest = len(available), min(available)
    classes = np.arange(num_classes)
    if kind == "exp":
        # 1e-9: 50.000…1 or 49.999…9 by rounding are both 50
        shares = factor ** (classes / max(num_classes - 1, 1))
    else:
        shares = np.where(classes < num_classes // 2, 1.0, factor)
    return np.maximum(np.floor(largest * shares + 1e-9), 1).astype(int).tolist()


def long_tailed(split: Dataset, num_classes: int, kind: str, factor: float, seed: int) -> Dataset:
    """`long_tailed_counts` of the images of each class, drawn by the seed."""
    labels = labels_of(split)
    counts = np.bincount(labels, minlength=num_classes).tolist()
    return split.select(drawn(labels, long_tailed_counts(counts, kind, factor), seed))


def few_shot(split: Dataset, num_classes: int, images_per_class: int, seed: int) -> Dataset:
    """So many images of each class, or all that there are, drawn by the seed."""
    return split.select(drawn(labels_of(split), [images_per_class] * num_classes, seed))


def drawn(labels: np.ndarray, counts: Sequence[int], seed: int) -> np.ndarray:
    """Indices of at most `counts[c]` members of each class c, drawn by the seed; sorted."""
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(counts)]
    return np.sort(np.concatenate(kept))


def with_held_out(train: Dataset, fraction: float, seed: int) -> dict[str, Dataset]:
    """The training split in two, "train" and "validation": about `fraction` of each class, never
    all of one."""
    labels = labels_of(train)
    counts = [min(max(round(fraction * n), 1), n - 1) for n in np.bincount(labels).tolist()]
    held_out = drawn(labels, counts, seed)
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    return {"train": train.select(kept), "validation": train.select(held_out)}


def balanced_sample(split: Dataset, limit: int, seed: int) -> Dataset:
    """`limit` images, as equal a number of each class as there are; deterministic by seed. All of
    them, in their order, where there are not more."""
    if limit >= len(split):
        return split
    labels = np.unique(labels_of(split), return_inverse=True)[1]  # hidden ones are -1
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    counts = np.bincount(labels)
    turns = np.empty(len(labels), dtype=np.int64)  # of the images in that order, within their class
    turns[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return split.select(np.sort(order[np.argsort(turns, kind="stable")][:limit]))


def training_sample(train: Dataset, num_classes: int, size: int | None, seed: int) -> Dataset | None:
    """A fixed part of the training images, balanced by class, to measure on during training: by
    default 1 % of them, at most 10,000, but at least 10 of each class; none with a size of 0."""
    if size is None:
        size = max(min(len(train) // 100, 10_000), 10 * num_classes)
    return balanced_sample(train, size, seed) if size else None
