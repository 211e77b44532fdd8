"""The same file is the same image, whoever reads it."""

import io
import os

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.dataset import ImageDataset, load_image_dataset, without_bad_images
from hf_protosphere.data.pixels import (
    DRAFT,
    DecodedImages,
    decode,
    image_files,
    images_key,
    open_image,
    pixels_of,
    read,
    rgb,
    table_of,
    undecoded,
)
from hf_protosphere.data.streaming import EvaluationStream
from hf_protosphere.data.transforms import (
    EvaluationImages,
    TrainingImages,
    TrainTransform,
    build_image_processor,
)
from hf_protosphere.errors import DataError
from tests.data import image, image_folder, photos, replace_file
from tests.memory import peak_memory

CONFIG = ProtoSphereConfig(image_size=32, num_labels=2)


def as_array(picture):
    return np.asarray(rgb(picture))


def test_a_file_is_read_as_a_data_set_reads_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for kind, file in (("a", "palette.png"), ("b", "turned.png")):
        (tmp_path / "train" / kind).mkdir(parents=True)
        picture = image(0).crop((0, 0, 8, 5))
        picture.convert("P" if kind == "a" else "RGB").save(tmp_path / "train" / kind / file, exif=exif)
    data = load_image_dataset(str(tmp_path), validation_fraction=0)
    files = image_files(tmp_path / "train")
    assert [file.name for file in files] == ["palette.png", "turned.png"]
    for file, theirs in zip(files, data.splits["train"][:]["image"], strict=True):
        ours = open_image(file)
        assert np.array_equal(as_array(ours), as_array(theirs))
        in_memory = decode({"path": None, "bytes": file.read_bytes()})
        assert np.array_equal(as_array(in_memory), as_array(theirs))
    assert open_image(str(files[1])).size == (5, 8)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_what_cannot_be_decoded_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded as an image: "):
        open_image(path)
    with pytest.raises(DataError, match=r"^an image cannot be decoded as an image: "):
        decode({"path": None, "bytes": content})
    with pytest.raises(DataError, match=r"nothing\.png cannot be decoded"):
        open_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("value", [None, {"path": None, "bytes": None}])
def test_null_is_no_image(value):
    with pytest.raises(DataError, match="the data set holds null in its place"):
        read(value)


def test_values_that_cannot_be_colours_are_an_error_of_the_file(tmp_path):
    path = tmp_path / "depth.tif"
    Image.fromarray(np.float32([[0, 3.5]])).save(path)
    with pytest.raises(DataError, match=r"depth\.tif cannot be decoded .*mode F must hold"):
        read({"path": str(path), "bytes": None})


def test_eps_files_are_not_given_to_ghostscript(tmp_path, monkeypatch):
    image().save(tmp_path / "program.eps")
    (tmp_path / "program.eps").rename(tmp_path / "program.png")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("run"))
    with pytest.raises(DataError, match="Pillow does not know what it is"):
        open_image(tmp_path / "program.png")


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    image(size=20).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="20 × 20 are more than 399 pixels"):
        decode({"path": str(tmp_path / "a.png"), "bytes": None}, max_pixels=399)


@pytest.mark.parametrize(("subsampling", "size"), [(0, (800, 640)), (2, (1600, 1280))])
def test_large_jpeg_files_are_decoded_smaller_within_a_tolerance(subsampling, size):
    photograph = Image.fromarray(load_sample_images().images[0]).resize(size, Image.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 1))
    noisy = (np.asarray(photograph) + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90, subsampling=subsampling)
    value = {"path": None, "bytes": file.getvalue()}
    config = ProtoSphereConfig(image_size=64, image_mean=[0.0] * 3, image_std=[1 / 255] * 3)
    assert decode(value).size == size
    part = size[0] // (2 if subsampling == 0 else 4)
    assert read(value, 64).width == part
    assert min(read(value, 64).size) >= DRAFT * 64
    processor = build_image_processor(config)
    whole, small = (pixels_of([read(value, side)], processor) for side in (None, 64))
    difference = (whole - small).abs()
    assert difference.max() <= 5
    assert difference.mean() <= 0.3
    odd = io.BytesIO()
    Image.fromarray(noisy[:-1]).save(odd, "JPEG")  # whose rows no part divides
    assert decode({"path": None, "bytes": odd.getvalue()}, 64).size == (size[0], size[1] - 1)


def test_rows_that_cannot_be_decoded_are_told_from_the_others(tmp_path):
    folder = image_folder(tmp_path, train={"a": 3})
    (folder / "train" / "a" / "1.png").write_bytes(b"")
    features = datasets.Features(image=datasets.Image())
    paths = [str(path) for path in image_files(folder)]
    split = datasets.Dataset.from_dict({"image": [*paths, None]}, features)
    images = DecodedImages(split, build_image_processor(ProtoSphereConfig(image_size=32)))
    pixels, rows, bad = images.__getitems__([3, 2, 1, 0])
    assert (len(pixels), rows, sorted(bad)) == (2, [2, 0], [1, 3])
    assert "holds null" in str(bad[3])
    assert [images.name(row)[-5:] for row in (1, 3)] == ["1.png", "age 3"]
    assert len(images.__getitems__([1, 3])[0]) == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_and_images_are_decoded_in_batches(tmp_path, num_workers):
    path, processor = tmp_path / "0.png", build_image_processor(CONFIG)
    image(0).save(path)
    images = DecodedImages(table_of([path, image(1), tmp_path / "gone.png", str(path)]), processor)
    (first, rows, bad), (second, more, worse) = images.batches([3, 1, 2], 2, num_workers, "reading")
    assert (rows, bad, more, [*worse]) == ([3, 1], {}, [], [2])
    assert torch.equal(first, pixels_of([image(0), image(1)], processor))
    assert len(second) == 0
    assert images.name(2) == str(tmp_path / "gone.png")


READERS = {
    "training": lambda split, processor: TrainingImages(
        split,
        TrainTransform(CONFIG, BatchOptions(augmentation="resized_crop")),
    ).__getitems__([*range(len(split))]),
    "evaluation": lambda split, processor: EvaluationImages(split, processor).__getitems__([*range(len(split))]),
    "stream": lambda split, processor: [*EvaluationStream(undecoded(split).to_iterable_dataset(), processor)],
    "index and cache": lambda split, processor: DecodedImages(split, processor).__getitems__([*range(len(split))])[0],
    "what kind they are": lambda split, _: ImageDataset({"train": split}, ["a"])._first_images,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_photographs_of_a_batch_are_not_in_memory_together(tmp_path, reader):
    path = tmp_path / "photograph.jpg"
    Image.new("RGB", (2401, 1801), "gray").save(path)  # odd: decoded whole
    label = datasets.ClassLabel(names=["a"])
    features = datasets.Features(image=datasets.Image(), label=label)
    columns = {"image": [str(path)] * 10, "label": [0] * 10}
    split = datasets.Dataset.from_dict(columns, features)
    processor = build_image_processor(CONFIG)
    with peak_memory() as peak:
        assert len(reader(split, processor)) == 10
    assert peak.mebibytes < 100  # all at once: 10 times 30 MiB


def test_images_replaced_under_their_names_have_another_key(tmp_path):
    folder, features = (
        image_folder(tmp_path, train={"a": 2}),
        datasets.Features(image=datasets.Image()),
    )
    paths = image_files(folder)
    split = datasets.Dataset.from_dict({"image": [*map(str, paths)]}, features)
    first = images_key(split)
    assert images_key(split) == first
    assert images_key(split.select([0])) != first
    assert without_bad_images(split, "train", "error")[1] == []
    replace_file(paths[1], bytes(paths[1].stat().st_size))  # no image any more
    assert images_key(split) != first
    assert without_bad_images(split, "train", "skip")[1] == [str(paths[1])]  # decoded again
    paths[0].unlink()
    assert images_key(split) != first


def test_pixels_are_what_the_processor_makes_of_rgb():
    config = ProtoSphereConfig(image_size=32, image_mean=[0.2, 0.4, 0.6], image_std=[0.5, 1.0, 2.0])
    processor = build_image_processor(config)
    gray, colour = image(0, size=32).convert("L"), image(1, size=32)
    pixels = pixels_of([gray, colour], processor)
    assert (pixels.shape, pixels.dtype) == ((2, 3, 32, 32), torch.float32)
    # Of the model's own size nothing is resized: only scaled and normalised.
    for ours, picture in zip(pixels, (gray, colour)):
        values = torch.from_numpy(as_array(picture).copy()).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (config.image_mean, config.image_std))
        torch.testing.assert_close(ours, (values - mean) / std)
    raw = pixels_of([colour], processor, do_rescale=False, do_normalize=False)
    assert torch.equal(raw[0], torch.from_numpy(as_array(colour).copy()).permute(2, 0, 1))


def test_image_files_are_found_at_any_depth_in_their_order(tmp_path):
    names = ["b.JPG", "a/deep/1.png", "a/0.webp", "notes.txt", "film.mpg", "paper.pdf", "c.jpeg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a/0.webp", "a/deep/1.png", "b.JPG", "c.jpeg"]


def test_links_are_followed_and_what_is_hidden_is_not_read(tmp_path, capsys):
    elsewhere = photos(tmp_path / "elsewhere", "2.png", "deep/3.png")
    folder = photos(tmp_path / "photos", "a/0.png", ".cache/0.png", "__MACOSX/a/0.png", "a/._0.png")
    (folder / "b").symlink_to(elsewhere)
    (folder / "c").symlink_to(elsewhere)  # the same once more is no loop
    (folder / "a" / "1.png").symlink_to(elsewhere / "2.png")
    for name, target in (("a/up", folder), ("b/itself", elsewhere / "itself"), ("gone", "nothing")):
        (folder / name).symlink_to(target)
    (folder / "empty" / "deep").mkdir(parents=True)
    (folder / "notes.txt").touch()
    os.mkfifo(folder / "pipe.png")  # who opens it waits for ever
    files = image_files(folder)
    assert [path.relative_to(folder).as_posix() for path in files] == [
        "a/0.png", "a/1.png", "b/2.png", "b/deep/3.png", "c/2.png", "c/deep/3.png",
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert said.startswith(f"{folder}: 6 images (a/0.png, a/1.png, b/2.png, b/deep/3.png, c/2.png ")
    for words in (
        "3 hidden (.cache, __MACOSX, a/._0.png)", "1 of other kinds (notes.txt)",
        "1 links back to where they lie (a/up)", "1 folders without images (empty)",
        "4 links to nothing (b/itself, c/itself, gone, pipe.png)",
    ):  # fmt: skip
        assert words in said


@pytest.mark.parametrize("name", [b"caf\xe9/0.png", b"a/caf\xe9.png"])
def test_names_that_are_not_utf_8_are_named(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir()
    image().save(str(path))
    readers = (
        image_files,
        lambda folder: load_image_dataset(str(folder)),
        lambda _: image_files(path),
    )
    for reader in readers:
        with pytest.raises(DataError, match=r"Rename 1 images, .* not UTF-8: '.*caf.udce9"):
            reader(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)  # a superuser may read all
    with pytest.raises(DataError, match=r"cannot be read: Permission denied"):
        image_files(tmp_path)


def test_a_stream_of_bytes_is_an_image_too():
    file = io.BytesIO()
    image().save(file, "PNG")
    assert np.array_equal(as_array(decode({"path": None, "bytes": file.getvalue()})), as_array(image()))
