"""`airnet`: a network for images of 32 or 64 pixels that learns CIFAR-10 within minutes.

After the networks of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv
2404.00498). timm knows it by that name once this is imported, so that it is a backbone like others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn


class Whitening(nn.Module):
    """2 × 2 windows → decorrelated values and their negatives, (M, 8 C, H − 1, W − 1).

    The covariance of small windows of photographs is diagonal, but for little, in Hadamard's basis
    of 2 × 2 pixels and, of RGB, in luminance and two opponent colours. A fixed convolution turns
    to that basis, and a batch norm without weights makes the variances one.
    """

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        steps = torch.tensor([[1.0, 1], [1, -1]]) / 2**0.5
        windows = torch.einsum("ay,bx->abyx", steps, steps).reshape(4, 1, 2, 2)
        colours = torch.eye(in_chans)
        if in_chans == 3:
            colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
            colours = F.normalize(colours, dim=1)
        weight = torch.einsum("woyx,kc->wkcyx", windows, colours).flatten(0, 1)
        self.conv = nn.Conv2d(in_chans, 4 * in_chans, 2, bias=False)
        self.conv.weight = nn.Parameter(weight, requires_grad=False)
        self.norm = nn.BatchNorm2d(4 * in_chans, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images))
        return torch.cat([x, -x], 1)


class Norm(nn.BatchNorm2d):
    """Batch norm with a bias and no scale, which the next layer has, and a short memory: trainings take few steps."""

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=0.2)
        self.weight.requires_grad_(False)


def _convolution(in_width: int, width: int) -> nn.Conv2d:
    """Its first channels begin as those of its input."""
    conv = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[: min(in_width, width)])
    return conv


class AirNet(nn.Module):
    """A fixed whitening, three blocks of two convolutions, and the maximum over the image."""

    def __init__(self, widths: Sequence[int] = (64, 128, 256), num_classes: int = 0, in_chans: int = 3) -> None:
        super().__init__()
        self.num_features, before = widths[-1], 8 * in_chans
        layers: list[nn.Module] = [Whitening(in_chans), nn.GELU()]
        for width in widths:
            layers += [
                _convolution(before, width), nn.MaxPool2d(2), Norm(width), nn.GELU(),
                _convolution(width, width), Norm(width), nn.GELU(),
            ]  # fmt: skip
            before = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.amax((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


default_cfgs = {
    "airnet": {
        "architecture": "airnet", "input_size": (3, 32, 32), "num_classes": 0, "crop_pct": 1.0,
        "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
        "first_conv": "layers.0.conv", "classifier": "head",
    }
}  # fmt: skip


@register_model
def airnet(pretrained: bool = False, **kwargs: Any) -> AirNet:
    if pretrained:
        raise ValueError("airnet has no pretrained weights: leave out pretrained.")
    known = ("widths", "num_classes", "in_chans")
    return AirNet(**{name: kwargs[name] for name in known if name in kwargs})
