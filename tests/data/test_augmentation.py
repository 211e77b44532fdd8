"""Batches augmented at once are what images augmented one by one would be."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.augmentation import NUMBERS, BatchAugmentation, uniform_numbers
from hf_protosphere.data.transforms import RandomViews, TrainTransform

KINDS = ("none", "crop", "resized_crop", "contrastive")


to_pil = v2.ToPILImage()


def images(num=6, side=32):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, 3, 8, 8, generator=generator)
    return (255 * F.interpolate(coarse, size=side, mode="bilinear")).round().to(torch.uint8)


def augmentation(kind="resized_crop", *, size=32, flip=False, **options):
    plain = {"image_mean": [0.0] * 3, "image_std": [1 / 255] * 3}  # values stay 0 to 255
    config = ProtoSphereConfig(image_size=size, num_labels=2, **plain)
    return BatchAugmentation(config, BatchOptions(augmentation=kind, horizontal_flip=flip, **options))


def batch(pixels, index=None):
    index = torch.arange(len(pixels)) if index is None else index
    return {"pixel_values": pixels[index], "index": index, "labels": index * 10}


def decide(augment, **numbers):
    """Fix the uniform numbers of all images, one value or one for each image."""
    if "area" in numbers:
        numbers |= {"area 0": numbers.pop("area"), "aspect 0": numbers.pop("aspect")}
    drawn = augment.numbers

    def decided(index, view):
        table = drawn(index, view)
        for name, value in numbers.items():
            table[:, NUMBERS.index(name)] = torch.as_tensor(value)
        return table

    augment.numbers = decided


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("views", [1, 2])
def test_an_image_is_augmented_alike_in_any_batch(kind, views):
    augment, pixels = augmentation(kind, flip=True, views=views, seed=3), images()
    whole = augment(batch(pixels))
    assert whole["pixel_values"].shape == ((6, 3, 32, 32) if views == 1 else (6, 2, 3, 32, 32))
    assert whole["pixel_values"].dtype == torch.float32
    assert whole.keys() == {"pixel_values", "labels"}
    for i in (4, 1):
        alone = augmentation(kind, flip=True, views=views, seed=3)(batch(pixels, torch.tensor([i])))
        assert torch.allclose(alone["pixel_values"][0], whole["pixel_values"][i], atol=1e-3)
        assert alone["labels"] == 10 * i


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("last", [{"blur": 0.5}, {"rand_augment": 9}, {"rand_augment": 0}, {"random_erasing": 0.5}])
def test_the_last_steps_are_those_of_single_images(last, views):
    pixels = torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    index = torch.tensor([7, 2, 19, 4, 5, 0])
    given = {"pixel_values": pixels[index % 12], "index": index}
    augment = augmentation("none", views=views, seed=3, **last)
    augment.set_epoch(2)
    seen = augment(given)["pixel_values"]
    config = ProtoSphereConfig(image_size=32, num_labels=2, image_mean=[0.0] * 3, image_std=[1 / 255] * 3)
    transform = TrainTransform(config, BatchOptions(**last))
    alone = RandomViews(transform, views=views, seed=3)
    alone.set_epoch(2)
    expected = [alone(to_pil(pixels[i % 12]), i) for i in index.tolist()]
    assert torch.allclose(seen, torch.stack(expected), atol=1e-3)
    plain = augmentation("none", views=views)(given)
    changed = (seen - plain["pixel_values"]).abs().flatten(1).amax(1) > 1
    assert changed.any()
    assert views == 2 or last.keys() & {"rand_augment"} or not changed.all()  # only a share


def test_what_is_erased_is_erased_everywhere():
    seen = augmentation("none", random_erasing=1.0)(batch(images() // 2 + 60))["pixel_values"]
    gone = (seen == 0).all(1).float().mean((1, 2))
    assert gone.min() > 0.01  # of the image
    assert gone.max() < 0.5


def test_epochs_seeds_views_images_and_repetitions_differ():
    def numbers(seed=0, epoch=0, view=0, offset=0):
        augment = augmentation(views=2, seed=seed)
        augment.set_epoch(epoch)
        return augment.numbers(torch.arange(6) + offset, view)

    variants = [numbers(), numbers(seed=1), numbers(epoch=1), numbers(view=1), numbers(offset=6)]
    everything = torch.stack(variants).flatten()
    assert len(everything.unique()) > 0.99 * len(everything)
    assert torch.equal(numbers(epoch=1), variants[2])


def splitmix64(index, key, count, column):
    """The definition, in Python's own integers."""

    def mixed(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    counter = (index * count + column) * 0x9E3779B97F4A7C15 % 2**64
    return (mixed((mixed(counter) + key) % 2**64) >> 40) / 2**24


def test_uniform_numbers_are_those_of_their_definition():
    keys, rows = (0, 1, -1, 2**63 - 1, -(2**63), hash((3, 4, 5))), [0, 1, 7, 1_281_167, 2**40]
    for key in keys:
        numbers = uniform_numbers(torch.tensor(rows), key, 3)
        expected = [[splitmix64(row, key, 3, column) for column in range(3)] for row in rows]
        assert numbers.tolist() == expected


def test_uniform_numbers_are_uniform_and_independent():
    numbers = torch.stack([uniform_numbers(torch.arange(20_000), key, 4) for key in range(3)], -1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    expected = numbers.numel() / 100
    assert ((counts - expected) ** 2 / expected).sum() < 160  # chi² of 99 degrees: p = 1e-4
    columns = torch.cat([numbers.flatten(1), numbers.flatten(1).roll(1, 0)], 1).T
    correlations = torch.corrcoef(columns) - torch.eye(len(columns))
    assert correlations.abs().max() < 4.5 / 20_000**0.5


def test_none_takes_the_centre():
    pixels = images(side=40)
    seen = augmentation("none")(batch(pixels))["pixel_values"]
    assert torch.allclose(seen, pixels[:, :, 4:36, 4:36].float(), atol=1e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_crop_is_a_crop_of_the_padded_image(flip):
    pixels, augment = images(), augmentation("crop", flip=True)
    decide(augment, x=[0.0, 0.3, 0.5, 0.7, 0.9, 0.999], y=[0.999, 0.5, 0.0, 0.2, 0.4, 0.6])
    decide(augment, flip=0.2 if flip else 0.8)
    seen = augment(batch(pixels))["pixel_values"]
    padded, numbers = F.pad(pixels, (4, 4, 4, 4)).float(), augment.numbers(torch.arange(6), 0)
    for i in range(6):
        left, top = (int(9 * numbers[i, NUMBERS.index(name)]) for name in ("x", "y"))
        expected = padded[i, :, top : top + 32, left : left + 32]
        expected = expected.flip(-1) if flip else expected
        assert torch.allclose(seen[i], expected, atol=1e-2), i


def test_resized_crops_lie_inside_and_have_the_areas_of_torchvision():
    augment = augmentation(size=32)
    numbers = augment.numbers(torch.arange(4000), 0)
    windows = augment._windows(32, dict(zip(NUMBERS, numbers.T)))
    width, x, height, y = windows[:, 0, 0], windows[:, 0, 2], windows[:, 1, 1], windows[:, 1, 2]
    assert ((width + x.abs() <= 1 + 1e-6) & (height + y.abs() <= 1 + 1e-6)).all()
    areas, aspects = width * height, width / height
    reference = v2.RandomResizedCrop(32, scale=(0.5, 1.0))
    torch.manual_seed(0)
    drawn = [reference.make_params([torch.empty(3, 320, 320)]) for _ in range(4000)]
    expected = torch.tensor([p["height"] * p["width"] / 320**2 for p in drawn])
    assert areas.mean() == pytest.approx(expected.mean().item(), abs=0.01)
    assert areas.std() == pytest.approx(expected.std().item(), abs=0.01)
    assert aspects.log().mean().abs() < 0.02
    assert (aspects.log().abs() <= math.log(4 / 3) + 1e-6).all()


def test_the_smallest_crop_has_the_area_it_is_told():
    augment = augmentation(size=16, crop_scale=0.25)
    pixels = images(side=32)
    decide(augment, area=0.0, aspect=0.5, x=0.5, y=0.25)
    seen = augment(batch(pixels))["pixel_values"]
    assert torch.allclose(seen, pixels[:, :, 4:20, 8:24].float(), atol=1e-2)


def test_a_crop_of_everything_is_the_image():
    augment, pixels = augmentation(), images()
    decide(augment, area=1.0, aspect=0.5)
    seen = augment(batch(pixels))["pixel_values"]
    assert torch.allclose(seen, pixels.float(), atol=1e-2)


def test_a_crop_is_resized_as_torchvision_resizes_it():
    augment, pixels = augmentation(size=16), images(side=32)
    # half of each side: area 1/4 of [0.5, 1] is below the range, hence the negative number
    decide(augment, area=-0.5, aspect=0.5, x=0.5, y=0.25)
    seen = augment(batch(pixels))["pixel_values"]
    assert torch.allclose(seen, pixels[:, :, 4:20, 8:24].float(), atol=1e-2)


@pytest.mark.parametrize("which", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("number", [0.0, 0.3, 0.5, 1.0])
def test_colours_change_as_in_torchvision(which, number):
    augment = augmentation("contrastive")
    pixels = images() // 3 + 80  # far enough from 0 and 255 that nothing is clipped
    neutral = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5}
    decide(augment, area=1.0, aspect=0.5, jitter=0.0, gray=1.0, **neutral | {which: number})
    seen = augment(batch(pixels))["pixel_values"]
    adjust = getattr(v2.functional, f"adjust_{which}")
    expected = 255 * adjust(pixels.float() / 255, 0.6 + 0.8 * number)
    assert torch.allclose(seen, expected, atol=0.6)


def test_hue_turns_and_keeps_luminance_and_gray():
    augment, pixels = augmentation("contrastive"), images() // 3 + 80
    still = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "area": 1.0, "aspect": 0.5}
    decide(augment, jitter=0.0, gray=1.0, hue=1.0, **still)
    turned = augment(batch(pixels))["pixel_values"]
    luminance = torch.tensor([0.299, 0.587, 0.114])
    before, after = ((luminance @ x.flatten(2)) for x in (pixels.float(), turned))
    assert torch.allclose(before, after, atol=1e-2)
    assert (turned - pixels).abs().mean() > 2
    gray = pixels[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(augment(batch(gray))["pixel_values"], gray.float(), atol=1e-2)


def test_gray_and_untouched_images():
    augment, pixels = augmentation("contrastive"), images()
    decide(augment, area=1.0, aspect=0.5, jitter=0.9, gray=0.9)
    assert torch.allclose(augment(batch(pixels))["pixel_values"], pixels.float(), atol=1e-2)
    decide(augment, gray=0.1)
    seen = augment(batch(pixels))["pixel_values"]
    expected = 255 * v2.functional.rgb_to_grayscale(pixels.float() / 255, 3)
    assert torch.allclose(seen, expected, atol=0.2)


def test_values_are_normalised():
    config = ProtoSphereConfig(image_size=32, num_labels=2, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    augment = BatchAugmentation(config, BatchOptions())
    expected = v2.functional.normalize(images() / 255, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert torch.allclose(augment(batch(images()))["pixel_values"], expected, atol=1e-4)
