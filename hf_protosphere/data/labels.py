"""The labels of a data set, whatever they come as: class names, numbers, features of another split.

Splits are matched by class name, never by number: each split of a folder numbers its own classes.
Numbers without names are names where any class is called by a number; else they are positions."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from torch import Tensor

from ..editable_classes import class_name
from ..errors import DataError
from ..plots.text import printable
from ..runs.processes import announce

Split = Dataset | IterableDataset
JOINT = "␟"  # the symbol of ASCII's unit separator: of no class's name
SHOWN = 5  # names listed in a message
MAX_CLASSES = 1_000_000  # that numbers can count: larger ones are no labels


def find_class_names(splits: dict[str, Split]) -> list[str]:
    """The classes, as `class_name` has them, from the training split where there is one."""
    named = [r for r, s in splits.items() if isinstance(s, Dataset) or isinstance(s.features["label"], ClassLabel)]
    role = "train" if "train" in named or not named else named[0]  # the numbers of a stream are not all known
    own, _ = _own_classes(splits[role], role)
    names = list(dict.fromkeys(map(class_name, own)))
    if changed := [name for name in own if name != class_name(name)]:
        announce(
            "Class names are read without spaces at their ends or in a row, and in NFC: "
            f"{some(map(repr, changed))}. So there are {len(names)} classes of {len(own)} names."
        )
    announce_cases(names, names)
    return names


def with_joined_labels(splits: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], list[str]]:
    """Of a label column that lists an image's classes: one class for each list in any of the splits; and these."""
    joined, found = {}, set()
    for role, split in splits.items():
        kind = split.features["label"]
        if not hasattr(kind, "feature"):
            raise DataError(f"--several_labels: those of the {role} split are no lists, but {kind}.")
        lists = split.with_format("arrow", columns=["label"])[:]["label"].to_pylist()
        name = getattr(kind.feature, "int2str", str)
        labels = [JOINT.join(["", *sorted({name(label) for label in own or ()})]) for own in lists]
        joined[role] = split.remove_columns("label").add_column("label", labels)
        found |= {*labels}
    return joined, sorted(found)


def memberships(joined: Sequence[str]) -> Tensor:
    """(S, K) 1.0 where a class, of K in the order of their names, is one of an S-th joined label.

    Example:
        >>> memberships(["␟cat", "␟cat␟dog", "␟"])
        tensor([[1., 0.],
                [1., 1.],
                [0., 0.]])
    """
    sets = [{*name.split(JOINT)} - {""} for name in joined]
    names = sorted(set().union(*sets))
    return torch.tensor([[float(name in own) for name in names] for own in sets])


def announce_cases(names: Iterable[str], known: Iterable[str]) -> None:
    """Say which of the names differ from a known one in case alone."""
    forms = Counter(name.casefold() for name in {*known, *names})
    if alike := [name for name in names if forms[name.casefold()] > 1]:
        announce(f"Classes whose names differ in case alone stay apart: {some(alike)}.")


def map_labels(split: Split, role: str, names: Sequence[str]) -> Split:
    """The split with ClassLabel(names), its classes matched by name; a stream's as they come."""
    own, labels = _own_classes(split, role, len(names))
    feature, names = split.features["label"], list(names)
    if isinstance(feature, ClassLabel) and own == names:
        return split
    table = _translation(own, np.unique(labels), names, role)
    if isinstance(split, IterableDataset):
        features = Features(split.features | {"label": ClassLabel(names=names)})
        renumber = dict(enumerate(table.tolist()))
        return split.map(lambda row: {"label": renumber.get(row["label"], row["label"])}, features=features)
    mapped = split.remove_columns("label").add_column("label", table[labels].tolist())
    return mapped.cast_column("label", ClassLabel(names=names))


def _own_classes(split: Split, role: str, count: int = 0) -> tuple[list[str], np.ndarray]:
    """The split's own class names (of a stream's numbers `count`), and each image's, (N,); of a stream all once."""
    feature = (split.features or {}).get("label")
    if isinstance(split, IterableDataset):
        numbered = range(count) if isinstance(feature, Value) and "int" in feature.dtype else []
        if not (own := [*map(str, getattr(feature, "names", numbered))]):
            raise DataError(f"--streaming needs a label column of ClassLabel, but it is {feature}: leave it out.")
        return own, np.arange(len(own))
    kind = feature.dtype if isinstance(feature, Value | ClassLabel) else type(feature).__name__
    if "int" not in kind and kind not in ("string", "large_string"):
        raise DataError(f"--label_column must hold class names or whole numbers, but {role} has them of type {kind}.")
    labels = labels_of(split, role)
    if "int" not in kind:
        own, labels = np.unique(labels, return_inverse=True)
        return own.tolist(), labels
    smallest, largest = (labels.min(), labels.max()) if len(labels) else (0, -1)
    if smallest < 0:
        raise DataError(f"--label_column: a {role} label is {smallest} (hidden labels?): take a split with labels.")
    names = [*map(str, feature.names)] if isinstance(feature, ClassLabel) else []
    if largest >= (len(names) or MAX_CLASSES):
        raise DataError(f"--label_column: the {role} label {largest} is not below {len(names) or MAX_CLASSES:,}.")
    return names or [str(i) for i in range(largest + 1)], labels


def _translation(own: list[str], used: np.ndarray, names: list[str], role: str) -> np.ndarray:
    """(len(own),) the place in `names` of each own class, −1 of those that are not there."""
    index = {class_name(name): i for i, name in enumerate(names)}
    index |= {name: i for i, name in enumerate(names)}  # the very name before another form of it
    table = np.asarray([index.get(name, index.get(class_name(name), -1)) for name in own])
    missing = [own[i] for i in used if table[i] < 0]
    if not missing:
        return table
    numbered = own == [str(i) for i in range(len(own))]
    if not numbered or any(name.isdecimal() for name in names):
        raise DataError(
            f"the {role} split has classes that are not among the {len(names)} known ones: "
            f"{some(missing)}. Known are {some(names)}."
        )
    if len(own) > len(names):
        raise DataError(f"a {role} label is {own[-1]}, but there are {len(names)} classes: {some(names)}.")
    _announce_positions(tuple(names))
    return np.arange(len(own))


@cache  # once, of however many splits
def _announce_positions(names: tuple[str, ...]) -> None:
    first = ", ".join(f"{i} is {name}" for i, name in enumerate(names[:SHOWN]))
    announce(f"Labels are numbers without names, and so positions of classes: {first}.")


def labels_of(split: Dataset, role: str = "") -> np.ndarray:
    """The column "label", (N,); the role is for the `DataError` on images without one."""
    if not isinstance(split, Dataset):  # features, in memory
        return split.labels.numpy()
    # As one Arrow column: row by row it takes seconds.
    column = split.with_format("arrow", columns=["label"])[:]["label"]
    if column.null_count:
        rows = np.flatnonzero(column.is_null())
        first = split.select(rows[:SHOWN]).with_format("arrow")[:]["image"].to_pylist()
        names = [(image or {}).get("path") or f"row {row}" for image, row in zip(first, rows)]
        raise DataError(f"{len(rows)} {role} images without a label, such as {some(names)}: label or remove them.")
    return column.to_numpy()


def some(names: Iterable[Any]) -> str:
    names = [*names]
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(printable(name).replace("\n", " ")[:200] for name in names[:SHOWN]) + rest
