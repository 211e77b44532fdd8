"""From files and decoded images to the RGB pixels that an image processor takes: one way for all.

Every reader of images (training, evaluation, indexes, the demo page, new classes) comes through
here, so that the same file is the same image everywhere.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Image as ImageFeature
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import BaseImageProcessor

from ..errors import DataError
from ..runs.processes import announce
from .labels import some

# What Pillow raises for broken images; SyntaxError for a broken PNG.
UNDECODABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError)


def decode(value: dict[str, Any]) -> Image.Image:
    """The image in {"path", "bytes"}, as 🤗 datasets hold an image that is not decoded.

    Raises:
        One of `UNDECODABLE`.
    """
    return ImageFeature().decode_example(value)


def open_image(path: str | Path) -> Image.Image:
    """The image in a file, decoded as a data set's images are.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        return decode({"path": str(path), "bytes": None})
    except UNDECODABLE as error:
        raise DataError(f"{path} cannot be decoded as an image: {error}") from error


def rgb(image: Image.Image) -> Image.Image:
    """The image with three channels, as every processor here is given it."""
    return image.convert("RGB")


def pixels_of(images: list[Image.Image], processor: BaseImageProcessor, **options: Any) -> Tensor:
    """(M, 3, S, S) what the processor makes of the images."""
    return processor(list(map(rgb, images)), return_tensors="pt", **options)["pixel_values"]


# Why something in a folder of images is left out.
HIDDEN, OTHER, LOOP = "hidden", "of other kinds", "links back to where they lie"
NOWHERE, EMPTY = "links to nothing", "folders without images"


def image_files(path: Path) -> list[Path]:
    """All image files of a folder, as `walk_images` finds them, and what was found is said; or the
    file itself."""
    if path.is_file():
        return _with_text_names([path])
    files, left_out = walk_images(path)
    announce(in_words(path, files, left_out))
    return files


def walk_images(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """All image files of a folder, at any depth, sorted: what Pillow has a name extension for.

    Links are followed, but not back to a folder that they lie in. What is hidden, with a name that
    begins with a dot, is not read, and `__MACOSX` neither.

    Returns:
        The files, and what is left out, by the reason.

    Raises:
        DataError: a folder that cannot be read, or names that are not UTF-8.
    """
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    # PDF and the like Pillow writes only; of what it opens, these are films.
    suffixes -= {".mpg", ".mpeg"}
    files: list[Path] = []
    left_out: dict[str, list[Path]] = defaultdict(list)
    seen, folders = [], [(folder, frozenset())]
    while folders:
        top, above = folders.pop()
        try:
            status, entries = top.stat(), list(os.scandir(top))
        except OSError as error:
            raise DataError(f"{str(top)!a} cannot be read: {error.strerror}.") from error
        own = status.st_dev, status.st_ino
        if own in above:
            left_out[LOOP].append(top)
            continue
        seen.append(top)
        for entry in entries:
            path = top / entry.name
            entry = path if entry.is_symlink() else entry  # a path answers for what a link leads to
            if path.name.startswith(".") or path.name == "__MACOSX":
                left_out[HIDDEN].append(path)
            elif entry.is_dir():
                folders.append((path, above | {own}))
            elif not entry.is_file():
                left_out[NOWHERE].append(path)
            else:
                (files if path.suffix.lower() in suffixes else left_out[OTHER]).append(path)
    full = {parent for path in {file.parent for file in files} for parent in (path, *path.parents)}
    left_out[EMPTY] += [top for top in seen if top not in full and top.parent in full]
    files = sorted(_with_text_names(files))
    return files, {why: sorted(paths) for why, paths in left_out.items() if paths}


def _with_text_names(files: list[Path]) -> list[Path]:
    # Bytes of a name that are no UTF-8 stand for themselves in it, and cannot be encoded.
    if strange := [p for p in files if str(p).encode(errors="replace").decode() != str(p)]:
        raise DataError(
            f"{len(strange)} images have names that are not UTF-8: "
            f"{some(ascii(str(path)) for path in strange)}. Rename them or their folders."
        )
    return files


def in_words(folder: Path, files: list[Path], left_out: Mapping[str, list[Path]]) -> str:
    def names(paths: list[Path]) -> str:
        return some(path.relative_to(folder) for path in paths)

    words = f"{folder}: {len(files):,} images" + (f" ({names(files)})" if files else "")
    gone = [f"{len(paths):,} {why} ({names(paths)})" for why, paths in left_out.items()]
    return words + ("; left out: " + ", ".join(gone) if gone else "")
