"""Linear probes on frozen features: the baselines that fixed prototypes replace.

After supervised contrastive learning the class means of the embeddings are a classifier already, in
one forward pass (arXiv 2605.20302). The usual way is to throw the projection head away and train a
linear layer on the backbone's features; the normalised way trains one on the sphere. Features are
computed once, without augmentation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import normface_loss
from ..objectives import default_temperature

BATCH_SIZE, MOMENTUM = 256, 0.9
# Peak learning rates of SGD with a cosine schedule. Features of unit norm need a larger one.
LEARNING_RATES = {"linear": 0.1, "normalized_linear": 1.0}
Kind = Literal["linear", "normalized_linear"]


@dataclass(frozen=True)
class Probe:
    """What a probe reached: accuracy in [0, 1] on the evaluation images, and what it cost."""

    accuracy: float
    training_seconds: float
    weight: Tensor  # (K, F); of a normalised probe with unit norm
    bias: Tensor | None = None  # (K,), of a linear probe
    logits: Tensor | None = None  # (N, K) of the evaluation images


def train_probe(
    kind: Kind, train: tuple[Tensor, Tensor], evaluation: tuple[Tensor, Tensor], num_classes: int,
    *, epochs: int = 90, temperature: float | None = None, seed: int = 0,
) -> Probe:  # fmt: skip
    """Train a linear layer on features, without weight decay, and classify others by it.

    Args:
        kind: "linear", cross-entropy with a bias on the features as they are; "normalized_linear",
            NormFace on features of unit norm.
        train, evaluation: features (N, F) and labels (N,).
        temperature: of the normalised probe; by default NormFace's of so many classes.

    Example:
        >>> features = torch.eye(4).repeat(50, 1) + 0.01
        >>> data = features, torch.arange(4).repeat(50)
        >>> train_probe("linear", data, data, 4).accuracy
        1.0
    """
    started = time.perf_counter()
    normalized = kind == "normalized_linear"
    temperature = temperature or default_temperature("normface", num_classes)
    (features, labels), (others, truth) = train, evaluation
    generator, dim = torch.Generator().manual_seed(seed), features.shape[1]
    weight = dim**-0.5 * torch.randn(num_classes, dim, generator=generator)
    weight = weight.to(features.device).requires_grad_()
    bias = torch.zeros(num_classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], LEARNING_RATES[kind], momentum=MOMENTUM)
    steps = epochs * -(-len(labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for batch in order.split(BATCH_SIZE):
            x, y = features[batch], labels[batch]
            if normalized:
                loss = normface_loss(x, weight, y, temperature, group="local")
            else:
                loss = F.cross_entropy(F.linear(x, weight, bias), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    weight, bias = weight.detach(), bias.detach()
    if normalized:
        weight, bias, others = F.normalize(weight, dim=1), None, F.normalize(others, dim=1)
    logits = F.linear(others, weight, bias) / (temperature if normalized else 1)
    accuracy = (logits.argmax(1) == truth).double().mean().item()
    return Probe(accuracy, time.perf_counter() - started, weight, bias, logits)
