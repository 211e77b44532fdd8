"""From arguments to the parts of a run: accelerator, data, model."""

import copy
import dataclasses
import os
from contextlib import ExitStack
from pathlib import Path
from socket import gethostname
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import nn

from ..backbones import timm_name
from ..configuration_protosphere import ProtoSphereConfig
from ..data.arguments import BatchOptions, SplitArguments
from ..data.dataset import ImageDataset, load_data
from ..data.image_cache import FeatureSplit
from ..data.labels import some
from ..data.subsets import few_shot, long_tailed
from ..errors import ArgumentError, at_no_cost, errors_in_one_line
from ..evaluation.report import flat_record
from ..inference.features import on_features, with_features
from ..metrics.neural_collapse import undefined_metrics
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..runs.checkpoints import keep_unwrapped
from ..runs.folders import run_folder
from ..runs.loading import load_classifier, load_config
from ..runs.processes import check_processes, on_main_process
from .adaptation import HEAD, NETWORK, freeze, with_new_classes
from .arguments import TrainArguments

SAMPLE = 64  # images of each split whose features a dry run computes


def resolve(arguments: TrainArguments) -> tuple[TrainArguments, ProtoSphereConfig | None]:
    """The arguments of a run with all that is not theirs to decide; nothing changes them later.

    The checkpoint of `--resume_from` or `--finetune_from`, whose configuration comes beside them, decides the network,
    and the first also the objective and, in their order, the classes. A dry run keeps nothing, and decodes no more
    images than its two steps take."""
    if isinstance(arguments.pretrained, str) and not Path(arguments.pretrained).exists():
        raise ArgumentError(f"--pretrained {arguments.pretrained}: there is no such file or folder.")
    decided: dict[str, Any] = {}
    flag = "--resume_from" if arguments.resume_from is not None else "--finetune_from"
    checkpoint = arguments.resume_from or arguments.finetune_from
    config = None if checkpoint is None else load_config(checkpoint, flag)
    if config is not None:
        of_checkpoint = NETWORK if arguments.resume_from is None else NETWORK | HEAD
        for name, argument in of_checkpoint.items():
            value, asked = getattr(config, name), getattr(arguments, argument)
            option = name if name == "backbone_kwargs" else argument
            if name == "image_size" and arguments.resume_from is None and asked is not None:
                value = asked  # position embeddings are resampled
            if name == "backbone" and arguments.backbone_source == "timm":
                asked = timm_name(asked)
            if option in arguments.given and asked not in (value, "auto"):
                why = f"does not fit {flag} {checkpoint}, which has {value}"
                raise ArgumentError(f"--{option} {asked} {why}: leave it out.")
            decided[option] = value
    # That of `accelerate launch` comes by the environment.
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", arguments.mixed_precision):
        if given := arguments.given.get("mixed_precision"):
            raise ArgumentError(f"--mixed_precision {given}, but `accelerate launch` has {launched}: leave out one.")
        decided["mixed_precision"] = launched
    if arguments.dry_run:
        no = dict.fromkeys(("cache_images", "check_images", "resume", "overwrite"), False)
        decided |= no | {"report_to": ["none"]}
    return (arguments.but(**decided) if decided else arguments), config


def build_model(arguments: TrainArguments, images: ImageDataset) -> ProtoSphereForImageClassification:
    """The model that the arguments and the data describe, with gradients for what they train."""
    if arguments.resume_from is not None:
        model, _ = load_classifier(arguments.resume_from, "--resume_from")
        model.forget_calibration()
        model.config.class_margins = None
    else:
        model = _model_of(arguments, images)
    if (balanced := arguments.class_weights == "balanced") or arguments.logit_adjustment:
        counts, adjustment = images.class_counts("train"), arguments.logit_adjustment
        with errors_in_one_line("--logit_adjustment cannot be"):
            model.set_class_counts(counts, balanced=balanced, logit_adjustment=adjustment)
    freeze(model, arguments)
    return model


def _model_of(arguments: TrainArguments, images: ImageDataset) -> ProtoSphereForImageClassification:
    asked = {name: getattr(arguments, of) for name, of in (NETWORK | HEAD).items()}
    asked["num_channels"] = arguments.num_channels or images.num_channels
    if not arguments.pretrained:
        asked["image_size"] = arguments.image_size or images.suggested_image_size()
    config = {name: value for name, value in asked.items() if value is not None}
    config["id2label"] = dict(enumerate(images.label_names))
    with errors_in_one_line("the model cannot be built"):
        if arguments.finetune_from is not None:
            source, _ = load_classifier(arguments.finetune_from, "--finetune_from")
            head = {name: asked[name] for name in HEAD}
            size = arguments.image_size or source.config.image_size
            return with_new_classes(source, images.label_names, **head, image_size=size)
        if arguments.pretrained:
            config |= {"pretrained": arguments.pretrained, "partial_weights": arguments.partial_weights}
            return ProtoSphereForImageClassification.from_backbone(config.pop("backbone"), **config)
        return ProtoSphereForImageClassification(ProtoSphereConfig(**config))


def load_training_data(arguments: SplitArguments, *, hold_out: bool = True, **more: Any) -> ImageDataset:
    """All splits, the training split long-tailed if that was asked for; with `hold_out` a part of
    it is the validation split where there is no other. `more` goes to `load_image_dataset`."""
    images = load_data(
        arguments, seed=arguments.seed, validation_split=arguments.validation_split, test_split=arguments.test_split,
        validation_fraction=arguments.validation_fraction if hold_out else 0.0, **more,
    )  # fmt: skip
    if arguments.imbalance is None:
        return images
    tail = arguments.imbalance, arguments.imbalance_factor, arguments.seed
    return images.with_train(long_tailed(images.splits["train"], images.num_labels, *tail))


def training_images(
    arguments: TrainArguments, label_names: list[str] | None = None, loaded: ImageDataset | None = None
) -> ImageDataset:
    """The images of a run, loaded where they are not yet: of few shots, those that it draws."""
    images = loaded or load_training_data(
        arguments, label_names=label_names, streaming=arguments.streaming, num_train_images=arguments.num_train_images
    )
    if arguments.images_per_class is None:
        return images
    train, shots = images.splits["train"], arguments.images_per_class
    return images.with_train(few_shot(train, images.num_labels, shots, arguments.seed))


def features_and_head(
    arguments: TrainArguments, images: ImageDataset, model: ProtoSphereForImageClassification, accelerator: Accelerator
) -> tuple[ImageDataset, ProtoSphereForImageClassification]:
    """What is trained on, and what is trained: images and model; or features, made or given, and what is behind."""
    if isinstance(images.splits["train"], FeatureSplit):
        if not arguments.freeze_backbone:
            raise ArgumentError("features are those of a frozen backbone: give --freeze_backbone.")
    elif not arguments.feature_views:
        return images, model
    else:
        made_by = model.to(accelerator.device), accelerator, BatchOptions.of(arguments)
        sample = SAMPLE if arguments.dry_run else None
        images = with_features(images, *made_by, versions=arguments.feature_views, sample=sample)
    return images, on_features(model)


def build_accelerator(arguments: TrainArguments) -> Accelerator:
    project = ProjectConfiguration(arguments.output_dir, f"{arguments.output_dir}/tensorboard")
    precision, trackers = arguments.mixed_precision, arguments.report_to or None
    # No second copy of the gradients. Buffers are equal, or (batch norm's) the main process's when they are used.
    lean = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    accelerator = Accelerator(
        mixed_precision=precision, log_with=trackers, project_config=project, kwargs_handlers=[lean]
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


def count_steps(arguments: TrainArguments, images: ImageDataset, accelerator: Accelerator) -> int:
    """Optimiser steps of an epoch: whole ones only."""
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
        raise ArgumentError(f"--classes_per_batch {classes} is more than the {images.num_labels} classes there are.")
    return steps


def refuse_what_classes_lack(arguments: TrainArguments, images: ImageDataset, split: str) -> None:
    """Of some classes, where --best_metric is not defined without them."""
    if split == "train" and images.is_streamed:
        return
    metric = {"neural_collapse": "overall"}.get(arguments.best_metric, arguments.best_metric)
    if metric in undefined_metrics(images.class_counts(split), images.num_labels):
        missing = images.classes_without_images(split)
        raise ArgumentError(
            f"--best_metric {arguments.best_metric} is not defined on the {split} images, which "
            f"have {f'none of {some(missing)}' if missing else 'one of each class'}: choose "
            "accuracy, add images, or raise --max_eval_samples."
        )


def refuse_single_values(arguments: TrainArguments, model: nn.Module) -> None:
    """Of batches of one image, of which batch norm would see one value per channel."""
    if arguments.batch_size * arguments.views > 1 or arguments.freeze_backbone:
        return
    config, then = model.config, "Give 2 or more, or a backbone without batch norm."
    image = torch.zeros(1, config.num_channels, config.image_size, config.image_size)
    what = f"--batch_size 1 cannot train {config.backbone}"
    # Whether an image comes to one point in it, only the network knows.
    with torch.no_grad(), errors_in_one_line(what, then, of=ValueError):
        copy.deepcopy(model).train()(image)


def profits_from_channels_last(model: nn.Module, accelerator: Accelerator) -> bool:
    """Whether windows of convolutions overlap, unlike a ViT's patches; where weights may be so."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    overlap = any(k > s for layer in layers for k, s in zip(layer.kernel_size, layer.stride))
    sharded = accelerator.is_fsdp2 or accelerator.state.deepspeed_plugin
    return overlap and not sharded and accelerator.device.type in ("cpu", "cuda")


def with_synchronized_batchnorm(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Batch norm over the images of all processes, where there are several."""
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type != "cuda":
        raise ArgumentError(f"--sync_batchnorm works on CUDA only, not on {accelerator.device.type}: leave it out.")
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def hold_output_dir(arguments: TrainArguments, model: nn.Module, accelerator: Accelerator, held: ExitStack) -> None:
    """Keep the run's folder, with as much room as it needs, until `held` is closed."""
    path = Path(arguments.output_dir)
    weights = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    # Checkpoints, one more meanwhile, hold weights and at most twice their size of an optimiser; two models are there.
    needed = (3 * (arguments.keep_checkpoints + 1) + 2) * weights + 2**24
    folder = run_folder(path, resume=arguments.resume, overwrite=arguments.overwrite, bytes_needed=needed)
    on_main_process(accelerator, lambda: held.enter_context(folder))
    if not path.is_dir():
        raise ArgumentError(f"--output_dir {arguments.output_dir} must be shared: {gethostname()} does not see it.")


def start_trackers(accelerator: Accelerator, arguments: TrainArguments, run_id: str) -> None:
    """Start what `--report_to` names; a resumed run, of the same `run_id`, goes on where it was."""
    name = arguments.run_name or Path(arguments.output_dir).resolve().name
    given = dataclasses.asdict(arguments).items()
    config = {key: value if isinstance(value, int | float | str) else str(value) for key, value in given}
    wandb = {"name": name, "id": run_id, "resume": "allow", "dir": arguments.output_dir}
    options = {"wandb": wandb, "trackio": {"name": name, "resume": "allow" if arguments.resume else "never"}}
    what = f"--report_to {' '.join(arguments.report_to)} cannot start"
    with errors_in_one_line(what, "Leave it out, or give --report_to none."):
        accelerator.init_trackers(arguments.project, config=config, init_kwargs=options)


def tell_trackers(accelerator: Accelerator, record: dict[str, Any]) -> None:
    """A record, to each tracker; one that fails is told nothing any more."""
    flat, working = flat_record(record), []
    step = flat.pop("step")  # they have it beside the values
    for tracker in accelerator.trackers:
        with at_no_cost(f"--report_to {tracker.name}, which is left out from now on,"):
            tracker.log(flat, step=step)
            working.append(tracker)
    accelerator.trackers = working
