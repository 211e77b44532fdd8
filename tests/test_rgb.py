"""Every kind of image becomes the RGB that it shows; photographs may have any size and shape."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from hf_protosphere import ProtoSphereConfig
from hf_protosphere import rgb as module
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.transforms import TrainTransform, build_image_processor
from hf_protosphere.rgb import formats, narrowed, pixels_and_labels, pixels_of, rgb
from tests.data import image
from tests.memory import peak_memory
from tests.pictures import COLOUR, PICTURES, SENSELESS, write_picture

CONFIG = ProtoSphereConfig(image_size=32, num_labels=2)


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_becomes_what_it_shows(tmp_path, name):
    path, shown = write_picture(tmp_path, name)
    with Image.open(path) as opened:
        found = rgb(opened)
    assert (found.mode, found.size) == ("RGB", (32, 32))
    # Of 16 bits Pillow itself takes the upper byte, and opacity is a whole number.
    assert np.abs(np.asarray(found).astype(int) - shown).max() <= 1
    again = rgb(found)
    assert again is found


@pytest.mark.parametrize(("picture", "message"), SENSELESS.values(), ids=SENSELESS)
def test_what_cannot_be_colours_is_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        rgb(picture)


def test_the_given_image_stays_as_it_is():
    given = Image.fromarray(np.rot90(COLOUR).copy())
    exif = given.getexif()
    exif[0x0112] = 6
    before = given.tobytes()
    assert np.array_equal(np.asarray(rgb(given)), COLOUR)
    assert (given.tobytes(), given.getexif()[0x0112]) == (before, 6)


def test_white_under_what_is_transparent_is_told_once(caplog):
    module._tell_of_white.cache_clear()
    opaque = image().convert("RGBA")
    rgb(opaque)
    assert not caplog.text
    opaque.putalpha(254)
    rgb(opaque), rgb(opaque)
    assert caplog.text.count("Images with transparent parts are laid over white") == 1


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("size", [(300, 80), (70, 280), (33, 32), (500, 20), (20, 501)])
def test_the_middle_of_long_images_gives_the_same_pixels(size, crop_pct):
    picture = Image.effect_noise(size, 90)
    ordinary = max(size) <= 4 * min(size)
    assert (narrowed(picture) is picture) == ordinary
    processor = build_image_processor(ProtoSphereConfig(image_size=32, crop_pct=crop_pct))
    whole = processor([picture.convert("RGB")], return_tensors="pt")["pixel_values"]
    found = pixels_of([picture], processor)
    if ordinary:
        assert torch.equal(found, whole)
    else:  # whose middle may lie half a pixel of the model beside it
        smooth = Image.radial_gradient("L").resize(size).convert("RGB")
        whole = processor([smooth], return_tensors="pt")["pixel_values"]
        assert (pixels_of([smooth], processor) - whole).abs().max() < 0.3


def test_an_image_of_one_row_takes_no_memory():
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1, 20_000, 3), np.uint8))
    config = ProtoSphereConfig(image_size=224, num_labels=2)
    transform = TrainTransform(config, BatchOptions())
    with peak_memory() as peak:
        pixels = pixels_of([wide], build_image_processor(config))
        assert transform(wide).shape == pixels[0].shape == (3, 224, 224)
    assert peak.mebibytes < 60  # 7 GiB, resized whole


def test_photographs_are_taken_one_by_one():
    def photographs():
        for i in range(12):
            yield Image.new("RGB", (2000, 1500), (i, 0, 0))

    with peak_memory() as peak:
        pixels, labels = pixels_and_labels(
            ((picture, i) for i, picture in enumerate(photographs())), build_image_processor(CONFIG)
        )
    assert (pixels.shape, labels) == ((12, 3, 32, 32), list(range(12)))
    assert peak.mebibytes < 100  # all at once: 12 times 31 MiB


def test_groups_change_nothing(monkeypatch):
    pictures = [image(i, size=40) for i in range(7)]
    expected = pixels_of(pictures, build_image_processor(CONFIG))
    for pixels in (1, 3500, 10**9):
        monkeypatch.setattr(module, "GROUP", pixels)
        assert torch.equal(pixels_of(iter(pictures), build_image_processor(CONFIG)), expected)
    assert pixels_of([], build_image_processor(CONFIG)).shape == (0,)


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("size", [{"shortest_edge": 37}, {"height": 48, "width": 80}, {"shortest_edge": 200}])
def test_resizing_in_pillows_order_of_bytes_changes_no_bit(size, resample):
    processor = ViTImageProcessor(
        size=size, resample=resample, do_center_crop=True, crop_size={"height": 32, "width": 32}
    )
    noise = np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise), Image.fromarray(noise[:, :50])]
    for options in ({}, {"do_rescale": False, "do_normalize": False}):
        theirs = processor(pictures, return_tensors="pt", **options)["pixel_values"]
        ours = pixels_of(pictures, processor, **options)
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_programs_and_films_are_no_images():
    assert {"PNG", "JPEG", "TIFF", "WEBP"} <= {*formats()}
    assert not {"EPS", "MPEG"} & {*formats()}
    assert formats()[:2] == ["JPEG", "PNG"]  # what most files are, tried before twenty others
    assert len(formats()) == len({*formats()})
