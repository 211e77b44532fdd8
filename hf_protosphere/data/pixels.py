"""From files and decoded images to the RGB pixels that an image processor takes: one way for all.

Every reader of images (training, evaluation, indexes, the demo page, new classes) comes through
here, so that the same file is the same image everywhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import Image as ImageFeature
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import BaseImageProcessor

from ..errors import DataError

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


def image_files(folder: Path) -> list[Path]:
    """All image files of a folder, at any depth, sorted: what Pillow has a name extension for."""
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    # PDF and the like Pillow writes only; of what it opens, these are films.
    suffixes -= {".mpg", ".mpeg"}
    found = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.suffix.lower() in suffixes)
