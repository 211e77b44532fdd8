"""Augmentation of whole batches of uint8 images on the device they are trained on.

Every image has parameters of its own, a function of seed, epoch, index and view alone: the same
whatever the batch, the number of processes, or the point at which a run was resumed. Libraries that
augment batches draw theirs from a global generator, batch by batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from ..configuration_protosphere import ProtoSphereConfig, three_channels
from ..modeling_protosphere import LUMINANCE
from .arguments import BatchOptions
from .samplers import ByEpoch
from .transforms import last_steps, repeatable, smallest_area

TRIES = 4  # of a crop that fits: the 0.5 % (of small images) that never do are shortened
# Uniform numbers in [0, 1) that decide about one view of one image.
NUMBERS = (
    *(f"area {i}" for i in range(TRIES)), *(f"aspect {i}" for i in range(TRIES)),
    "x", "y", "flip", "jitter", "brightness", "contrast", "saturation", "hue", "gray",
)  # fmt: skip
# From RGB to one luminance and two chroma coordinates, in which hue is an angle (NTSC's YIQ).
YIQ = torch.tensor([list(LUMINANCE), [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


class BatchAugmentation(ByEpoch):
    """uint8 (M, 3, S, S) with their indices → float32 (M[, V], 3, image_size, image_size).

    The augmentations of `TrainTransform`, in one bilinear resampling and one affine map of the colours. Colour jitter
    always comes in the order brightness, contrast, saturation, hue, and turns hue in YIQ coordinates; values are
    clipped once, at the end. What `last_steps` adds is torchvision's, image by image, of values rounded to whole ones.

    The index of an image may be any number: indices that a sampler repeats within an epoch can be
    told apart by adding multiples of the data set's size (see `samplers`)."""

    def __init__(self, config: ProtoSphereConfig, options: BatchOptions, device: torch.device | str = "cpu") -> None:
        self.size, self.augmentation = config.image_size, options.augmentation
        self.horizontal_flip, self.views = options.horizontal_flip, options.views
        self.seed, self.smallest_area = options.seed, smallest_area(config, options)
        steps = last_steps(config, options)  # three of them are always there
        self.last = v2.Compose(steps) if len(steps) > 3 else None
        statistics = [three_channels(config.image_mean), three_channels(config.image_std)]
        self.mean, self.std = 255 * torch.tensor(statistics, device=device)[..., None, None]  # (3, 1, 1) each

    def numbers(self, index: Tensor, view: int) -> Tensor:
        """(M, P) uniform numbers in [0, 1), in the order of `NUMBERS`."""
        return uniform_numbers(index, hash((self.seed, self.epoch, view)), len(NUMBERS))

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """From {"pixel_values": uint8, "index": (M,), ...} to what the model takes."""
        images, index = batch["pixel_values"].float(), batch["index"]
        augmented = (self._augmented(images, self.numbers(index, view)) for view in range(self.views))
        views = [self._finished(view, index, i) for i, view in enumerate(augmented)]
        others = {name: value for name, value in batch.items() if name not in ("pixel_values", "index")}
        return {"pixel_values": views[0] if self.views == 1 else torch.stack(views, 1)} | others

    def _augmented(self, images: Tensor, numbers: Tensor) -> Tensor:
        u = dict(zip(NUMBERS, numbers.T))
        theta = self._windows(images.shape[-1], u)  # (M, 2, 3)
        grid = F.affine_grid(theta, [len(images), 3, self.size, self.size], align_corners=False)
        images = F.grid_sample(images, grid, align_corners=False)
        if self.augmentation == "contrastive":
            A, b = _colour_maps(images, u)
            images = torch.baddbmm(b[:, :, None], A, images.flatten(2)).view_as(images).clamp_(0, 255)
        return images

    def _finished(self, images: Tensor, index: Tensor, view: int) -> Tensor:
        if self.last is None:
            return images.sub_(self.mean).div_(self.std)
        pairs = zip(images.round_().to(torch.uint8), index.tolist())
        position = self.seed, self.epoch
        return torch.stack([repeatable(self.last, x, *position, i, view) for x, i in pairs])

    def _windows(self, side: int, u: dict[str, Tensor]) -> Tensor:
        """Where in the stored image the output lies, as `affine_grid` wants it: [−1, 1]."""
        if self.augmentation in ("none", "crop"):
            width = height = torch.full_like(u["x"], self.size / side)
            reach = max(1, self.size // 8) if self.augmentation == "crop" else 0
            # whole pixels, as a crop of a padded image
            x, y = (((2 * reach + 1) * u[name]).floor() - reach for name in ("x", "y"))
            x, y = 2 * x / side, 2 * y / side
        else:
            width, height = self._sides(u)
            x, y = (1 - width) * (2 * u["x"] - 1), (1 - height) * (2 * u["y"] - 1)
        if self.horizontal_flip:
            width = torch.where(u["flip"] < 0.5, -width, width)
        zero = torch.zeros_like(x)
        return torch.stack([width, zero, x, zero, height, y], 1).view(-1, 2, 3)

    def _sides(self, u: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(M,) width and height of crops, as shares of the side, drawn until they fit: area and log aspect uniform."""
        areas = torch.stack([u[f"area {i}"] for i in range(TRIES)])  # (T, M)
        areas = self.smallest_area + (1 - self.smallest_area) * areas
        aspects = torch.stack([u[f"aspect {i}"] for i in range(TRIES)])
        aspects = torch.exp((2 * aspects - 1) * math.log(4 / 3))
        fits = (areas * aspects <= 1) & (areas / aspects <= 1)
        first = fits.int().argmax(0, keepdim=True)
        area, aspect = (x.gather(0, first)[0] for x in (areas, aspects))
        return (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)


def uniform_numbers(index: Tensor, key: int, count: int) -> Tensor:
    """(M, count) float32 in [0, 1), a function of the key (of 64 bits) and the index (M,) alone.

    The mixing function of SplitMix64 (Steele et al. 2014), over counters, then over the key."""
    counters = index[:, None] * count + torch.arange(count, device=index.device)
    x = _mixed(_mixed(counters * _signed(0x9E3779B97F4A7C15)) + _signed(key))
    return _shifted(x, 40).float() / 2**24


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in: torch's own shift repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits; products and sums of int64 wrap around."""
    return (value + 2**63) % 2**64 - 2**63


def _colour_maps(images: Tensor, u: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(M, 3, 3) and (M, 3): colours x become A x + b."""
    yiq = YIQ.to(images.device)
    jitter = u["jitter"] < 0.8
    drawn = (u["brightness"], u["contrast"], u["saturation"])
    brightness, contrast, saturation = (torch.where(jitter, 0.6 + 0.8 * x, 1.0)[:, None, None] for x in drawn)
    angle = torch.where(jitter, 2 * math.pi * 0.1 * (2 * u["hue"] - 1), 0.0)
    saturation = torch.where((u["gray"] < 0.2)[:, None, None], 0.0, saturation)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    turn = yiq.inverse() @ turn @ yiq
    gray = yiq[:1].expand(3, 3)  # every channel becomes the luminance
    saturate = saturation * torch.eye(3, device=images.device) + (1 - saturation) * gray
    mean_luminance = images.mean((2, 3)) @ yiq[0] * brightness[:, 0, 0]  # (M,)
    A = turn @ saturate * (brightness * contrast)
    offset = ((1 - contrast[:, 0, 0]) * mean_luminance)[:, None].expand(-1, 3)
    return A, (turn @ saturate @ offset[:, :, None])[:, :, 0]
