"""Damaged images of every format, through every reader: left out, or named in one line, never more.

`make fuzz` runs the slow test, which prints its figures in a line.
"""

import io
import random
import shutil
import struct
import time
import warnings
import zlib
from contextlib import redirect_stdout, suppress
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.dataset import without_bad_images
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import (
    EvaluationImages,
    TrainingImages,
    TrainTransform,
    build_image_processor,
)
from hf_protosphere.errors import DataError
from hf_protosphere.hub import demo as demo_page
from hf_protosphere.retrieval.arguments import SearchArguments
from hf_protosphere.retrieval.embedding import Embedder
from hf_protosphere.retrieval.image_index import ImageIndex
from hf_protosphere.retrieval.search import search
from tests.pictures import COLOUR, png_chunk, png_of

CONFIG = ProtoSphereConfig(image_size=16, num_labels=2)
PROCESSOR = build_image_processor(CONFIG)
SLOW_CASES, BATCH = 30_000, 100
NOT_HERE = {"EPS", "PDF", "WMF", "GRIB", "BUFR", "HDF5", "ICNS"}  # read by others; or made below


@cache
def of_every_format() -> dict[str, bytes]:
    """Small sound images: all that Pillow writes and reads here, in several kinds."""
    Image.init()
    picture = Image.fromarray(COLOUR[:24])
    found = {}

    def add(name, image, kind, **options):
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[name] = file.getvalue()

    floats = Image.fromarray(np.float32(COLOUR[:24, :, 0]) / 255)
    for kind in sorted({*Image.SAVE} & {*Image.OPEN} - NOT_HERE):
        kinds = (picture, picture.convert("L"), picture.convert("1"))
        for image in (floats,) if kind == "SPIDER" else kinds:
            with suppress(OSError, ValueError):  # it holds another mode
                add(kind, image, kind)
                break
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "words " * 50, zip=True)
    text.add_itxt("Title", "Bild", "de", "Bild")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    add("PNG with text and profile", picture, "PNG", pnginfo=text, icc_profile=profile, exif=exif)
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    for kind in ("PNG", "GIF", "WEBP", "TIFF", "AVIF"):
        if kind in found:
            add(f"{kind} of frames", picture, kind, **frames)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4"):
        image = picture.convert("1") if compression == "group4" else picture
        add(f"TIFF {compression}", image, "TIFF", compression=compression)
    add("TIFF of floats", floats, "TIFF")
    add("ICNS", picture.resize((16, 16)), "PNG")  # Pillow writes a megabyte
    entry = b"icp4" + struct.pack(">I", 8 + len(found["ICNS"])) + found["ICNS"]
    found["ICNS"] = b"icns" + struct.pack(">I", 8 + len(entry)) + entry
    options = {"progressive": True, "exif": exif, "icc_profile": profile}
    add("JPEG progressive", picture, "JPEG", **options)
    add("JPEG CMYK", picture.convert("CMYK"), "JPEG")
    add("WEBP lossless", picture.convert("RGBA"), "WEBP", lossless=True)
    add("TGA packed", picture, "TGA", compression="tga_rle")
    add("PNG palette", picture.convert("P"), "PNG", transparency=3)
    add("BMP palette", picture.convert("P"), "BMP")
    return found


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes replaced, parts cut, doubled or filled; mostly where the header is."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        end = min(len(data), rng.choice((32, 256, len(data)))) or 1
        start = rng.randrange(end)
        length = rng.choice((1, 2, 4, 8, 64))
        how = rng.randrange(7)
        if how == 0 and data:
            data[start % len(data)] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[start : start + length] = rng.randbytes(length)
        elif how == 2:
            data[start : start + 4] = struct.pack(
                rng.choice("<>") + "I", rng.choice((0, 1, 255, 65535, 2**31 - 1, 2**32 - 1))
            )
        elif how == 3:
            del data[rng.randrange(len(data) or 1) :]
        elif how == 4:
            del data[start : start + length]
        elif how == 5:
            data[start:start] = data[start : start + length]
        else:
            data[start : start + length] = rng.choice((b"\0", b"\xff")) * length
    return bytes(data)


@cache
def bombs() -> dict[str, bytes]:
    """What is small in a file and large in memory, or cut where readers count on more."""
    sound, zeros = png_of(np.zeros((2, 2, 3), np.uint16)), zlib.compress(bytes(2**26), 1)
    start, body, many = sound[:33], sound[33:], struct.pack(">II", 2**31 - 1, 2**31 - 1)
    return {
        "zTXt": start + png_chunk(b"zTXt", b"Comment\0\0" + zeros) + body,
        "iTXt": start + png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros) + body,
        "iCCP": start + png_chunk(b"iCCP", b"profile\0\0" + zeros) + body,
        "truncated IHDR": sound[:8] + struct.pack(">I", 5) + b"IHDR" + sound[16:21],
        "short IHDR": sound[:8] + png_chunk(b"IHDR", sound[16:21]) + body,
        "huge PNG": sound[:8] + png_chunk(b"IHDR", many + b"\x08\2\0\0\0") + body,
        "huge GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02D\x01\0;",
        "huge BMP": b"BM"
        + struct.pack("<IIIIiiHH", 54, 0, 54, 40, 2**30, 2**30, 1, 24) + bytes(24),
        "PPM without end": b"P6 " + b"9" * 5000,
        "PPM of words": b"P6 three by 3 255\n",
        "TIFF that points at itself": b"II*\0\x08\0\0\0\x01\0"
        + struct.pack("<HHIII", 256, 3, 1, 1, 8),
        "nothing": b"",
    }  # fmt: skip


class Mean(torch.nn.Module):
    """A model of three dimensions, which takes no time: the mean colour."""

    embedding_dim, device = 3, torch.device("cpu")

    def forward(self, pixel_values):
        mean = pixel_values.mean((2, 3)) + 5
        return SimpleNamespace(embeddings=torch.nn.functional.normalize(mean, dim=1))


EMBEDDER = Embedder("mean", Mean(), PROCESSOR, "fingerprint")
SPLIT = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))


def trained_on(contents: list[bytes]) -> list[int]:
    """Rows that are left of all; each is read as training and evaluation do."""
    images = [{"bytes": content, "path": None} for content in contents]
    labels = [0] * len(images)
    split = datasets.Dataset.from_dict({"image": images, "label": labels}, SPLIT)
    split = split.add_column("row", [*range(len(images))])
    try:
        good, names = without_bad_images(split, "train", "skip")
    except DataError:  # none of them can be decoded
        return []
    assert len(names) == len(images) - len(good)
    transform = TrainTransform(CONFIG, BatchOptions(augmentation="resized_crop", horizontal_flip=True))
    rows = [*range(len(good))]
    assert len(TrainingImages(good, transform).__getitems__(rows)) == len(rows)
    assert len(EvaluationImages(good, PROCESSOR).__getitems__(rows)) == len(rows)
    return [*good["row"]]


def indexed_and_found(folder) -> tuple[list[int], list[int]]:
    """Numbers of the files that an index holds, and of those that a search took for queries."""
    options = {"on_bad_image": "skip", "num_workers": 0}
    images = folder / "images"
    index = ImageIndex.of_folder(images, EMBEDDER, **options)
    index.save(folder / "index")
    with patch.object(Embedder, "load", lambda *_: EMBEDDER), redirect_stdout(io.StringIO()):
        asked = SearchArguments(index=str(folder / "index"), queries=[str(images)], k=1, json=True, **options)
        report = search(asked)
    if len(index) < len([*images.iterdir()]):
        with pytest.raises(DataError, match=r"of the images cannot be decoded: [^\n]+$"):
            EMBEDDER.embed_all(sorted(images.iterdir()), num_workers=0)
    numbers = [[int(name.split(".")[0]) for name in names] for names in (
        [image.path for image in index.images], [path.split("/")[-1] for path in report]
    )]  # fmt: skip
    return numbers[0], numbers[1]


def uploaded(path) -> bool:
    """Whether the demo page takes it, with the limit of pixels that Pillow has."""
    try:
        with patch.object(demo_page, "MAX_PIXELS", 2 * Image.MAX_IMAGE_PIXELS):
            pixels_of([demo_page._uploaded(path)], PROCESSOR)
    except DataError:
        return False
    return True


def read_everywhere(contents: list[bytes], folder) -> tuple[int, float]:
    """How many are accepted, the same by every reader, and the longest CPU seconds of one."""
    (folder / "images").mkdir(parents=True)
    seconds, accepted = [0.0], []
    for i, content in enumerate(contents):
        path = folder / "images" / f"{i:04}.png"  # readers go by the content
        path.write_bytes(content)
        started = time.process_time()
        if uploaded(path):
            accepted.append(i)
        seconds.append(time.process_time() - started)
    assert trained_on(contents) == accepted
    if accepted:
        assert indexed_and_found(folder) == (accepted, accepted)
    return len(accepted), max(seconds)


def fuzz(cases: int, folder) -> str:
    """Every format in turn, `cases` images in all; returns the figures in a line."""
    rng, sound = random.Random(0), of_every_format()
    names, accepted, longest = [*sound], 0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata
        for start in range(0, cases, BATCH):
            chosen = [names[i % len(names)] for i in range(start, min(start + BATCH, cases))]
            count, seconds = read_everywhere([mutated(sound[name], rng) for name in chosen], folder / str(start))
            accepted, longest = accepted + count, max(longest, seconds)
            shutil.rmtree(folder / str(start))
    assert longest < 30  # the canvas of an animation may have all the pixels that Pillow allows
    return (
        f"mutated images of {len(names)} kinds: {cases:,} cases, {cases - accepted:,} refused, "
        f"{accepted:,} accepted, tracebacks = 0, longest {longest:.2f} s"
    )


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level("ERROR")


def test_sound_images_are_accepted(tmp_path):
    sound = of_every_format()
    assert {"PNG", "BMP", "PPM", "GIF", "TIFF", "JPEG", "TGA", "WEBP"} <= {*sound}
    assert read_everywhere([*sound.values()], tmp_path)[0] == len(sound)


def test_damaged_images_are_refused_or_accepted_alike(tmp_path):
    assert "tracebacks = 0" in fuzz(60, tmp_path)


@pytest.mark.slow  # minutes; `make fuzz` shows its figures
def test_many_damaged_images(tmp_path):
    print("\n" + fuzz(SLOW_CASES, tmp_path))


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused(tmp_path, name):
    accepted, seconds = read_everywhere([bombs()[name]], tmp_path)
    assert accepted == 0
    assert seconds < 2
