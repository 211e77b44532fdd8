"""The labels of a data set, whatever they come as: class names, numbers, features of another split.

Splits are matched by class name, never by number: each split of a folder numbers its own classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value

from ..errors import DataError

SHOWN = 5  # names listed in a message


def find_class_names(splits: dict[str, Dataset], column: str) -> list[str]:
    """The classes, from the training split where there is one."""
    split = splits.get("train", next(iter(splits.values())))
    feature = split.features["label"]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return sorted({str(name) for name in split.unique("label") if name is not None})
    values = _integers(split, "train", column)
    return [str(i) for i in range(max(values) + 1)]


def _integers(split: Dataset, role: str, column: str = "label") -> list[int]:
    """The distinct integer labels of a column that is no ClassLabel."""
    feature = split.features["label"]
    if not (isinstance(feature, Value) and "int" in feature.dtype):
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        raise DataError(
            f"--label_column {column} must hold class names or whole numbers, but the labels of "
            f"the {role} split are of type {kind}."
        )
    values = split.unique("label")
    if None in values:
        raise DataError(f"--label_column {column}: the {role} split has images without a label.")
    if min(values) < 0:
        hidden = " (hidden labels?)" if set(values) == {-1} else ""
        raise DataError(
            f"--label_column {column}: labels count from 0, but the {role} split has "
            f"{min(values)}{hidden}. Evaluate on a split with labels."
        )
    return values


def map_labels(split: Dataset, role: str, names: list[str]) -> Dataset:
    """The split with ClassLabel(names), its own classes matched by name."""
    feature = split.features["label"]
    if isinstance(feature, ClassLabel):
        own = list(feature.names)
        labels = labels_of(split)
        if len(labels) and labels.min() < 0:
            raise DataError(
                f"the {role} split has labels of {labels.min()} (hidden labels?): evaluate on a "
                "split with labels."
            )
        used = [own[i] for i in sorted(set(labels.tolist()))]
    elif isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        if None in (used := split.unique("label")):
            raise DataError(f"the {role} split has images without a label.")
        own = sorted(used)
        index = {name: i for i, name in enumerate(own)}
        labels = np.asarray([index[name] for name in labels_of(split)])
    else:
        largest = max(_integers(split, role))
        if largest >= len(names):
            raise DataError(
                f"the {role} split has the label {largest}, but there are {len(names)} classes, "
                f"numbered from 0: {some(names)}."
            )
        own, labels = names, labels_of(split)  # numbers are the classes themselves
        used = []
    if own == names and isinstance(feature, ClassLabel):
        return split
    # Numbers for names, as in a Parquet file without metadata, can only mean the order.
    if own == [str(i) for i in range(len(names))]:
        own = names
    missing = [name for name in used if name not in names]
    if missing and own is not names:
        raise DataError(
            f"the {role} split has classes that are not among the {len(names)} known ones: "
            f"{some(missing)}. Known are {some(names)}."
        )
    index = {name: i for i, name in enumerate(names)}
    translation = np.asarray([index.get(name, -1) for name in own])
    labels = translation[labels].astype(np.int64).tolist()
    mapped = split.remove_columns("label").add_column("label", labels)
    return mapped.cast_column("label", ClassLabel(names=names))


def labels_of(split: Dataset) -> np.ndarray:
    """The column "label", (N,)."""
    # As one Arrow column: row by row it takes seconds.
    return split.with_format("arrow", columns=["label"])[:]["label"].to_numpy()


def some(names: Iterable[Any]) -> str:
    names = list(map(str, names))
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
