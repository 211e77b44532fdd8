"""Training sets with few images: long-tailed, or a few of each class; and accuracy by frequency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .data import ImageDataset
from .labels import labels_of

# Classes by their training images, as Liu et al. 2019 ("Large-Scale Long-Tailed Recognition in an
# Open World") count them and the field has since.
MANY, FEW = 100, 20


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


def make_long_tailed(images: ImageDataset, kind: str, factor: float, seed: int) -> None:
    """Leave `long_tailed_counts` of the training images of each class, drawn by the seed."""
    counts = long_tailed_counts(images.class_counts("train"), kind, factor)
    kept = drawn(labels_of(images.splits["train"]), counts, seed)
    images.splits["train"] = images.splits["train"].select(kept)


def make_few_shot(images: ImageDataset, images_per_class: int, seed: int) -> None:
    """Leave so many training images of each class, or all that there are, drawn by the seed."""
    counts = [images_per_class] * images.num_labels
    kept = drawn(labels_of(images.splits["train"]), counts, seed)
    images.splits["train"] = images.splits["train"].select(kept)


def drawn(labels: np.ndarray, counts: Sequence[int], seed: int) -> np.ndarray:
    """Indices of at most `counts[c]` members of each class c, drawn by the seed; sorted.

    Example:
        >>> len(drawn(np.array([0, 0, 0, 1]), [2, 2], seed=0))
        3
    """
    rng = np.random.default_rng(seed)
    kept = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(kept))


def accuracy_by_frequency(
    accuracies: Sequence[float | None], train_counts: Sequence[int]
) -> dict[str, float]:
    """Mean accuracy of the classes with many (> 100), medium and few (< 20) training images.

    Args:
        accuracies: of each class, in [0, 1]; None for one that was not evaluated.

    Returns:
        {"many": ..., "medium": ..., "few": ...} without groups that are empty.

    Example:
        >>> accuracy_by_frequency([1.0, 0.5, 0.0], [500, 300, 5])
        {'many': 0.75, 'few': 0.0}
    """
    groups: dict[str, list[float]] = {"many": [], "medium": [], "few": []}
    for accuracy, count in zip(accuracies, train_counts):
        if accuracy is not None:
            group = "many" if count > MANY else "few" if count < FEW else "medium"
            groups[group].append(accuracy)
    return {name: sum(values) / len(values) for name, values in groups.items() if values}
