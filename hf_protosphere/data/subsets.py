"""Parts of a split, drawn by a seed, or what the tables of --labels and --exclude leave of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from ..arguments.fields import did_you_mean
from ..editable_classes import class_name
from ..errors import DataError, errors_in_one_line
from ..runs.processes import announce
from .labels import labels_of
from .pixels import content_of, undecoded

TOLD = ["image", "label", "content"]  # that are read of the tables of `protosphere inspect`


def long_tailed_counts(available: Sequence[int], kind: str, factor: float) -> list[int]:
    """Images to keep of each class, in the order of the classes.

    Args:
        available: images there are of each class.
        kind: "exp", n · factor^(c / (K − 1)) for class c, or "step", n for the first half of the classes and
            n · factor for the others (Cui et al. 2019; Cao et al. 2019). n is what the smallest class has.
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
    """The training split in two, "train" and "validation": about `fraction` of each class, never all of one."""
    labels = labels_of(train)
    counts = [min(max(round(fraction * n), 1), n - 1) for n in np.bincount(labels).tolist()]
    held_out = drawn(labels, counts, seed)
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    return {"train": train.select(kept), "validation": train.select(held_out)}


def balanced_sample(split: Dataset, limit: int, seed: int) -> Dataset:
    """`limit` images, drawn by the seed, as equal a number of each class as there are; or all, in their order."""
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


def corrected(
    split: Dataset, source: str, sizes: Mapping[str, int], *, labels: str | None = None, exclude: str | None = None
) -> tuple[Dataset, list[str]]:
    """A split with the labels of one table and without the images of another, and what is left by names as train[7].

    Args:
        split: all of it, with its classes.
        source: its name in the data set, or several joined by "+"; `sizes` are of all of the data set's splits.
        labels, exclude: files with some rows of images.csv of `protosphere inspect`.

    Raises:
        ArgumentError: a file that is no such table.
        DataError: a table of other images, by the hash of their files; no such class; or no image that is left.
    """
    parts, classes = source.split("+"), {name: i for i, name in enumerate(split.features["label"].names)}
    images = np.asarray([f"{part}[{row}]" for part in parts for row in range(sizes[part])])
    rows, raw, given = dict(zip(images, range(len(split)))), undecoded(split.select_columns("image")), labels_of(split)
    new, kept = given.copy(), np.ones(len(split), bool)
    for flag, path in {"--labels": labels, "--exclude": exclude}.items():
        if path is None:
            continue
        with errors_in_one_line(f"{flag} {path} is no images.csv of `protosphere inspect`"):
            table = pd.read_csv(Path(path), usecols=TOLD, dtype=str, keep_default_na=False)[TOLD]
        for image, label, content in table[table["image"].str.split("[").str[0].isin(parts)].itertuples(index=False):
            row, label = rows.get(image), class_name(label)
            if label not in classes:
                near = did_you_mean(label, classes)
                raise DataError(f"{flag} {path}: {image} is labelled {label!r}, which is no class.{near}")
            if row is not None and flag == "--labels" and classes[label] == given[row]:
                continue  # most rows: nothing to look at
            if row is None or content != content_of(raw[row]["image"]):
                raise DataError(f"{flag} {path}: {image} is another image, or gone: run `protosphere inspect` again.")
            new[row], kept[row] = classes[label], flag == "--labels"
    if labels is not None or exclude is not None:
        announce(f"{source}: {np.sum(new != given):,} labels corrected, {np.sum(~kept):,} images left out")
    if not kept.any():
        raise DataError(f"--exclude {exclude} leaves no image of the split {source!r}.")
    if (new != given).any():
        split = split.remove_columns("label").add_column("label", new.tolist(), feature=split.features["label"])
    return split if kept.all() else split.select(np.flatnonzero(kept)), images[kept].tolist()
