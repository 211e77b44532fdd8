"""Any Hugging Face image data set as splits of two columns, "image" and "label".

Everything that could stop a run later is checked here, and said with the flag that mends it.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    concatenate_datasets,
)
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import httpx
from PIL import Image as PILImage

from .columns import find_image_column, find_label_column, two_columns
from .errors import DataError
from .labels import find_class_names, labels_of, map_labels, some
from .streaming import decoded, downloaded, stream_class_names, stream_length
from .transforms import UNDECODABLE

logger = logging.getLogger(__name__)

VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
TRAIN_SAMPLE = "train sample"  # a split of training images that is measured during training


@dataclass(frozen=True)
class ImageDataset:
    """Splits "train", "validation" and "test", as far as there are any, with the same labels."""

    # Columns "image" (datasets.Image) and "label" (ClassLabel); "train" may be a stream, of images
    # that are not decoded.
    splits: dict[str, Dataset | IterableDataset]
    label_names: list[str]
    bad_images: dict[str, list[str]] = field(default_factory=dict)  # what was left out, by split
    sources: dict[str, str] = field(default_factory=dict)  # the data set's own split of each one
    streamed_images: int | None = None  # how many a streamed training split has

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.label_names))

    @property
    def is_streamed(self) -> bool:
        return isinstance(self.splits.get("train"), IterableDataset)

    @property
    def num_train(self) -> int:
        """Training images."""
        return self.streamed_images if self.is_streamed else len(self.splits["train"])

    def class_counts(self, split: str) -> list[int]:
        """Images of each class of a split that is not streamed."""
        return np.bincount(labels_of(self.splits[split]), minlength=self.num_labels).tolist()

    def classes_without_images(self, split: str) -> list[str]:
        """Of a split that is not streamed."""
        counts = self.class_counts(split)
        return [name for name, count in zip(self.label_names, counts) if not count]

    def suggested_image_size(self) -> int:
        """The training images' own shorter side, rounded up to a multiple of 32, at most 224."""
        sides = [min(image.size) for image in self._first_images]
        return min(224, -(-int(median(sides)) // 32) * 32)

    @property
    def num_channels(self) -> int:
        """1 when the first images are grayscale, else 3."""
        gray = all(image.mode in ("1", "L", "I", "I;16", "F") for image in self._first_images)
        return 1 if gray else 3

    @cached_property  # leaving a stream early takes seconds
    def _first_images(self) -> list[PILImage.Image]:
        if self.is_streamed:
            rows = decoded(self.splits["train"].take(100), skip_bad=True)
            return [image for image, _ in rows]
        return self.splits["train"][:100]["image"]


def load_image_dataset(
    dataset_name: str,
    *,
    dataset_config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    on_bad_image: str = "error",
    check_images: bool = True,
    need_train: bool = True,
    need_all_classes: bool = True,
    label_names: list[str] | None = None,
    streaming: bool = False,
    num_train_images: int | None = None,
) -> ImageDataset:
    """Load, check and unify a data set.

    Args:
        dataset_name: a Hub id, a folder of Parquet files, a folder of images (one sub-folder per
            class), a .parquet file, or a folder written by `save_to_disk`.
        image_column, label_column: found by feature type, then by name, when None.
        train_split: several, joined by "+" as in "train+validation", are one.
        validation_split: when None, one called validation, valid, val or dev; else a share of
            `validation_fraction` of each class of the training split. The test split is never
            validated on.
        on_bad_image: "error", or "skip" to leave out images that cannot be decoded.
        check_images: decode every image once; remembered by the data set's fingerprint.
        need_train: there must be a training split.
        need_all_classes: it must have images of every class.
        label_names: a trained model's classes, in order; by default the training split's.
        streaming: do not download the training split; the others are.
        num_train_images: of a streamed training split that does not say how many it has.

    Raises:
        DataError: naming the flag, what was found, and the way out.
    """
    loaded = load_splits(dataset_name, dataset_config, revision, streaming)
    if "+" in train_split:
        loaded = _with_joined(loaded, train_split)
    sources = _choose_splits(loaded, train_split, validation_split, test_split, need_train)
    chosen = {role: loaded[name] for role, name in sources.items()}
    first = next(iter(chosen.values()))
    image_column = find_image_column(first, image_column)
    label_column = find_label_column(first, label_column)
    splits = {
        role: two_columns(split, image_column, label_column) for role, split in chosen.items()
    }
    stream = splits.pop("train", None) if streaming else None
    if stream is not None:
        names = label_names or stream_class_names(stream, label_column)
        num_train_images = num_train_images or stream_length(stream, train_split)
        splits = {role: downloaded(split, role) for role, split in splits.items()}
        if "validation" not in splits:
            raise DataError(
                "--streaming cannot hold out images of the training split: give "
                f"--validation_split, one of {', '.join(loaded)}."
            )
    bad_images: dict[str, list[str]] = {}
    if check_images:
        for role, split in splits.items():
            splits[role], bad_images[role] = without_bad_images(split, role, on_bad_image)
    if stream is None:
        names = label_names or find_class_names(splits, label_column)
    splits = {role: map_labels(split, role, names) for role, split in splits.items()}

    if need_train and stream is None:
        if need_all_classes:
            _require_all_classes(splits["train"], names)
        if "validation" not in splits and validation_fraction > 0:
            splits |= _with_held_out(splits["train"], validation_fraction, seed)
            sources["validation"] = sources["train"]
    for role, split in splits.items():
        limit = max_train_samples if role == "train" else max_eval_samples
        if limit is not None and limit < len(split):
            splits[role] = balanced_sample(split, limit, seed)
    bad_images = {role: names for role, names in bad_images.items() if names}
    if stream is not None:
        splits = {"train": stream, **splits}
        return ImageDataset(splits, names, bad_images, sources, num_train_images)
    if need_train and need_all_classes:
        _require_all_classes(splits["train"], names)
    return ImageDataset(splits, names, bad_images, sources)


def load_split(
    dataset_name: str,
    split: str,
    *,
    dataset_config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Dataset:
    """One split by itself, with its own classes; arguments and columns are as above. Images are not
    checked."""
    loaded = load_splits(dataset_name, dataset_config, revision)
    if split not in loaded or len(loaded[split]) == 0:
        raise DataError(f"--split {split}: of the splits {', '.join(loaded)} none has such images.")
    chosen = loaded[split]
    label_column = find_label_column(chosen, label_column)
    chosen = two_columns(chosen, find_image_column(chosen, image_column), label_column)
    return map_labels(chosen, split, find_class_names({split: chosen}, label_column))


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


def _with_joined(loaded: DatasetDict, name: str) -> DatasetDict:
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


def _choose_splits(
    loaded: DatasetDict, train: str, validation: str | None, test: str | None, need_train: bool
) -> dict[str, str]:
    """The name of each split that is needed, by its role."""
    available = ", ".join(loaded)
    if validation is None:
        found = (name for name in VALIDATION_SPLITS if name in loaded and name != test)
        validation = next(found, None)
    if test is None and "test" in loaded:
        test = "test"
    chosen: dict[str, str] = {}
    for role, name, required in (
        ("train", train, need_train),
        ("validation", validation, True),
        ("test", test, True),
    ):
        if name is None or (name not in loaded and not required):
            continue
        if name not in loaded:
            flag = "split" if role == "test" else f"{role}_split"
            raise DataError(f"--{flag} {name}: the data set has no such split, but {available}.")
        if isinstance(loaded[name], Dataset) and len(loaded[name]) == 0:
            raise DataError(f"split {name!r} of the data set holds no images.")
        chosen[role] = name
    return chosen


def without_bad_images(split: Dataset, role: str, on_bad_image: str) -> tuple[Dataset, list[str]]:
    """Decode every image once. Returns the split without the bad ones, and their names."""
    raw = split.select_columns("image").cast_column("image", Image(decode=False))
    checked = raw.map(
        _decodable,
        batched=True,
        batch_size=256,
        remove_columns="image",
        desc=f"decoding the {role} images once",
    )
    good = np.asarray(checked[:]["good"], dtype=bool)
    if good.all():
        return split, []
    bad = np.flatnonzero(~good).tolist()
    names = [raw[i]["image"]["path"] or f"{role} image {i}" for i in bad]
    if on_bad_image == "error":
        raise DataError(
            f"{len(bad)} of the {role} images cannot be decoded: {some(names)}. Mend or remove "
            "them, or leave them out by --on_bad_image skip."
        )
    logger.warning("Left out %d %s images that cannot be decoded: %s.", len(bad), role, some(names))
    if not good.any():
        raise DataError(f"none of the {len(bad)} {role} images can be decoded.")
    return split.select(np.flatnonzero(good)), names


def _decodable(batch: dict[str, list[Any]]) -> dict[str, list[bool]]:
    decode = Image().decode_example

    def good(value: dict[str, Any] | None) -> bool:
        if value is None:
            return False
        try:
            decode(value).convert("RGB")
        except UNDECODABLE:
            return False
        return True

    return {"good": [good(value) for value in batch["image"]]}


def _require_all_classes(split: Dataset, names: list[str]) -> None:
    counts = np.bincount(labels_of(split), minlength=len(names))
    if (counts == 0).any():
        empty = [names[i] for i in np.flatnonzero(counts == 0)]
        raise DataError(
            f"{len(empty)} of {len(names)} classes have no training image: {some(empty)}. Remove "
            "the classes from the data set, add images, or raise --max_train_samples."
        )


def _with_held_out(train: Dataset, fraction: float, seed: int) -> dict[str, Dataset]:
    """The training split in two, "train" and "validation"."""
    held_out = _stratified(labels_of(train), fraction, np.random.default_rng(seed))
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    return {"train": train.select(kept), "validation": train.select(held_out)}


def _stratified(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of about `fraction` of each class, never all of one; sorted."""
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))


def add_train_sample(images: ImageDataset, size: int | None, seed: int) -> None:
    """A fixed part of the training images, balanced by class, as a split of its own.

    Args:
        size: None for 1 % of them, but at least 10 of each class and at most 10,000; 0 for none.
    """
    train = images.splits["train"]
    if size is None:
        size = min(max(len(train) // 100, 10 * images.num_labels), 10_000)
    if size:
        images.splits[TRAIN_SAMPLE] = balanced_sample(train, min(size, len(train)), seed)


def balanced_sample(split: Dataset, limit: int, seed: int) -> Dataset:
    """`limit` images, as equal a number of each class as there are; deterministic by seed."""
    labels = labels_of(split)
    order = np.random.default_rng(seed).permutation(len(labels))
    rank: Counter[int] = Counter()
    turns = np.empty(len(labels), dtype=np.int64)  # an image's turn within its class
    for i in order:
        turns[i] = rank[labels[i]]
        rank[labels[i]] += 1
    first = order[np.argsort(turns[order], kind="stable")][:limit]
    return split.select(np.sort(first))
