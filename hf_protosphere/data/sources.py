"""Where a data set comes from, and which of its splits and columns are meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
)
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import httpx

from ..errors import DataError

LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category", "y")
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")


def load_splits(
    name: str, config: str | None, revision: str | None = None, streaming: bool = False,
    flag: str = "--dataset_name",
) -> DatasetDict | IterableDatasetDict:  # fmt: skip
    """All splits of a data set, as they are; a `DataError` names the flag that gave it."""
    path = Path(name).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            if streaming:
                raise DataError(
                    f"--streaming reads Parquet files and folders of images, but {name} was "
                    "written by save_to_disk: leave it out, nothing is downloaded there."
                )
            loaded = datasets.load_from_disk(str(path))
        elif path.suffix == ".parquet" and path.is_file():
            loaded = datasets.load_dataset("parquet", data_files=str(path), streaming=streaming)
        elif path.is_dir():
            loaded = datasets.load_dataset(str(path), config, streaming=streaming)
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise DataError(f"{flag} {name}: there is no such file or folder.")
        else:
            loaded = datasets.load_dataset(name, config, revision=revision, streaming=streaming)
    except RuntimeError as error:
        if "Dataset scripts are no longer supported" not in str(error):
            raise
        raise DataError(
            f"{flag} {name} needs a loading script, which datasets no longer runs: use a "
            "Parquet version of it (see its page on the Hub), or a folder of images with one "
            "sub-folder per class."
        ) from error
    except (OSError, ValueError, DatasetsError, httpx.HTTPError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{flag} {name} cannot be loaded: {type(error).__name__}: {error}\n"
            "It must be a data set on the Hub that can be reached, a folder of Parquet files, or a "
            "folder of images with one sub-folder per class."
        ) from error
    return DatasetDict({"train": loaded}) if isinstance(loaded, Dataset) else loaded


def with_joined(loaded: DatasetDict, name: str) -> DatasetDict:
    """The splits, with those that the name joins by "+" as one, called like this."""
    if isinstance(loaded, IterableDatasetDict):
        raise DataError(
            f"--train_split {name}: --streaming reads one split: leave it out, or name one."
        )
    parts = name.split("+")
    if missing := [part for part in parts if part not in loaded]:
        raise DataError(
            f"--train_split {name}: the data set has no {missing[0]}, but {', '.join(loaded)}."
        )
    try:
        joined = concatenate_datasets([loaded[part] for part in parts])
    except ValueError as error:
        raise DataError(f"--train_split {name}: {error}") from error
    others = {split: images for split, images in loaded.items() if split not in parts}
    return DatasetDict({name: joined, **others})


def choose_splits(
    loaded: DatasetDict, train: str, validation: str | None, test: str | None, need_train: bool,
    flags: Mapping[str, str] | None = None,
) -> dict[str, str]:  # fmt: skip
    """The name of each split that is needed, by its role; `flags` give them, by role."""
    available = ", ".join(loaded)
    found = (name for name in VALIDATION_SPLITS if name in loaded and name != test)
    validation = next(found, None) if validation is None else validation
    test = "test" if test is None and "test" in loaded else test
    chosen: dict[str, str] = {}
    for role, name in (("train", train), ("validation", validation), ("test", test)):
        if name is None or (name not in loaded and role == "train" and not need_train):
            continue
        if name not in loaded:
            flag = (flags or {}).get(role, f"--{role}_split")
            raise DataError(f"{flag} {name}: the data set has no such split, but {available}.")
        if isinstance(loaded[name], Dataset) and len(loaded[name]) == 0:
            raise DataError(f"split {name!r} of the data set holds no images.")
        chosen[role] = name
    return chosen


def find_image_column(split: Dataset, name: str | None, flag: str = "--image_column") -> str:
    found = [column for column, feature in split.features.items() if isinstance(feature, Image)]
    column = _given_or_only(split, name, found, "images", flag)
    feature = split.features[column]
    if not (isinstance(feature, Image) or "bytes" in str(feature) or "binary" in str(feature)):
        raise DataError(f"{flag} {name} holds no images: the columns are {_describe(split)}.")
    return column


def find_label_column(split: Dataset, name: str | None) -> str:
    found = [column for column, kind in split.features.items() if isinstance(kind, ClassLabel)]
    named = [column for column in LABEL_COLUMNS if isinstance(split.features.get(column), Value)]
    return _given_or_only(split, name, found or named, "labels", "--label_column")


def _given_or_only(split: Dataset, name: str | None, found: list[str], what: str, flag: str) -> str:
    if name is not None and name not in split.features:
        raise DataError(f"{flag} {name}: there is no such column, but {_describe(split)}.")
    if name is None and len(found) != 1:
        problem = "has several columns" if found else "has no column"
        columns = _describe(split)
        raise DataError(f"the data set {problem} of {what}: give {flag}, one of {columns}.")
    return name or found[0]


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
