"""Linear probes on frozen features: the baselines that fixed prototypes replace.

After supervised contrastive learning the class means of the embeddings are a classifier already, in
one forward pass (arXiv 2605.20302). The usual way is to throw the projection head away and train a
linear layer on the backbone's features; the normalised way trains one on the sphere. The fair ones, here,
see every image augmented anew in every epoch. On features computed once (`logistic`) they take
seconds, and were weaker in the paper's Table 14: 72.3 against 73.9 % on CIFAR-100.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from ..data.arguments import BatchOptions
from ..data.image_cache import FeatureSplit
from ..data.loaders import TrainingBatches
from ..modeling_protosphere import ProtoSphereForImageClassification
from .logistic import Kind, Probe, fit_probe, loss_of

BATCH_SIZE, MOMENTUM = 256, 0.9
# Peak learning rates. Features of unit norm need a larger one.
LEARNING_RATES = {"linear": 0.1, "normalized_linear": 1.0}


def train_probes(
    kinds: Sequence[Kind], network: ProtoSphereForImageClassification,
    split: Dataset | FeatureSplit, accelerator: Accelerator, arguments: Any,
    dims: tuple[int, int], seed: int, members: Tensor | None = None,
    validation: FeatureSplit | None = None,
) -> dict[Kind, tuple[Probe, float, float, float | None]]:  # fmt: skip
    """Train linear layers on a network's features: one implementation for the end of training and
    for transfer. On images by SGD with momentum and without weight decay; on features by
    `fit_probe`.

    Args:
        network: frozen; on the accelerator's device.
        split: training images, which are augmented in every epoch and pass through the network once
            for all probes; or their features, computed before.
        arguments: of a job: `temperature`, `probe_epochs`, `probe_learning_rate`,
            `probe_milestones`, and those of `BatchOptions`.
        dims: F, of the features, and K.
        members: (S, K) of `memberships`, where labels are of S joined ones: one against all.
        validation: features to choose the strength of L2 by.

    Returns:
        A probe of each kind, its seconds, those of the features, and its accuracy on what was held
        out to choose by, where that was.
    """
    if isinstance(split, FeatureSplit):
        made, options = {}, {"validation": validation, "members": members, "device": accelerator.device}
        for kind in kinds:
            started = time.perf_counter()
            probe, reached = fit_probe(kind, split, dims[1], temperature=arguments.temperature, **options)
            passing = split.seconds / len(split.versions)
            made[kind] = probe, time.perf_counter() - started, passing, reached
        return made
    processes, epochs = accelerator.num_processes, arguments.probe_epochs
    size = max(1, min(BATCH_SIZE, len(split)) // processes)
    own = {"batch_size": size, "views": 1, "classes_per_batch": None, "seed": seed}
    options = dataclasses.replace(BatchOptions.of(arguments), **own)
    batches = TrainingBatches(split, network.config, options, accelerator)
    steps = len(split) // (size * processes)
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
        with torch.no_grad(), accelerator.autocast():
            output = network.protosphere(batch["pixel_values"], return_dict=True)
        features, labels = accelerator.gather((output.pooler_output.float(), batch["labels"]))
        for i, (probe, schedule) in enumerate(zip(probes, schedules)):
            began = time.perf_counter()
            schedule.optimizer.zero_grad()
            loss_of(probe(features), labels if members is None else members[labels]).backward()
            schedule.optimizer.step()
            schedule.step()
            seconds[i] += time.perf_counter() - began
    passing = time.perf_counter() - started - sum(seconds)
    return {kind: (*made, passing, None) for kind, *made in zip(kinds, probes, seconds)}
