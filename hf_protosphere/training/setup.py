"""From arguments to the parts of a run: accelerator, data, model, optimiser."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from transformers import get_scheduler

from ..configuration_protosphere import ProtoSphereConfig
from ..data.dataset import ImageDataset, load_data
from ..data.subsets import few_shot, long_tailed
from ..errors import ArgumentError
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..runs.checkpoints import keep_unwrapped
from ..runs.loading import load_classifier
from ..runs.processes import check_processes
from .adaptation import freeze, parameter_groups, start_from_checkpoint
from .arguments import TrainArguments

# Arguments that a checkpoint decides, and what they are called in its configuration.
OF_A_CHECKPOINT = {
    "backbone": "backbone", "backbone_source": "backbone_source", "small_images": "small_images",
    "backbone_options": "backbone_kwargs", "projection": "projection",
    "projection_dim": "projection_dim", "objective": "objective", "prototypes": "prototypes",
    "temperature": "softmax_temperature", "image_size": "image_size",
    "num_channels": "num_channels",
}  # fmt: skip
# Those of them that may be others for other classes.
OF_THE_LOSS = ("objective", "prototypes", "temperature")


def with_checkpoint(arguments: TrainArguments) -> tuple[TrainArguments, list[str] | None]:
    """The arguments with what the checkpoint of `--resume_from` or `--finetune_from` decides: its
    network; and of `--resume_from` its objective, and its classes in order.

    Raises:
        ArgumentError: there is no such checkpoint, or an argument says something else than it.
    """
    flag = "--resume_from" if arguments.resume_from is not None else "--finetune_from"
    checkpoint = arguments.resume_from or arguments.finetune_from
    if checkpoint is None:
        return arguments, None
    config = load_classifier(checkpoint, flag)[0].config
    ours = {name: getattr(config, theirs) for name, theirs in OF_A_CHECKPOINT.items()}
    if arguments.resume_from is None:
        ours = {name: value for name, value in ours.items() if name not in OF_THE_LOSS}
    defaults = TrainArguments(dataset_name="", report_to="none")
    for name, value in ours.items():
        asked = getattr(arguments, name)
        if asked not in (getattr(defaults, name), value):
            raise ArgumentError(
                f"--{name.replace('options', 'kwargs')} {asked} does not fit {flag} {checkpoint}, "
                f"which has {value}: leave it out."
            )
    ours["backbone_kwargs"] = ours.pop("backbone_options")
    if arguments.resume_from is None:
        return dataclasses.replace(arguments, **ours), None
    views = arguments.views if arguments.views > 1 else None
    names = config.class_names
    return dataclasses.replace(arguments, **ours, views=views), names


def build_model(
    arguments: TrainArguments, images: ImageDataset
) -> ProtoSphereForImageClassification:
    """The model that the arguments and the data describe, with gradients for what they train."""
    model = _build_model(arguments, images)
    freeze(model, arguments)
    return model


def _build_model(
    arguments: TrainArguments, images: ImageDataset
) -> ProtoSphereForImageClassification:
    if arguments.resume_from is not None:
        model = load_classifier(arguments.resume_from, "--resume_from")[0]
        model.config.forget_calibration()
        return model
    channels = arguments.num_channels or images.num_channels
    config: dict[str, Any] = {
        "backbone_source": arguments.backbone_source,
        "backbone_kwargs": arguments.backbone_options,
        "small_images": arguments.small_images,
        "projection": arguments.projection,
        "projection_dim": arguments.projection_dim,
        "objective": arguments.objective,
        "prototypes": arguments.prototypes,
        "softmax_temperature": arguments.temperature,
        "num_channels": channels,
        "id2label": images.id2label,
    }
    if arguments.image_size is not None or not arguments.pretrained:
        config["image_size"] = arguments.image_size or images.suggested_image_size()
    try:
        if arguments.finetune_from is not None:
            return start_from_checkpoint(arguments, images.label_names)
        if arguments.pretrained:
            return ProtoSphereForImageClassification.from_backbone(arguments.backbone, **config)
        config = ProtoSphereConfig(backbone=arguments.backbone, **config)
        return ProtoSphereForImageClassification(config)
    except (OSError, ValueError, TypeError) as error:
        # OSError: weights that cannot be downloaded. TypeError: an option that the backbone does
        # not know.
        raise ArgumentError(f"the model cannot be built: {error}") from error


def load_training_data(
    arguments: TrainArguments, label_names: list[str] | None = None
) -> ImageDataset:
    """All splits, the training split long-tailed or with few images if that was asked for."""
    images = load_data(
        arguments,
        label_names=label_names,
        validation_split=arguments.validation_split,
        test_split=arguments.test_split,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.seed,
        streaming=arguments.streaming,
        num_train_images=arguments.num_train_images,
    )
    if arguments.imbalance:
        images = images.with_train(
            long_tailed(
                images.splits["train"], images.num_labels, arguments.imbalance,
                arguments.imbalance_factor, arguments.seed,
            )
        )  # fmt: skip
    if arguments.images_per_class is not None:
        shots = few_shot(
            images.splits["train"], images.num_labels, arguments.images_per_class, arguments.seed
        )
        images = images.with_train(shots)
    return images


def build_accelerator(arguments: TrainArguments) -> Accelerator:
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with=arguments.report_to or None,
        project_config=ProjectConfiguration(
            arguments.output_dir, f"{arguments.output_dir}/tensorboard"
        ),
    )
    check_processes(accelerator, accumulates=arguments.gradient_accumulation_steps > 1)
    if deepspeed := accelerator.state.deepspeed_plugin:
        deepspeed.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": arguments.batch_size,
            "train_batch_size": arguments.batch_size * accelerator.num_processes,
            "gradient_clipping": arguments.max_grad_norm or 0.0,
        }
    keep_unwrapped(accelerator)
    return accelerator


def build_optimizer(
    arguments: TrainArguments,
    model: ProtoSphereForImageClassification,
    *,
    images_per_step: int,
    steps_per_epoch: int,
    fused: bool = True,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimiser and learning-rate schedule, stepped once per optimiser step.

    Args:
        fused: one kernel for all parameters.
    """
    sgd = arguments.optimizer == "sgd"
    weight_decay = arguments.weight_decay
    if weight_decay is None:
        weight_decay = 1e-4 if sgd else 0.05
    learning_rate = arguments.learning_rate or (0.1 * images_per_step / 256 if sgd else 1e-3)
    groups = parameter_groups(model, learning_rate, weight_decay, arguments.layer_decay)
    if sgd:
        momentum = arguments.momentum
        optimizer = torch.optim.SGD(
            groups, learning_rate, momentum=momentum, nesterov=momentum > 0, fused=fused
        )
    else:
        optimizer = torch.optim.AdamW(groups, learning_rate, fused=fused)
    scheduler = get_scheduler(
        "cosine" if arguments.schedule == "cosine" else "constant_with_warmup",
        optimizer,
        num_warmup_steps=round(arguments.warmup_epochs * steps_per_epoch),
        num_training_steps=arguments.epochs * steps_per_epoch,
    )
    return optimizer, scheduler


def count_steps(arguments: TrainArguments, images: ImageDataset, accelerator: Accelerator) -> int:
    """Optimiser steps of an epoch: whole ones only.

    Raises:
        ArgumentError: there is none, or a batch needs more classes than there are.
    """
    times = accelerator.num_processes * arguments.gradient_accumulation_steps
    steps = images.num_train // (arguments.batch_size * times)
    if steps == 0:
        each = f", {times} of them per step," if times > 1 else ""
        raise ArgumentError(
            f"--batch_size {arguments.batch_size}{each} is larger than the training set "
            f"of {images.num_train} images: use at most {images.num_train // times}."
        )
    classes = arguments.classes_per_batch
    if classes is not None and classes > images.num_labels:
        raise ArgumentError(
            f"--classes_per_batch {classes} is more than the {images.num_labels} classes there are."
        )
    return steps


def with_synchronized_batchnorm(
    model: ProtoSphereForImageClassification, accelerator: Accelerator
) -> ProtoSphereForImageClassification:
    """Batch norm over the images of all processes, where there are several.

    Raises:
        ArgumentError: they do not run on CUDA devices.
    """
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type != "cuda":
        raise ArgumentError(
            "--sync_batchnorm works on CUDA devices only, but the processes run on "
            f"{accelerator.device.type}: leave it out."
        )
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
