"""Any Hugging Face image data set as splits of two columns, "image" and "label".

Everything that could stop a run later is checked here, and said with the flag that mends it."""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict, IterableDataset, config
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..errors import DataError, at_no_cost
from ..runs.files import whole_file
from ..runs.processes import announce
from .arguments import DataArguments
from .image_cache import FeatureSplit
from .labels import find_class_names, labels_of, map_labels, some, with_joined_labels
from .pixels import content_of, decode, images_key, read, reason, undecoded
from .sources import choose_splits, find_image_column, find_label_column, load_splits, two_columns, with_joined
from .streaming import downloaded, stream_length
from .subsets import balanced_sample, corrected, with_held_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageDataset:
    """Those there are of the splits "train", "validation" and "test", with the same labels. None of it changes."""

    # Columns "image" (datasets.Image) and "label" (ClassLabel); "train" may be a stream, not decoded; or features.
    splits: Mapping[str, Dataset | IterableDataset | FeatureSplit]
    label_names: list[str]
    bad_images: Mapping[str, list[str]] = field(default_factory=dict)  # left out, by split
    sources: Mapping[str, str] = field(default_factory=dict)  # the data set's own split of each one
    streamed_images: int | None = None  # how many a streamed training split has

    def __post_init__(self) -> None:
        for name in ("splits", "bad_images", "sources"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def is_streamed(self) -> bool:
        return isinstance(self.splits.get("train"), IterableDataset)

    def num_images(self, role: str) -> int:
        """Of a split, also of one that is streamed."""
        is_stream = role == "train" and self.is_streamed
        return self.streamed_images if is_stream else len(self.splits[role])

    @property
    def num_train(self) -> int:
        return self.num_images("train")

    def with_train(self, split: Dataset) -> "ImageDataset":
        """The same with other training images."""
        return dataclasses.replace(self, splits={**self.splits, "train": split})

    def class_counts(self, split: str) -> list[int]:
        """Images of each class of a split that is not streamed."""
        return np.bincount(labels_of(self.splits[split]), minlength=self.num_labels).tolist()

    def classes_without_images(self, split: str) -> list[str]:
        """Of a split that is not streamed."""
        return [name for name, count in zip(self.label_names, self.class_counts(split)) if not count]

    def suggested_image_size(self) -> int:
        """The training images' own shorter side, rounded up to a multiple of 32, at most 224."""
        return min(224, -(-int(median([side for _, side in self._first_images])) // 32) * 32)

    @property
    def num_channels(self) -> int:
        """1 when the first images are grayscale, else 3."""
        modes = {mode for mode, _ in self._first_images}
        return 1 if all(mode in ("1", "L", "LA", "F") or mode[0] == "I" for mode in modes) else 3

    @cached_property  # leaving a stream early takes seconds
    def _first_images(self) -> list[tuple[str, int]]:
        """Mode and shorter side of those of the first hundred that can be decoded."""
        split, found = self.splits["train"], []
        if isinstance(split, FeatureSplit):
            if split.images is None:
                return [("RGB", 224)]
            split = split.images
        if not self.is_streamed:
            split = undecoded(split.select(range(min(100, len(split)))))
        for row in split.take(100) if self.is_streamed else split:
            with suppress(DataError):
                image = decode(row["image"])
                found.append((image.mode, min(image.size)))
        if not found:
            raise DataError("none of the first 100 training images can be decoded.")
        return found


def load_image_dataset(
    dataset_name: str, *, dataset_config: str | None = None, revision: str | None = None,
    image_column: str | None = None, label_column: str | None = None,
    train_split: str = "train", validation_split: str | None = None, test_split: str | None = None,
    validation_fraction: float = 0.1, seed: int = 0,
    max_train_samples: int | None = None, max_eval_samples: int | None = None,
    on_bad_image: str = "error", check_images: bool = True,
    need_train: bool = True, need_all_classes: bool = True, label_names: list[str] | None = None,
    streaming: bool = False, num_train_images: int | None = None, several_labels: bool = False,
    roles: Collection[str] = ("train", "validation", "test"), labels: str | None = None, exclude: str | None = None,
    flags: Mapping[str, str] | None = None, loaded: DatasetDict | None = None,
) -> ImageDataset:  # fmt: skip
    """Load, check and unify a data set. What is no flag, or more than its help says:

    Args:
        image_column, label_column: found by feature type, then by name, when None.
        train_split: several, joined by "+" as in "train+validation", are one.
        validation_split: when None, one called validation, valid, val or dev, else a share of the training split.
        need_train: there must be a training split.
        need_all_classes: it must have images of every class.
        label_names: a trained model's classes, in order; by default those of the first split that is read.
        several_labels: the label column lists the classes of each image: `with_joined_labels`.
        roles: the splits that will be read, of "train", "validation" and "test", and that validation images are held
            out of: no others are decoded, checked or kept, and none has to be there.
        labels, exclude: tables for `corrected`, before any image is held out or drawn; not of a stream.
        flags: what a user gives the split of a role by, for messages; else --train_split and so on.
        loaded: what `load_splits` made of the name before.

    Raises:
        DataError: naming the flag, what was found, and the way out.
    """
    given = (train_split, validation_split, test_split)
    named = {part for name in given if name for part in name.split("+")}
    loaded = loaded or load_splits(dataset_name, dataset_config, revision, streaming, named=named)
    sizes = {name: len(rows) for name, rows in loaded.items()} if labels or exclude else {}  # no stream's
    loaded = with_joined(loaded, train_split) if "+" in train_split else loaded
    sources = choose_splits(loaded, *given, need_train, flags)
    holds_out = need_train and validation_fraction > 0 and "validation" in {*roles} - {*sources}
    roles = {*roles, "train"} if holds_out else {*roles}
    if streaming and "validation" in roles - {*sources}:
        raise DataError(f"--streaming cannot hold out images: give --validation_split, one of {', '.join(loaded)}.")
    sources = {role: name for role, name in sources.items() if role in roles}
    if not sources:
        return ImageDataset({}, label_names or [])
    first = loaded[next(iter(sources.values()))]
    columns = find_image_column(first, image_column), find_label_column(first, label_column)
    splits = {role: two_columns(loaded[name], *columns, dataset_name) for role, name in sources.items()}
    splits, label_names = with_joined_labels(splits) if several_labels else (splits, label_names)
    if streaming:
        splits |= {role: downloaded(splits[role], role) for role in {*splits} - {"train"}}
    names = label_names or find_class_names(splits)
    splits = {role: map_labels(split, role, names) for role, split in splits.items()}
    for role in splits if sizes else ():
        splits[role], _ = corrected(splits[role], sources[role], sizes, labels=labels, exclude=exclude)
    _announce(dataset_name, dict.fromkeys(loaded, "not read"), splits, names, sources)
    stream = splits.pop("train") if streaming and "train" in splits else None
    if stream is not None:
        num_train_images = num_train_images or stream_length(stream, train_split)
    bad_images: dict[str, list[str]] = {}
    for role in splits if check_images else ():
        splits[role], bad = without_bad_images(splits[role], role, on_bad_image)
        bad_images |= {role: bad} if bad else {}
    if holds_out:
        splits |= with_held_out(splits["train"], validation_fraction, seed)
        sources["validation"] = sources["train"]
    for role, split in splits.items():
        limit = max_train_samples if role == "train" else max_eval_samples
        splits[role] = split if limit is None else balanced_sample(split, limit, seed)
    splits = splits if stream is None else {"train": stream, **splits}
    images = ImageDataset(splits, names, bad_images, sources, num_train_images)
    complete = need_train and need_all_classes and "train" in splits and not images.is_streamed
    if complete and (empty := images.classes_without_images("train")):
        raise DataError(
            f"{len(empty)} of {len(names)} classes have no training image: {some(empty)}. "
            "Remove the classes from the data set, add images, or raise --max_train_samples."
        )
    return images


def _announce(
    dataset_name: str, found: dict[str, str], splits: Mapping[str, Dataset | IterableDataset],
    names: list[str], sources: Mapping[str, str],
) -> None:  # fmt: skip
    """Say what is in the data set's own splits, all of which are in `found`."""
    for role, split in splits.items():
        if isinstance(split, IterableDataset):
            found[sources[role]] = f"a stream of {len(names)} classes: {some(names)}"
            continue
        counts = sorted(Counter(labels_of(split).tolist()).items())
        there = some(f"{names[label]} {count:,}" for label, count in counts)
        found[sources[role]] = f"{len(split):,} images of {len(counts)} classes: {there}"
    announce("\n  ".join([dataset_name, *map(": ".join, found.items())]))


def load_split(dataset_name: str, split: str, **columns: Any) -> Dataset:
    """One split by itself, with its own classes; `columns` are `LabelledImages.columns`. Images are not checked."""
    options = {"roles": ["test"], "flags": {"test": "--split"}, "need_train": False}
    options |= {"test_split": split, "check_images": False}
    return load_image_dataset(dataset_name, **columns, **options).splits["test"]


def without_bad_images(split: Dataset, role: str, on_bad_image: str) -> tuple[Dataset, list[str]]:
    """Decode every image once. Returns the split without the bad ones, and their names."""
    surveyed = survey(split, role)
    bad = [i for i, wrong in enumerate(surveyed["error"]) if wrong]
    if not bad:
        return split, []
    names = [surveyed["file"][i] or f"{role} image {i}" for i in bad]
    if on_bad_image == "error":
        raise DataError(
            f"{len(bad)} of the {role} images cannot be decoded: {some(names)} ({surveyed['error'][bad[0]]}). "
            "Mend or remove them, or leave them out by --on_bad_image skip."
        )
    logger.warning("Left out %d %s images that cannot be decoded: %s.", len(bad), role, some(names))
    if len(bad) == len(split):
        raise DataError(f"none of the {len(bad)} {role} images can be decoded.")
    return split.select(np.setdiff1d(np.arange(len(split)), bad)), names


def survey(split: Dataset, role: str) -> dict[str, list[Any]]:
    """What every image is, by decoding it once, which a file in the cache remembers: columns "file", its name;
    "width" and "height", upright; "mode", Pillow's; "error", why it cannot be decoded; all "" or 0 where there is
    none; and "content", of `content_of`."""
    path = Path(config.HF_DATASETS_CACHE) / "protosphere" / f"survey-{images_key(split)}.parquet"
    with suppress(OSError, ValueError):  # there is none, or a damaged one
        return pd.read_parquet(path).to_dict("list")
    images = undecoded(split.select_columns("image"))
    workers = min(os.cpu_count() or 1, len(images) // 1000)  # each takes long to start
    own = torch.Generator()  # the training's would be another after the first start
    loader = DataLoader(images, 50, num_workers=workers, collate_fn=_surveyed, generator=own)
    words = f"decoding the {role} images once"
    bar = tqdm(loader, words, unit=" images", unit_scale=50, leave=False, disable=None)
    table = pd.DataFrame([row for batch in bar for row in batch])
    with at_no_cost("remembering what the images are"), whole_file(path) as unfinished:
        table.to_parquet(unfinished)
    return table.to_dict("list")


def _surveyed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [{"file": "", "width": 0, "height": 0, "mode": "", "error": ""} for _ in rows]
    for row, value in zip(found, [row["image"] for row in rows]):
        row["file"] = (value and value["path"]) or ""
        with suppress(OSError, TypeError):  # where there is no such file, `decode` says so
            value = value | {"bytes": value["bytes"] or Path(value["path"]).read_bytes()}
        try:
            image = decode(value)
            read(image)
            row |= {"width": image.width, "height": image.height, "mode": image.mode}
        except DataError as error:
            row["error"] = reason(error)
        row["content"] = content_of(value)
    return found


def load_data(arguments: DataArguments, **more: Any) -> ImageDataset:
    """The data set that the arguments name; `more`, which wins, is of `load_image_dataset`."""
    named = (
        "dataset_name", "dataset_config", "image_column", "label_column", "train_split",
        "max_train_samples", "max_eval_samples", "on_bad_image", "check_images", "labels", "exclude",
    )  # fmt: skip
    more = {name: getattr(arguments, name) for name in named} | more
    return load_image_dataset(revision=arguments.dataset_revision, **more)
