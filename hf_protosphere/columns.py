"""The columns of a data set that hold images and labels, found by type and then by name."""

from __future__ import annotations

from typing import Any

from datasets import ClassLabel, Dataset, Image, IterableDataset, Value

from .errors import DataError

LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category", "y")


def find_image_column(split: Dataset, name: str | None, flag: str = "--image_column") -> str:
    columns = _describe(split)
    if name is not None:
        if name not in split.features:
            raise DataError(f"{flag} {name}: there is no such column, but {columns}.")
        feature = split.features[name]
        if (
            not isinstance(feature, Image)
            and "bytes" not in str(feature)
            and "binary" not in str(feature)
        ):
            raise DataError(f"{flag} {name} holds no images: the columns are {columns}.")
        return name
    found = [column for column, feature in split.features.items() if isinstance(feature, Image)]
    if len(found) == 1:
        return found[0]
    problem = "has no column of images" if not found else "has several columns of images"
    raise DataError(f"the data set {problem}: give {flag}, one of {columns}.")


def find_label_column(split: Dataset, name: str | None) -> str:
    columns = _describe(split)
    if name is not None:
        if name not in split.features:
            raise DataError(f"--label_column {name}: there is no such column, but {columns}.")
        return name
    found = [c for c, feature in split.features.items() if isinstance(feature, ClassLabel)]
    if not found:
        found = [
            column for column in LABEL_COLUMNS if isinstance(split.features.get(column), Value)
        ]
    if len(found) == 1:
        return found[0]
    problem = "has no column of labels" if not found else "has several columns of labels"
    raise DataError(f"the data set {problem}: give --label_column, one of {columns}.")


def _describe(split: Dataset) -> str:
    def kind(feature: Any) -> str:
        return feature.dtype if isinstance(feature, Value) else type(feature).__name__

    return ", ".join(f"{name} ({kind(feature)})" for name, feature in split.features.items())


def two_columns(split: Dataset, image_column: str, label_column: str) -> Dataset:
    for flag, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in split.features:
            raise DataError(
                f"--{flag} {column} is missing in one of the splits, which has {_describe(split)}."
            )
    if isinstance(split, IterableDataset):
        # First of all: what comes later would decode images and encode them again.
        split = split.cast_column(image_column, Image(decode=False))
    split = split.select_columns([image_column, label_column])
    if not isinstance(split.features[image_column], Image):
        split = split.cast_column(image_column, Image())
    names = {image_column: "image", label_column: "label"}
    return split.rename_columns({old: new for old, new in names.items() if old != new})
