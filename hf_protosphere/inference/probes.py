"""Linear probes on frozen features: the baselines that fixed prototypes replace.

After supervised contrastive learning the class means of the embeddings are a classifier already, in
one forward pass (arXiv 2605.20302). The usual way is to throw the projection head away and train a
linear layer on the backbone's features; the normalised way trains one on the sphere. The fair ones
see every image augmented anew in every epoch. On features computed once they take seconds and are
weaker: 72.3 against 73.9 % on CIFAR-100 in the paper's Table 14.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from ..data.arguments import BatchOptions
from ..data.image_cache import FeatureSplit
from ..data.loaders import TrainingBatches
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..objectives import default_temperature

BATCH_SIZE, MOMENTUM = 256, 0.9
# Peak learning rates. Features of unit norm need a larger one.
LEARNING_RATES = {"linear": 0.1, "normalized_linear": 1.0}
Kind = Literal["linear", "normalized_linear"]


class Probe(nn.Module):
    """Features (M, F) to logits (M, K): "linear", with a bias, of features as they are;
    "normalized_linear", the cosines to rows of `weight` (K, F) over a temperature, by default
    NormFace's of so many classes."""

    def __init__(self, kind: Kind, dim: int, num_classes: int, *, temperature: float | None, seed: int = 0) -> None:
        super().__init__()
        temperature = temperature or default_temperature("normface", num_classes)
        generator = torch.Generator().manual_seed(seed)
        weight = dim**-0.5 * torch.randn(num_classes, dim, generator=generator)
        self.kind, self.temperature, self.weight = kind, temperature, nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if kind == "linear" else None

    def forward(self, features: Tensor) -> Tensor:
        if self.bias is not None:
            return F.linear(features, self.weight, self.bias)
        features, weight = (F.normalize(x, dim=1) for x in (features, self.weight))
        return F.linear(features, weight) / self.temperature


def train_probes(
    kinds: Sequence[Kind], network: ProtoSphereForImageClassification,
    split: Dataset | FeatureSplit, accelerator: Accelerator, arguments: Any,
    dims: tuple[int, int], seed: int, members: Tensor | None = None,
) -> dict[Kind, tuple[Probe, float, float]]:  # fmt: skip
    """Train linear layers on a network's features, by SGD with momentum and without weight decay:
    one implementation for the end of training and for transfer.

    Args:
        network: frozen; on the accelerator's device.
        split: training images, which are augmented in every epoch and pass through the network once
            for all probes; or their features, computed before.
        arguments: of a job: `temperature`, `probe_epochs`, `probe_learning_rate`,
            `probe_milestones`, and those of `BatchOptions`.
        dims: F, of the features, and K.
        members: (S, K) of `memberships`, where labels are of S joined ones: one against all.

    Returns:
        A probe of each kind, its seconds, and those of the features.
    """
    processes, epochs = accelerator.num_processes, arguments.probe_epochs
    size = max(1, min(BATCH_SIZE, len(split)) // processes)
    own = {"batch_size": size, "views": 1, "classes_per_batch": None, "seed": seed}
    options = dataclasses.replace(BatchOptions.of(arguments), **own)
    batches = TrainingBatches(split, network.config, options, accelerator)
    steps, of_images = len(split) // (size * processes), not isinstance(split, FeatureSplit)
    milestones = [math.ceil(milestone * steps) for milestone in arguments.probe_milestones or []]
    falls = partial(CosineAnnealingLR, T_max=epochs * steps)
    if milestones:
        falls = partial(MultiStepLR, milestones=milestones, gamma=0.2)
    probes, schedules = [], []
    for kind in kinds:
        probe = Probe(kind, *dims, temperature=arguments.temperature, seed=seed)
        probes.append(probe.to(accelerator.device))
        peak = arguments.probe_learning_rate or LEARNING_RATES[kind]
        schedules.append(falls(torch.optim.SGD(probe.parameters(), peak, momentum=MOMENTUM)))
    network.eval()
    seconds, started = [0.0] * len(kinds), time.perf_counter()
    for batch in (batch for epoch in range(epochs) for batch in batches.epoch(epoch)):
        features = batch["pixel_values"].flatten(1)
        if of_images:
            with torch.no_grad(), accelerator.autocast():
                output = network.protosphere(batch["pixel_values"], return_dict=True)
            features = output.pooler_output.float()
        features, labels = accelerator.gather((features, batch["labels"]))
        for i, (probe, schedule) in enumerate(zip(probes, schedules)):
            began = time.perf_counter()
            schedule.optimizer.zero_grad()
            if members is None:
                loss = F.cross_entropy(probe(features), labels)
            else:  # the sum over classes, each of which is learned by itself
                parts = F.multilabel_soft_margin_loss(probe(features), members[labels])
                loss = members.shape[1] * parts
            loss.backward()
            schedule.optimizer.step()
            schedule.step()
            seconds[i] += time.perf_counter() - began
    passing = time.perf_counter() - started - sum(seconds)
    if not of_images:
        passing = split.seconds / len(split.versions)
    return {kind: (*made, passing) for kind, *made in zip(kinds, probes, seconds)}
