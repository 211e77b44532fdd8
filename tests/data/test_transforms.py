"""Training and serving see the same images; randomness follows seed, epoch and index."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.transforms import (
    EvaluationImages,
    TrainingImages,
    TrainTransform,
    build_image_processor,
    collate,
)


def random_image(seed=0, size=(48, 40), mode="RGB"):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PILImage.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def split():
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    images = [random_image(i) for i in range(12)]
    return Dataset.from_dict({"image": images, "label": [0, 1] * 6}, features=features)


def config(**kwargs):
    return ProtoSphereConfig(image_size=32, **kwargs)


def train_transform(augmentation="resized_crop", horizontal_flip=True, **kwargs):
    return TrainTransform(config(**kwargs), BatchOptions(augmentation=augmentation, horizontal_flip=horizontal_flip))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_processor_is_the_described_transform_and_survives_saving(tmp_path, interpolation, crop_pct):
    processor = build_image_processor(config(interpolation=interpolation, crop_pct=crop_pct))
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    image = random_image()
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert torch.equal(pixels, again(image, return_tensors="pt")["pixel_values"])

    plain = train_transform("none", False, interpolation=interpolation, crop_pct=crop_pct)(image)
    # Pillow and torchvision round the resized image to whole grey values each in its own way.
    one_grey_value = 1 / 255 / min(config().image_std)
    tolerance = 2.5 * one_grey_value if interpolation != "nearest" else 255 * one_grey_value
    assert (plain - pixels[0]).abs().max() < tolerance


def test_images_of_the_models_size_are_served_as_trained():
    image = random_image(size=(32, 32))
    processor = build_image_processor(config())
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(train_transform("none", False)(image), pixels, atol=1e-6)
    mean, std = (torch.tensor(x)[:, None, None] for x in (config().image_mean, config().image_std))
    expected = (torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1) - mean) / std
    assert torch.allclose(pixels, expected.float(), atol=1e-6)


def test_evaluation_images_are_what_the_processor_makes_of_each(split):
    processor = build_image_processor(config())
    images = EvaluationImages(split, processor)
    loader = DataLoader(images, batch_size=5, collate_fn=collate)
    batches = torch.cat([batch["pixel_values"] for batch in loader])
    for i in range(len(split)):
        expected = processor(split[i]["image"], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(batches[i], expected)
        assert torch.equal(images[i]["pixel_values"], expected)


def test_grayscale_models_get_three_equal_channels():
    gray = random_image(mode="L")
    gray_config = config(num_channels=1, image_mean=[0.3], image_std=[0.2])
    pixels = build_image_processor(gray_config)(gray.convert("RGB"), return_tensors="pt")
    assert torch.equal(pixels["pixel_values"][0, 0], pixels["pixel_values"][0, 2])
    trained = TrainTransform(gray_config, BatchOptions(augmentation="crop"))(gray)
    assert trained.shape == (3, 32, 32)
    assert torch.equal(trained[0], trained[2])


@pytest.mark.parametrize("augmentation", ["none", "crop", "resized_crop", "contrastive"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_every_augmentation_takes_every_mode(augmentation, mode):
    pixels = train_transform(augmentation)(random_image(mode=mode))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32


def test_randomness_follows_seed_epoch_index_and_view_only(split):
    def items(seed=0, epoch=0, num_workers=0, batch_size=4):
        images = TrainingImages(split, train_transform("contrastive"), views=2, seed=seed)
        images.views.set_epoch(epoch)
        loader = DataLoader(images, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
        return torch.cat([batch["pixel_values"] for batch in loader])

    expected = items()
    assert expected.shape == (12, 2, 3, 32, 32)
    torch.rand(7)  # the global generator has nothing to do with it
    assert torch.equal(items(num_workers=2), expected)
    assert torch.equal(items(batch_size=5), expected)
    assert not torch.equal(items(epoch=1), expected)
    assert not torch.equal(items(seed=1), expected)
    assert not torch.equal(expected[:, 0], expected[:, 1])


def test_augmenting_leaves_the_global_generator_alone(split):
    images = TrainingImages(split, train_transform())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    images[3]
    assert torch.equal(torch.rand(3), expected)


def test_no_flip_means_no_flip():
    left_dark = PILImage.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1)))
    transform = train_transform("crop", horizontal_flip=False)
    for _ in range(20):
        row = transform(left_dark)[0, 16, 6:26]
        assert (row.diff() >= -1e-6).all()
