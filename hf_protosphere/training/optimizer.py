"""The optimiser, by name one of torch's or timm's, and its learning rate from step to step."""

import math
from functools import partial

import torch
from timm.optim import create_optimizer_v2
from torch.optim.lr_scheduler import LambdaLR

from ..modeling_protosphere import ProtoSphereForImageClassification
from ..objectives import OBJECTIVES
from .adaptation import parameter_groups
from .arguments import TrainArguments


def usual_learning_rate(optimizer: str, images_per_step: int, prototypes: bool) -> float:
    """By default; those of the other optimisers have no rule that holds for most.

    Cosines bound the gradients, and prototypes trained from scratch stand and like twelve times
    the rate of a linear head, which that brings to NaN on some features (scripts/study)."""
    of_256 = 1.2 if prototypes else 0.1
    return min(of_256 * images_per_step / 256, 1.0) if optimizer == "sgd" else 1e-3


def build_optimizer(
    arguments: TrainArguments, model: ProtoSphereForImageClassification, *,
    images_per_step: int, steps_per_epoch: int, fused: bool = True,
) -> tuple[torch.optim.Optimizer, LambdaLR]:  # fmt: skip
    """Optimiser and learning-rate schedule, stepped once per optimiser step."""
    name, momentum = arguments.optimizer, arguments.momentum
    usual = {"sgd": 5e-4, "adamw": 0.05}.get(name, 0.0)
    weight_decay = usual if arguments.weight_decay is None else arguments.weight_decay
    views = OBJECTIVES[model.config.objective].contrasts_views  # not tried at the higher rate
    prototypes = model.config.has_prototypes and not (views or arguments.starts_from_weights)
    peak = arguments.learning_rate or usual_learning_rate(name, images_per_step, prototypes)
    groups = parameter_groups(
        model, peak, weight_decay, arguments.layer_decay, decay_all=arguments.decay_all,
        # Muon makes the rows of a matrix orthogonal, which those of a head need not be.
        fallback=("head.*", "classifier.*") if "muon" in name else (),
    )  # fmt: skip
    if not (groups or arguments.epochs):
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]  # nothing is trained, and torch wants something
    options = {"fused": fused} if name in ("sgd", "adamw") else {}
    options |= {"nesterov": arguments.nesterov and momentum > 0} if name == "sgd" else {}
    optimizer = create_optimizer_v2(groups, name, lr=peak, momentum=momentum, **options)
    return optimizer, LambdaLR(optimizer, partial(rate_at, arguments, steps_per_epoch))


def rate_at(arguments: TrainArguments, steps_per_epoch: int, step: int) -> float:
    """Learning rate after so many steps, over its peak: of the step alone, so that resuming needs nothing else."""
    warmup = round(arguments.warmup_epochs * steps_per_epoch)
    if step < warmup:
        start = arguments.warmup_lr_rate
        return start + (1 - start) * step / warmup
    if arguments.schedule == "step":
        passed = sum(step >= round(epoch * steps_per_epoch) for epoch in arguments.milestones)
        return arguments.gamma**passed
    if arguments.schedule == "constant":
        return 1.0
    share = (step - warmup) / max(1, arguments.epochs * steps_per_epoch - warmup)
    floor = arguments.min_lr_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
