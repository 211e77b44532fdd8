"""From files and decoded images to the RGB pixels that an image processor takes: one way for all.

Every reader of images (training, evaluation, indexes, the demo page, new classes) comes through here, so that the same
file is the same image everywhere. How any image becomes RGB says `..rgb`, which travels with checkpoints too."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
from datasets import Image as ImageFeature
from datasets.utils.file_utils import is_local_path, xopen
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..errors import DataError
from ..rgb import formats, pixels_and_labels, shorter_side
from ..rgb import pixels_of as pixels_of
from ..rgb import rgb as rgb
from ..runs.processes import announce
from .labels import some

CONVERSION = 2  # in the name of what is kept of pixels: raise it when files become other pixels
# JPEG files are decoded at a half, a quarter or an eighth of their size where that is still this
# many times the model's: no value then differs by more than 5 of 255 levels, in the mean by 0.3.
DRAFT = 5


def decode(value: Any, side: int | None = None, max_pixels: int | None = None) -> Image.Image:
    """An image, loaded and upright, in its own mode.

    Args:
        value: {"path", "bytes"}, as 🤗 datasets hold an image that is not decoded; or an image.
        side: of what a model sees: a much larger JPEG file is decoded at a part of its size.
        max_pixels: more are refused before they are decoded.

    Raises:
        DataError: there is none, or it cannot be decoded.
    """
    if isinstance(value, Image.Image):
        return value
    if value is None or (value["path"] is None and value["bytes"] is None):
        raise DataError("an image is missing: the data set holds null in its place.")
    with _errors_in_one_line(value):
        path, content = value["path"], value["bytes"]
        if content is None and not is_local_path(path):
            with xopen(path, "rb") as file:
                content = file.read()
        image = Image.open(path if content is None else BytesIO(content), formats=formats())
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ValueError(f"{image.width} × {image.height} are more than {max_pixels:,} pixels")
        for part in (8, 4, 2) if side is not None else ():
            width, height = image.size
            if width % part == height % part == 0 and min(width, height) >= DRAFT * part * side:
                image.draft(None, (width // part, height // part))  # of JPEG files; others stay
                break
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    return image


def content_of(value: Any) -> str:
    """A hash of the file of an image that is not decoded, whether or not it can be."""
    content, path = (value or {}).get("bytes"), (value or {}).get("path")
    if content is None and path is not None:
        with suppress(OSError), xopen(path, "rb") as file:
            content = file.read()
    return f"sha256:{hashlib.sha256(content or b'').hexdigest()[:16]}"  # a spreadsheet takes digits for a number


def read(value: Any, side: int | None = None, max_pixels: int | None = None) -> Image.Image:
    """The image as every processor here is given it: decoded as by `decode`, in RGB."""
    image = decode(value, side, max_pixels)
    with _errors_in_one_line(value):
        return rgb(image)


def reason(error: DataError) -> str:
    """Why an image cannot be decoded, without its path."""
    return str(error).rpartition(" as an image: ")[2]


def open_image(path: str | Path) -> Image.Image:
    """The image in a file, decoded as a data set's images are."""
    return decode({"path": str(path), "bytes": None})


def undecoded(split: datasets.Dataset) -> datasets.Dataset:
    """The split with values for `decode` in its column "image": datasets would decode whole batches of photographs."""
    if not isinstance(split.features.get("image"), ImageFeature):  # made by a transform
        return split
    return split.with_format(None).cast_column("image", ImageFeature(decode=False))


def table_of(images: Iterable[Any]) -> datasets.Dataset:
    """Files, or Pillow images, as a split of a data set."""
    values = [str(image) if isinstance(image, Path) else image for image in images]
    return datasets.Dataset.from_dict({"image": values}, datasets.Features({"image": ImageFeature()}))


class DecodedImages(Dataset):
    """Batches (pixels, rows, bad) of a split, decoded one image after the other: what `pixels_of`
    makes of the images in (m,) rows, and the errors of the others, by row."""

    def __init__(self, split: datasets.Dataset, processor: BaseImageProcessor, **options: Any) -> None:
        self.images, self.processor = undecoded(split.select_columns("image")), processor
        self.options = options

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, list[int], dict[int, DataError]]:
        bad: dict[int, DataError] = {}

        def good() -> Iterator[tuple[Image.Image, int]]:
            for row in indices:
                try:
                    yield read(self.images[row]["image"], shorter_side(self.processor)), row
                except DataError as error:
                    bad[row] = error

        return *pixels_and_labels(good(), self.processor, **self.options), bad

    def batches(
        self, rows: Sequence[int], batch_size: int, num_workers: int, description: str
    ) -> Iterator[tuple[Tensor, list[int], dict[int, DataError]]]:
        """Of the images in some rows, in order, by worker processes, with a progress bar."""
        workers = num_workers if len(rows) > batch_size else 0
        loader = DataLoader(self, batch_size, sampler=rows, num_workers=workers, collate_fn=tuple)
        with tqdm(total=len(rows), desc=description, unit=" images", leave=False) as bar:
            for batch in loader:  # `tuple` has left it as it was
                yield batch
                bar.update(len(batch[1]) + len(batch[2]))

    def name(self, row: int) -> str:
        value = self.images[row]["image"]
        return (value and value["path"]) or f"image {row}"


def images_key(split: datasets.Dataset) -> str:
    """A hash of a split's images, for the names of what is made of them.

    Data sets know files by their path. Files that were replaced under it have another inode, size
    or time, of which that of the last change cannot be set back."""
    digest = hashlib.sha256(f"{CONVERSION} {split._fingerprint}".encode())
    for chunk in split.data.column("image").chunks:
        for path in chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist():
            with suppress(OSError, TypeError):  # on the Hub, gone, or null: nothing to look at
                found = os.stat(path)
                state = found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
                digest.update(f"{path} {state}".encode())
    return digest.hexdigest()[:32]


# Why something in a folder of images is left out.
HIDDEN, OTHER, LOOP = "hidden", "of other kinds", "links back to where they lie"
NOWHERE, EMPTY = "links to nothing", "folders without images"


def image_files(path: Path) -> list[Path]:
    """All image files of a folder, as `walk_images` finds them, and what was found is said; or the file itself."""
    if path.is_file():
        return [*map(Path, _with_text_names([str(path)]))]
    files, left_out = walk_images(path)
    announce(in_words(path, files, left_out))
    return [path / name for name in files]


def walk_images(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """All image files of a folder, at any depth, by their paths in it (strings: to make a `Path` takes longer than
    to find the file), sorted folder by folder: what Pillow has a name extension for.

    Links are followed, but not back to a folder that they lie in. What is hidden, with a name that
    begins with a dot, is not read, and `__MACOSX` neither. What is left out comes by the reason."""
    opened = formats()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in opened}
    files: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    seen, full, folders = [], set(), [("", frozenset())]
    while folders:
        top, above = folders.pop()
        try:
            status, entries = os.stat(folder / top), list(os.scandir(folder / top))
        except OSError as error:
            raise DataError(f"{str(folder / top)!a} cannot be read: {error.strerror}.") from error
        own = status.st_dev, status.st_ino
        if own in above:
            left_out[LOOP].append(top)
            continue
        seen.append(top)
        count = len(files)
        for entry in entries:
            path = f"{top}/{entry.name}" if top else entry.name
            linked = entry.is_symlink()  # what it leads to may be out of reach
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                left_out[HIDDEN].append(path)
            elif os.path.isdir(entry) if linked else entry.is_dir():
                folders.append((path, above | {own}))
            elif not (os.path.isfile(entry) if linked else entry.is_file()):
                left_out[NOWHERE].append(path)
            else:
                (files if os.path.splitext(path)[1].lower() in suffixes else left_out[OTHER]).append(path)
        while len(files) > count and top not in full:  # nor those above it
            full.add(top)
            top = top.rpartition("/")[0]
    left_out[EMPTY] += [top for top in seen if top not in full and top.rpartition("/")[0] in full]
    _with_text_names([f"{folder}/{name}" for name in files])
    for paths in (files, *left_out.values()):
        paths.sort(key=lambda path: path.replace("/", "\0"))  # "a/b" before "a-b/c"
    return files, {why: paths for why, paths in left_out.items() if paths}


def _with_text_names(files: list[str]) -> list[str]:
    # Bytes of a name that are no UTF-8 stand for themselves in it, and cannot be encoded.
    if strange := [p for p in files if not p.isascii() and p.encode(errors="replace").decode() != p]:
        raise DataError(f"Rename {len(strange)} images, whose names are not UTF-8: {some(map(ascii, strange))}.")
    return files


def in_words(folder: Path, files: list[str], left_out: Mapping[str, list[str]]) -> str:
    words = f"{folder}: {len(files):,} images" + (f" ({some(files)})" if files else "")
    gone = [f"{len(paths):,} {why} ({some(paths)})" for why, paths in left_out.items()]
    return words + ("; left out: " + ", ".join(gone) if gone else "")


@contextmanager
def _errors_in_one_line(value: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of damaged files Pillow raises some twenty kinds
        path = value["path"] if isinstance(value, dict) else None
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        if isinstance(error, UnidentifiedImageError):  # which would name the file again
            why = "Pillow does not know what it is"
        raise DataError(f"{path or 'an image'} cannot be decoded as an image: {why}") from error
