"""Where a data set comes from, and which of its splits and columns are meant."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value
from datasets.exceptions import DatasetsError
from huggingface_hub import metadata_load
from huggingface_hub.utils import httpx
from yaml import YAMLError

from ..editable_classes import class_name
from ..errors import DataError, errors_in_one_line
from ..runs.processes import announce
from .labels import some
from .pixels import OTHER, in_words, walk_images

IMAGE_COLUMNS = ("image", "img", "image_path", "file_path", "path", "file_name", "filename", "file")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category", "y", "cls")
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
SPLIT_FOLDERS = ("train", *VALIDATION_SPLITS, "test")
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
PIXELS = datasets.Array2D | datasets.Array3D
# RuntimeError: a loading script too, which datasets no longer runs.
OF_DAMAGED_FILES = (
    DatasetsError, YAMLError, httpx.HTTPError, OSError, ValueError, TypeError, LookupError, AttributeError,
    RuntimeError,
)  # fmt: skip
Rows = list[tuple[str, str | None]]  # image files, by their paths in a folder, with their classes
STREAMED_SHARDS = 256  # at most, of a folder of images


def load_splits(
    name: str, config: str | None, revision: str | None = None, streaming: bool = False,
    flag: str = "--dataset_name", named: Collection[str] = (),
) -> DatasetDict | datasets.IterableDatasetDict:  # fmt: skip
    """All splits of a data set, as they are; a `DataError` names the flag that gave it. Folders of
    images called as in `named`, the splits that the user calls by name, are splits too."""
    path = Path(name).expanduser()
    then = (
        "It must be a data set on the Hub that can be reached (as Parquet, if it needed a script before), "
        "a folder of Parquet files, or a folder of images with one sub-folder per class."
    )
    with errors_in_one_line(f"{flag} {name} cannot be loaded", then, DataError, OF_DAMAGED_FILES):
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            if streaming:
                raise DataError(f"--streaming cannot read {name}, of save_to_disk: leave it out.")
            loaded = datasets.load_from_disk(str(path))
        elif path.is_file() and path.suffix in TABLES:
            loaded = datasets.load_dataset(TABLES[path.suffix], data_files=str(path), streaming=streaming)
        elif path.is_dir():
            loaded = _load_folder(path, config, streaming, flag, named)
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise DataError(f"{flag} {name}: there is no such file or folder.")
        else:
            loaded = datasets.load_dataset(name, config, revision=revision, streaming=streaming)
        if isinstance(loaded, datasets.IterableDatasetDict):
            if any(split.features is None for split in loaded.values()):
                raise DataError(f"--streaming: {flag} {name} declares no columns: leave it out.")
            return loaded
        loaded = {"train": loaded} if isinstance(loaded, Dataset) else loaded
        for split in loaded.values():
            split.data.validate(full=True)  # text that is not UTF-8; bytes of images are not read
        # A format that was stored, such as "torch", is that of other work.
        return DatasetDict({split: rows.with_format(None) for split, rows in loaded.items()})


def _load_folder(
    path: Path, config: str | None, streaming: bool, flag: str, named: Collection[str]
) -> DatasetDict | datasets.IterableDatasetDict:
    card = path / "README.md"
    described = card.is_file() and "configs" in (metadata_load(card) or {})
    files, left_out = walk_images(path)
    if described or not outnumber_tables(files, left_out):
        return datasets.load_dataset(str(path), config, streaming=streaming)
    if config is not None:
        raise DataError(f"--dataset_config {config}: {path} is a folder of images: leave it out.")
    announce(in_words(path, files, left_out))
    splits = by_split(path, files, named, flag)
    if METADATA & {name.rpartition("/")[2] for name in left_out.get(OTHER, [])}:  # names and labels
        inside = all(name.startswith(f"{s}/") for s, rows in splits.items() for name, _ in rows)
        patterns = {s: f"{s}/**" for s in splits} if inside else {"train": "**"}
        return datasets.load_dataset(str(path), data_files=patterns, streaming=streaming)
    names = sorted({name for rows in splits.values() for _, name in rows} - {None})
    if not streaming:
        return DatasetDict({split: _table(path, rows, names) for split, rows in splits.items()})
    streams = datasets.IterableDatasetDict()
    for split, rows in splits.items():
        # Shuffled once: a folder has class after class, and a stream is shuffled in a buffer alone.
        shards = min(STREAMED_SHARDS, len(rows))
        streams[split] = _table(path, rows, names, seed=0).to_iterable_dataset(shards)
        streams[split].info.splits = datasets.SplitDict({split: datasets.SplitInfo(split, num_examples=len(rows))})
    return streams


def by_split(
    folder: Path, files: Sequence[str], named: Collection[str] = (), flag: str = "--dataset_name"
) -> dict[str, Rows]:
    """The image files of a folder, by their paths in it as of `walk_images`, with their classes, by split.

    Folders at the top that are called train, validation, val, valid, dev or test, or as in `named`, are splits where
    all are, or where several of them hold nothing but folders; else all is one split, "train". The folders of a split
    are its classes, whatever folders are in them. Images that lie beside them have none."""
    parts = [file.split("/") for file in files]
    depths: dict[str, int] = {}  # least depth of an image in each folder at the top
    for names in parts:
        if len(names) > 1:
            depths[names[0]] = min(len(names), depths.get(names[0], len(names)))
    splits = {*depths} & {*SPLIT_FOLDERS, *named}
    if splits < {*depths}:
        of_folders = [name for name in splits if depths[name] > 2]
        if len(of_folders) == 1:
            others = some(sorted({*depths} - splits))
            raise DataError(
                f"{flag} {folder}: is {of_folders[0]} a split or a class, beside {others}? Put all "
                "classes into a folder train; or name the other splits, as by --test_split."
            )
        splits = {*depths} if of_folders else set()
    found: dict[str, Rows] = {name: [] for name in SPLIT_FOLDERS}
    for file, names in zip(files, parts):
        split, *within = names if names[0] in splits else ("train", *names)
        found.setdefault(split, []).append((file, within[0] if len(within) > 1 else None))
    return {split: rows for split, rows in found.items() if rows}


def folder_labels(folder: Path, files: Sequence[Path], flag: str) -> dict[Path, str]:
    """The class of each image file of a folder; where it has none, the name of its own folder."""
    inside = {file.relative_to(folder).as_posix(): file for file in files}
    rows = [(inside[path], name) for rows in by_split(folder, [*inside], flag=flag).values() for path, name in rows]
    return {file: class_name(name or file.resolve().parent.name) for file, name in rows}


def outnumber_tables(files: list[str], left_out: Mapping[str, list[str]]) -> bool:
    """Whether `load_splits` reads the image files that `walk_images` found, or tables."""
    packed = (".parquet", ".arrow", ".tar", ".zip")
    return len(files) > sum(path.endswith(packed) for path in left_out.get(OTHER, []))


def _table(folder: Path, rows: Rows, names: list[str], seed: int | None = None) -> Dataset:
    """Paths and classes, in the cache of datasets."""
    features = Features({"image": Image()} | ({"label": ClassLabel(names=names)} if names else {}))
    root = folder.absolute()
    rows = [(f"{root}/{path}", name) for path, name in rows]
    digest = hashlib.sha256(f"{names} {seed} {rows}".encode())
    if seed is not None:
        rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    return Dataset.from_generator(
        _examples, features=features, gen_kwargs={"rows": rows, "columns": tuple(features)},
        fingerprint=digest.hexdigest()[:32],
    )  # fmt: skip


def _examples(rows: Rows, columns: tuple[str, ...]) -> Iterator[dict[str, str | None]]:
    for row in rows:
        yield dict(zip(columns, row))


def with_joined(loaded: DatasetDict, name: str) -> DatasetDict:
    """The splits, with those that the name joins by "+" as one, called like this."""
    if isinstance(loaded, datasets.IterableDatasetDict):
        raise DataError(f"--train_split {name}: --streaming reads one split: leave it out, or name one.")
    parts = name.split("+")
    if missing := [part for part in parts if part not in loaded]:
        raise DataError(f"--train_split {name}: the data set has no {missing[0]}, but {', '.join(loaded)}.")
    with errors_in_one_line(f"--train_split {name}", kind=DataError, of=ValueError):
        joined = datasets.concatenate_datasets([loaded[part] for part in parts])
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
    named = [name for name in IMAGE_COLUMNS if _can_be_images(split.features.get(name))]
    column = _given_or_only(split, name, found or named[:1], "images", flag)
    if not _can_be_images(split.features[column]):
        raise DataError(f"{flag} {name} holds no images: the columns are {_describe(split)}.")
    return column


def _can_be_images(feature: Any) -> bool:
    """Images, encoded ones, pixels, or paths of files."""
    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    encoded = isinstance(feature, dict) and bool({"bytes", "path"} & {*feature})
    return encoded or isinstance(feature, Image | PIXELS)


def find_label_column(split: Dataset, name: str | None) -> str:
    found = [column for column, kind in split.features.items() if isinstance(kind, ClassLabel)]
    named = [column for column in LABEL_COLUMNS if isinstance(split.features.get(column), Value)]
    return _given_or_only(split, name, found or named, "labels", "--label_column")


def _given_or_only(split: Dataset, name: str | None, found: list[str], what: str, flag: str) -> str:
    if name is not None and name not in split.features:
        raise DataError(f"{flag} {name}: there is no such column, but {_describe(split)}.")
    if name is None and len(found) != 1:
        problem = f"{'has several columns' if found else 'has no column'} of {what}"
        raise DataError(f"the data set {problem}: give {flag}, one of {_describe(split)}.")
    return name or found[0]


def _describe(split: Dataset) -> str:
    def kind(feature: Any) -> str:
        return feature.dtype if isinstance(feature, Value) else type(feature).__name__

    return ", ".join(f"{name} ({kind(feature)})" for name, feature in split.features.items())


def two_columns(split: Dataset, image_column: str, label_column: str | None, source: str) -> Dataset:
    """The split with columns "image" (`datasets.Image`; of a stream not decoded) and "label".

    Images may be declared, encoded, pixels (`Array2D`, `Array3D`), or, on the disk, paths relative to its folder."""
    columns = {image_column: "image"}
    columns |= {label_column: "label"} if label_column is not None else {}
    for column, name in columns.items():
        if column not in split.features:
            missing = f"--{name}_column {column} is missing in one of the splits, which has "
            raise DataError(f"{missing}{_describe(split)}.")
    # First of all: what comes later would decode images of a stream and encode them again.
    image = Image(decode=not isinstance(split, IterableDataset))
    split, feature = split.select_columns([*columns]), split.features[image_column]
    if isinstance(feature, PIXELS | Value) and "binary" not in str(feature.dtype):
        path = Path(source).expanduser().absolute()
        folder = path if path.is_dir() else path.parent if path.is_file() else None
        features = Features(split.features | {image_column: Image(decode=False)})
        split = split.map(partial(_encoded, image_column, feature, folder), features=features)
    if split.features[image_column] != image:
        split = split.cast_column(image_column, image)
    return split.rename_columns({old: new for old, new in columns.items() if old != new})


def _encoded(column: str, feature: Any, folder: Path | None, row: dict[str, Any]) -> dict[str, Any]:
    value = row[column]
    if value is None:
        return {column: None}
    if isinstance(feature, Value):
        if folder is None or "://" in value:  # nothing is fetched, nothing read for a stranger
            raise DataError(f"--image_column {column}: {value!r} is read as a path in data sets on the disk only.")
        return {column: {"path": str(folder / value), "bytes": None}}
    pixels = np.asarray(value, dtype=feature.dtype)
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, 2)  # channels first, as torch has them
    pixels = np.squeeze(pixels, 2) if pixels.shape[2:] == (1,) else pixels
    if pixels.shape[2:] not in ((), (3,), (4,)) or (pixels.ndim == 3 and pixels.dtype != np.uint8):
        raise DataError(
            f"--image_column {column}: pixels of shape {pixels.shape} and type {pixels.dtype} are "
            "no image: colours must be (H, W, 3) or (3, H, W), of type uint8."
        )
    return {column: Image().encode_example(pixels)}
