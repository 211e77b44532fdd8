"""From images to model inputs: the training augmentations and the one evaluation transform.

Inputs have three channels: pipelines send RGB, of which a grayscale model takes the luminance itself."""

from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import InterpolationMode, v2
from transformers import BaseImageProcessor

from ..configuration_protosphere import ProtoSphereConfig, three_channels
from ..configuration_protosphere import build_image_processor as build_image_processor
from ..rgb import narrowed, pixels_of, rgb, shorter_side
from .arguments import BatchOptions
from .labels import labels_of
from .pixels import read, undecoded
from .samplers import ByEpoch


class TrainTransform:
    """Augment one image: PIL → (3, image_size, image_size) float32, normalised.

    `augmentation` of the options is "none" (the evaluation transform), "crop" (shift by up to an eighth, as usual for
    CIFAR), "resized_crop" (as usual for ImageNet) or "contrastive" (with colour jitter, as in SupCon)."""

    def __init__(self, config: ProtoSphereConfig, options: BatchOptions) -> None:
        size = config.image_size
        interpolation = InterpolationMode(config.interpolation)
        resize = v2.Resize(round(size / config.crop_pct), interpolation=interpolation, antialias=True)
        fit = [v2.Lambda(narrowed), resize, v2.CenterCrop(size)]
        scale = (smallest_area(config, options), 1.0)
        crop = v2.RandomResizedCrop(size, scale, interpolation=interpolation, antialias=True)
        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        steps = {
            "none": fit,
            "crop": [*fit, v2.RandomCrop(size, padding=max(1, size // 8))],
            "resized_crop": [crop],
            "contrastive": [crop, jitter, v2.RandomGrayscale(0.2)],
        }
        flip = [v2.RandomHorizontalFlip()] if options.horizontal_flip else []
        steps = [*steps[options.augmentation], *flip, *last_steps(config, options)]
        self.transform = v2.Compose(steps)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(rgb(image))


def last_steps(config: ProtoSphereConfig, options: BatchOptions) -> list[v2.Transform]:
    """From the final size, PIL's or uint8 (3, S, S), to normalised float32, by blur, RandAugment and erasing."""
    mean, std = three_channels(config.image_mean), three_channels(config.image_std)
    strength, size = options.rand_augment, config.image_size // 10 | 1  # of SimCLR's kernel
    blur = v2.RandomApply([v2.GaussianBlur(size, (0.1, 2.0))], p=options.blur)
    return [
        v2.PILToTensor(),
        *([blur] if options.blur else []),
        *([v2.RandAugment(magnitude=strength)] if strength is not None else []),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std),
        *([v2.RandomErasing(options.random_erasing)] if options.random_erasing else []),
    ]  # fmt: skip


def repeatable(transform: Any, image: Any, *position: int) -> Tensor:
    """The transformed image, whose randomness is a function of the position alone."""
    # Transforms draw from torch's global generator, whose state is everybody else's too.
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds every device: as slow as an augmentation.
        torch.default_generator.manual_seed(hash(position) % 2**63)
        return transform(image)


def smallest_area(config: ProtoSphereConfig, options: BatchOptions) -> float:
    """Of a random resized crop, as a share of the image."""
    # The usual scale for ImageNet would leave 9 of 32 pixels a side of a small image.
    usual = 0.08 if config.image_size >= 128 else 0.5
    return options.crop_scale or (0.2 if options.augmentation == "contrastive" else usual)


class _Images(Dataset):
    """Items {"pixel_values", "labels"} of a split with columns "image" and "label". Subclasses
    define `__getitems__`, a whole batch at once, which torch's DataLoader prefers."""

    def __init__(self, split: datasets.Dataset) -> None:
        self.images, self.labels = undecoded(split.select_columns("image")), labels_of(split)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


class RandomViews(ByEpoch):
    """Augmented views of an image, ([V, ]C, H, W); the randomness of each follows from (seed, epoch, index, view)."""

    def __init__(self, transform: Any, *, views: int = 1, seed: int = 0) -> None:
        self.transform, self.views, self.seed = transform, views, seed

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        views = [repeatable(self.transform, image, self.seed, self.epoch, index, view) for view in range(self.views)]
        return views[0] if self.views == 1 else torch.stack(views)


class TrainingImages(_Images):
    """Augmented images, as `RandomViews` makes them: the same whatever the number of workers, and after resuming. An
    index beyond the split's size repeats the image at index % size, augmented anew."""

    def __init__(self, split: datasets.Dataset, transform: Any, *, views: int = 1, seed: int = 0) -> None:
        super().__init__(split)
        self.views = RandomViews(transform, views=views, seed=seed)
        self.set_epoch = self.views.set_epoch

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        rows = [index % len(self) for index in indices]
        pixels = (self.views(read(self.images[row]["image"]), index) for row, index in zip(rows, indices))
        return [{"pixel_values": x, "labels": label} for x, label in zip(pixels, self.labels[rows].tolist())]


class EvaluationImages(_Images):
    """Images under the saved image processor, a batch at a time."""

    def __init__(self, split: datasets.Dataset, processor: BaseImageProcessor) -> None:
        super().__init__(split)
        self.processor = processor

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        side = shorter_side(self.processor)
        pixels = pixels_of((read(self.images[i]["image"], side) for i in indices), self.processor)
        return [{"pixel_values": x, "labels": label} for x, label in zip(pixels, self.labels[indices].tolist())]


def collate(items: list[dict[str, Any]] | dict[str, Tensor]) -> dict[str, Tensor]:
    """{"pixel_values": (M[, V], C, H, W), "labels": (M,) int64}; a whole batch stays as it is."""
    return items if isinstance(items, dict) else default_collate(items)
