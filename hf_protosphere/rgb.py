"""From any Pillow image to the RGB pixels that an image processor takes: one way for all readers.

Travels to the Hub with every checkpoint, and lies beside exported models, which it prepares images for without torch.
"""

import logging
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

TOP = {"I": 65535, "F": 1}  # what is white in images of one number a pixel that is no byte
WIDEST = 4  # aspect ratio up to which images are resized whole
GROUP = 2**20  # pixels that a processor gets at once: many small images, or one photograph
# EPS files are programs, which Pillow would have Ghostscript run; the others are films.
NO_IMAGES = ("EPS", "MPEG")


@cache
def formats() -> list[str]:
    """What is opened of all that Pillow knows, tried in this order: the usual ones first."""
    Image.init()
    return ["JPEG", "PNG", *(i for i in Image.ID if i not in (*NO_IMAGES, "JPEG", "PNG"))]


def rgb(image: Image.Image) -> Image.Image:
    """The image upright, with three channels of 8 bits; itself where it is so already.

    16-bit values, also those in Pillow's 32-bit mode "I", are scaled from [0, 65535], floats from
    [0, 1]; what is transparent lies over white; EXIF orientation is obeyed.

    Raises:
        ValueError: values outside of that range, or a mode that Pillow cannot convert. Of a file
            that is damaged and not loaded yet, Pillow raises many other errors.
    """
    image.load()
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in TOP:
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opacity = image.getchannel("A")
        if opacity.getextrema()[0] < 255:
            _tell_of_white()
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=opacity)
            return white
    return image if image.mode == "RGB" else image.convert("RGB")


def narrowed(image: Image.Image) -> Image.Image:
    """Of an image more than 4 times as long as wide the middle, twice as long as wide.

    A centre crop lies well inside of it, and resizing the rest could take any amount of memory."""
    width, height = image.size
    short, long = sorted(image.size)
    if long <= WIDEST * short:
        return image
    margin = (long - 2 * short) // 2
    x, y = (margin, 0) if width == long else (0, margin)
    return image.crop((x, y, width - x, height - y))


def shorter_side(processor: Any) -> int | None:
    """To which a processor resizes before it crops the centre; None of one that does not."""
    resizes = processor.do_resize and processor.do_center_crop
    return processor.size.get("shortest_edge") if resizes else None


def pixels_of(images: Iterable[Image.Image], processor: Any, **options: Any) -> "Tensor":
    """(M, 3, S, S) what the processor makes of the images, and (0,) of none.

    They are taken one by one: those of a generator are never in memory together."""
    import torch  # only here: exported models are run without

    def processed(group: list[Image.Image]) -> "Tensor":
        if processor.do_resize and type(processor).__name__ == "ViTImageProcessor":
            views = (torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in group)
            group = [processor.resize(v, processor.size, processor.resample) for v in views]
            options["do_resize"] = False  # done, in half the time: in Pillow's order, the same bits
        return processor(group, return_tensors="pt", **options)["pixel_values"]

    done, group, area = [], [], 0
    for image in images:
        image = rgb(image)
        group.append(image if shorter_side(processor) is None else narrowed(image))
        area += group[-1].width * group[-1].height
        if area >= GROUP:
            done.append(processed(group))
            group, area = [], 0
    if group:
        done.append(processed(group))
    return torch.cat(done) if done else torch.empty(0)


def pixels_and_labels(
    pairs: Iterable[tuple[Image.Image, Any]], processor: Any, **options: Any
) -> "tuple[Tensor, list[Any]]":
    """Of images and their labels, as `pixels_of` takes images."""
    labels = []

    def images() -> Iterable[Image.Image]:
        for image, label in pairs:
            labels.append(label)
            yield image

    return pixels_of(images(), processor, **options), labels


def _scaled(image: Image.Image) -> Image.Image:
    values, top = np.asarray(image), TOP[image.mode[0]]
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # NaN is no pixel either
        raise ValueError(f"an image of mode {image.mode} must hold [0, {top}], not [{low:g}, {high:g}]: scale it.")
    gray = np.rint(values * (255 / top)).astype(np.uint8)
    gray[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(gray)


@cache
def _tell_of_white() -> None:
    """Once in a process."""
    logger.warning("Images with transparent parts are laid over white.")
