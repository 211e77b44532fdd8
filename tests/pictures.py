"""Image files of every kind that is not plain RGB, and what each of them shows.

Expected pixels are computed here from numbers, not by what is tested.
"""

import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 32
COLOUR = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
GRAY = COLOUR[..., 0]
OPACITY = np.linspace(0, 255, SIDE * SIDE).round().astype(np.uint8).reshape(SIDE, SIDE)
LEFT = np.arange(SIDE) < SIDE // 2  # half of the columns


def in_three_channels(gray):
    return np.repeat(np.asarray(gray)[..., None], 3, 2)


WIDE = GRAY.astype(np.uint16) * 257
IN_GRAYS = in_three_channels(np.where(LEFT, 7, np.maximum(GRAY, 8)).astype(np.uint8))
HALF_WHITE = np.where(LEFT[None, :, None], 255, IN_GRAYS).astype(np.uint8)
KEYED = np.where(LEFT[None, :, None], np.uint8([1, 2, 3]), np.maximum(COLOUR, 9)).astype(np.uint8)


def over_white(pixels, opacity):
    share = opacity[..., None] / 255
    return (pixels * share + 255 * (1 - share)).round().astype(np.uint8)


def png_chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png_of(pixels):
    """A PNG of uint16 RGB, which Pillow does not write."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    parts = header, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def netpbm(kind, pixels):
    return f"{kind} {SIDE} {SIDE} 65535\n".encode() + pixels.astype(">u2").tobytes()


def palette():
    image = Image.fromarray(IN_GRAYS[..., 0]).convert("P")
    image.putpalette([value for i in range(256) for value in (i, i, i)])
    return image


TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90 degrees clockwise
# name: (suffix, image or bytes, options of save, what it shows)
PICTURES = {
    "16-bit grayscale (I;16)": ("png", Image.fromarray(WIDE), {}, in_three_channels(GRAY)),
    "16-bit, the other byte order (I;16B)": (
        "tif", Image.frombytes("I;16B", (SIDE, SIDE), WIDE.astype(">u2").tobytes()), {}, in_three_channels(GRAY),
    ),
    "16-bit with a transparent value": (
        "png", Image.fromarray(np.where(LEFT, 7 * 257, np.maximum(WIDE, 8 * 257))),
        {"transparency": 7 * 257}, HALF_WHITE,
    ),
    "16-bit PGM (I)": ("pgm", netpbm("P5", WIDE), {}, in_three_channels(GRAY)),
    "32-bit whole numbers (I)": (
        "tif", Image.fromarray(WIDE.astype(np.int32)), {}, in_three_channels(GRAY)
    ),
    "floats (F)": (
        "tif", Image.fromarray(GRAY.astype(np.float32) / 255), {}, in_three_channels(GRAY)
    ),
    "16-bit RGB PNG": ("png", png_of(COLOUR.astype(np.uint16) * 257), {}, COLOUR),
    "16-bit RGB PPM": ("ppm", netpbm("P6", COLOUR.astype(np.uint16) * 257), {}, COLOUR),
    "alpha (RGBA)": (
        "png", Image.fromarray(np.dstack([COLOUR, OPACITY])), {}, over_white(COLOUR, OPACITY)
    ),
    "grayscale with alpha (LA)": (
        "png", Image.fromarray(np.dstack([GRAY, OPACITY])), {}, over_white(in_three_channels(GRAY), OPACITY),
    ),
    "palette with transparency (P)": ("png", palette(), {"transparency": 7}, HALF_WHITE),
    "GIF with transparency": ("gif", palette(), {"transparency": 7}, HALF_WHITE),
    "palette (P)": ("png", palette(), {}, IN_GRAYS),
    "RGB with a transparent colour": (
        "png", Image.fromarray(KEYED), {"transparency": (1, 2, 3)},
        np.where(LEFT[None, :, None], 255, KEYED).astype(np.uint8),
    ),
    "CMYK": ("tif", Image.fromarray(COLOUR).convert("CMYK"), {}, COLOUR),
    "black and white (1)": (
        "png", Image.fromarray(GRAY > 127), {}, in_three_channels(255 * np.uint8(GRAY > 127))
    ),
    "EXIF orientation": (
        "png", Image.fromarray(np.rot90(COLOUR).copy()), {"exif": TURNED}, COLOUR
    ),
    "several frames": (
        "gif", palette(), {"save_all": True, "append_images": [Image.new("P", (SIDE, SIDE))]}, IN_GRAYS,
    ),
}  # fmt: skip
# What has no meaning as colours: (image, what is said of it).
SENSELESS = {
    "floats beyond 1": (Image.fromarray(np.float32([[0, 1.5]])), r"mode F must hold .*\[0, 1\.5\]"),
    "no number": (Image.fromarray(np.float32([[0, np.nan]])), "mode F must hold .*nan"),
    "beyond 16 bits": (Image.fromarray(np.int32([[0, 65536]])), r"mode I .*\[0, 65536\]"),
    "below 0": (Image.fromarray(np.int32([[-1, 5]])), r"mode I must hold .*\[-1, 5\]"),
}


def write_picture(folder, name):
    """The file of an entry of `PICTURES`, and what it shows, (32, 32, 3) uint8."""
    suffix, image, options, shown = PICTURES[name]
    path = folder / f"{list(PICTURES).index(name)}.{suffix}"
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image.save(path, **options)
    return path, shown
