"""The arguments of training and evaluation: one dataclass each for flags, YAML files and Python.

The `help` of a field is its documentation; the groups of `--help` are the base classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from .errors import ArgumentError

T = TypeVar("T")


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class DataArguments:
    _argument_group_name = "data"

    dataset_name: str = field(
        metadata={
            "help": "A data set on the Hub ('user/name'), a folder of Parquet files, a folder of "
            "images with one sub-folder per class, or a folder written by save_to_disk."
        }
    )
    dataset_config: str | None = _help("Configuration (subset) of the data set.")
    dataset_revision: str | None = _help("Branch, tag or commit of the data set on the Hub.")
    image_column: str | None = _help("Column of images; found by its type when not given.")
    label_column: str | None = _help("Column of labels; found by its type when not given.")
    train_split: str = _help("Split to train on, or to take class means from.", "train")
    on_bad_image: Literal["error", "skip"] = _help(
        "An image that cannot be decoded: stop and name it, or leave it out and count.", "error"
    )
    check_images: bool = _help(
        "Decode every image once before the work starts (remembered for the next time).", True
    )
    cache_images: bool | None = _help(
        "Training decodes and resizes the images once, to squares in a memory-mapped file in the "
        "cache of datasets, and augments whole batches on the device. By default where they fit "
        "on the disk; else, and with false, worker processes decode them in every epoch."
    )
    max_train_samples: int | None = _help("Use only so many training images, balanced by class.")
    max_eval_samples: int | None = _help("Use only so many images of each other split.")
    num_workers: int = _help(
        "Processes that load images, for each training process. The result does not depend on it.",
        2,
    )


@dataclass(kw_only=True)
class SplitArguments:
    _argument_group_name = "splits"

    validation_split: str | None = _help(
        "Split to validate on; by default one called validation, val, valid or dev, else "
        "--validation_fraction of the training images."
    )
    test_split: str | None = _help("Split for the final evaluation; 'test' when there is one.")
    validation_fraction: float = _help(
        "Share of the training images, drawn class by class, to validate on when there is no "
        "validation split. 0 trains on all images and validates on the training set.",
        0.1,
    )
    imbalance: Literal["exp", "step"] | None = _help(
        "Make the training images long-tailed: exp, each class a constant factor smaller than the "
        "one before; step, the second half of the classes small. Other splits stay as they are."
    )
    imbalance_factor: float = _help("Images of the smallest class over the largest's.", 0.01)


@dataclass(kw_only=True)
class ModelArguments:
    _argument_group_name = "model"

    backbone: str = _help(
        "A timm architecture, a transformers model type, or, with --pretrained, a transformers "
        "checkpoint.",
        "resnet18",
    )
    backbone_source: Literal["timm", "transformers"] = _help("Where the backbone is from.", "timm")
    backbone_kwargs: str | None = _help(
        "Options of the backbone as JSON, such as '{\"patch_size\": 4}'."
    )
    pretrained: bool = _help("Start from the backbone's pretrained weights.", False)
    small_images: bool = _help(
        "ResNets begin with a 3x3 convolution of stride 1 and no max-pooling: for 32 pixels or so.",
        False,
    )
    projection: Literal["none", "linear", "mlp"] = _help(
        "Map from the backbone's features to the sphere.", "none"
    )
    projection_dim: int = _help("Dimension of the embeddings, with a projection.", 128)
    objective: Literal["nonl", "ntce", "scl", "normface", "cross_entropy"] = _help(
        "What to train: nonl and ntce (prototypes against the batch), scl (views against views, "
        "then class means), normface (images against prototypes), or the cross_entropy baseline.",
        "nonl",
    )
    prototypes: Literal["learned", "simplex_etf", "class_means"] | None = _help(
        "learned; simplex_etf, fixed at the optimum; or class_means, recomputed after every epoch "
        "(the default for scl)."
    )
    temperature: float = _help("Cosines are divided by it, in the loss and in the scores.", 0.1)
    image_size: int | None = _help(
        "Side of the square input. By default the images' own size, rounded up to a multiple of "
        "32, at most 224."
    )
    num_channels: int | None = _help("1 or 3; by default what the images have.")


@dataclass(kw_only=True)
class OptimizationArguments:
    _argument_group_name = "optimisation"

    epochs: int = _help("Passes over the training images.", 100)
    batch_size: int = _help("Images per process and step; the negatives of NTCE and NONL.", 256)
    gradient_accumulation_steps: int = _help(
        "Batches per optimiser step. NTCE, NONL and SCL contrast across all of them, exactly, at "
        "the price of one more forward pass.",
        1,
    )
    optimizer: Literal["sgd", "adamw"] = _help("SGD with momentum, or AdamW.", "sgd")
    learning_rate: float | None = _help(
        "Peak learning rate. By default 0.1 * (images per step) / 256 for SGD, 0.001 for AdamW."
    )
    momentum: float = _help("Of SGD (Nesterov).", 0.9)
    weight_decay: float | None = _help(
        "Not applied to biases, norms and prototypes. By default 1e-4 for SGD, 0.05 for AdamW."
    )
    schedule: Literal["cosine", "constant"] = _help(
        "Of the learning rate, after warm-up.", "cosine"
    )
    warmup_epochs: float = _help("Linear warm-up from 0; fractions of an epoch are fine.", 1.0)
    max_grad_norm: float | None = _help("Clip the gradient to this norm.")
    augmentation: Literal["none", "crop", "resized_crop", "contrastive"] = _help(
        "crop: shift by an eighth; resized_crop: as for ImageNet; contrastive: with colour jitter, "
        "as for SCL.",
        "resized_crop",
    )
    horizontal_flip: bool = _help("Mirror images at random. Not for digits or text.", True)
    views: int | None = _help(
        "Augmented views of each image per step. By default 2 for scl, else 1."
    )
    sync_batchnorm: bool = _help(
        "Batch norm over the images of all processes (several CUDA devices only).", False
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = _help("Of the backbone, not the losses.", "no")
    seed: int = _help("Of weights, order, augmentation and the validation split.", 0)


@dataclass(kw_only=True)
class RunArguments:
    _argument_group_name = "run"

    output_dir: str = _help("Folder for the model, metrics, curves and checkpoints.", "outputs/run")
    overwrite: bool = _help("Replace an earlier run in --output_dir.", False)
    dry_run: bool = _help(
        "Build everything, take two steps, print the plan with memory and time, and leave nothing "
        "behind.",
        False,
    )
    resume: bool = _help("Go on from the last checkpoint in --output_dir.", False)
    eval_batch_size: int | None = _help("By default twice --batch_size.")
    evaluate_every: int = _help("Epochs between evaluations on the validation split.", 1)
    nc_every: int = _help(
        "Epochs between neural-collapse metrics, at an evaluation; 0 for the end only.", 1
    )
    nc_every_steps: int = _help("Measure after every so many steps as well; 0 for never.", 0)
    nc_train_samples: int | None = _help(
        "Measure on so many training images too, a fixed sample balanced by class; 0 for none. By "
        "default 1 %% of them, but at least 10 of each class and at most 10,000."
    )
    nc_target: float = _help(
        "Report when each figure first attains this percentage of its optimum.", 95.0
    )
    checkpoint_every: int = _help("Epochs between checkpoints to resume from.", 1)
    keep_checkpoints: int = _help("How many of them to keep, the newest.", 1)
    linear_probe: bool = _help(
        "At the end, also train a linear layer on the frozen backbone's features, the usual way "
        "after SCL: accuracy and time beside those of the class means.",
        False,
    )
    normalized_linear_probe: bool = _help(
        "The same on the sphere: features and weights of unit norm.", False
    )
    probe_epochs: int = _help("Passes over the features for each probe.", 90)
    tensorboard: bool | None = _help("Log to tensorboard; by default when it is installed.")


@dataclass(kw_only=True)
class TrainArguments(
    RunArguments, OptimizationArguments, ModelArguments, SplitArguments, DataArguments
):
    """Everything that defines a training run. Invalid values raise `ArgumentError` at once.

    Example:
        >>> arguments = TrainArguments(dataset_name="beans", objective="ntce", epochs=10)
        >>> arguments.views
        1
    """

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_positive(self, "temperature", "learning_rate", "max_grad_norm")
        _check_counts(
            self, "epochs", "batch_size", "eval_batch_size", "evaluate_every", "checkpoint_every",
            "image_size", "projection_dim", "views", "gradient_accumulation_steps",
            "max_train_samples", "max_eval_samples", "probe_epochs",
            "keep_checkpoints",
        )  # fmt: skip
        _check_counts(
            self, "nc_every", "nc_every_steps", "nc_train_samples", "num_workers", at_least=0
        )
        _check_target(self)
        if not 0 <= self.validation_fraction < 1:
            raise ArgumentError(
                f"--validation_fraction must be in [0, 1), but got {self.validation_fraction}."
            )
        if not 0 < self.imbalance_factor <= 1:
            raise ArgumentError(
                f"--imbalance_factor must be in (0, 1], but got {self.imbalance_factor}: 0.01 "
                "leaves one image of the smallest class for every hundred of the largest."
            )
        if self.warmup_epochs < 0 or self.warmup_epochs >= self.epochs:
            self.warmup_epochs = max(0.0, min(self.warmup_epochs, self.epochs / 2))
        if self.resume and self.overwrite:
            raise ArgumentError("--resume keeps the earlier run and --overwrite deletes it: one.")
        if self.views is None:
            self.views = 2 if self.objective == "scl" else 1
        if self.objective == "scl" and self.views < 2:
            raise ArgumentError(
                f"--objective scl contrasts views of the same image: --views must be 2 or more, "
                f"but got {self.views}."
            )
        if self.eval_batch_size is None:
            self.eval_batch_size = 2 * self.batch_size
        self.backbone_options  # noqa: B018  (malformed JSON is an error now, not later)

    @property
    def backbone_options(self) -> dict[str, Any]:
        if isinstance(self.backbone_kwargs, dict):  # from Python or YAML
            return self.backbone_kwargs
        try:
            options = json.loads(self.backbone_kwargs or "{}")
        except json.JSONDecodeError as error:
            raise ArgumentError(
                f"--backbone_kwargs must be JSON, such as '{{\"patch_size\": 4}}', but got "
                f"{self.backbone_kwargs!r} ({error})."
            ) from error
        if not isinstance(options, dict):
            raise ArgumentError(f"--backbone_kwargs must be a JSON object, but got {options!r}.")
        return options


@dataclass(kw_only=True)
class _EvaluationArguments:
    _argument_group_name = "evaluation"

    model: str = field(metadata={"help": "Folder or Hub id of a ProtoSphere checkpoint."})
    split: str = _help("Split to evaluate on.", "test")
    class_means: bool = _help(
        "Also classify by the class means of --train_split: one pass over it.", True
    )
    batch_size: int = _help("Images per process and step.", 256)
    output: str | None = _help("Write the report as JSON here.")
    pictures: str | None = _help(
        "Draw the sphere, the cosines between classes and the margins into this folder."
    )
    json: bool = _help("Print the report as JSON instead of a table.", False)


@dataclass(kw_only=True)
class EvaluateArguments(_EvaluationArguments, DataArguments):
    """What to evaluate, on what. Invalid values raise `ArgumentError` at once."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_counts(self, "batch_size", "max_train_samples", "max_eval_samples")
        _check_counts(self, "num_workers", at_least=0)


@dataclass(kw_only=True)
class PlotArguments:
    """What to draw again, from finished files. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "plot"

    runs: list[str] = field(
        metadata={
            "help": "Folders of runs. Of one run every picture; of several, neural collapse over "
            "their training in one picture."
        }
    )
    output_dir: str | None = _help("Folder for the pictures; by default the first run's.")
    format: Literal["png", "svg", "pdf"] = _help("Of the pictures.", "png")
    classes: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the classes on the sphere, at most ten; by default those nearest to "
            "another."
        },
    )
    nc_target: float = _help(
        "Mark where each figure first attains this percentage of its optimum.", 95.0
    )

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_target(self)


def parse_arguments(cls: type[T], argv: Sequence[str] | None, prog: str, description: str) -> T:
    """Flags over the YAML file given by `--config` over defaults.

    Raises:
        ArgumentError: an unreadable file, an unknown or malformed argument.
        SystemExit: as argparse does, for `--help` and for flags it cannot read.
    """
    groups = [base for base in reversed(cls.__mro__) if "_argument_group_name" in vars(base)]
    parser = HfArgumentParser(groups, prog=prog, description=description)
    parser.add_argument("--config", help="YAML file with any of these arguments; flags win.")
    # Read first: what the file gives is not required any more.
    config_parser = ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config")
    config = config_parser.parse_known_args(argv)[0].config
    values = read_yaml(config, cls) if config else {}
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    parser.set_defaults(**values)
    namespace = vars(parser.parse_args(argv))
    del namespace["config"]
    return cls(**namespace)


def read_yaml(path: str, cls: type, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments from a YAML file, checked against the fields of `cls`; over those of the file
    beside it that it names as its `base`, if it does."""
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ArgumentError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ArgumentError(f"--config {path} must hold 'name: value' lines, but got {values!r}.")
    base = values.pop("base", None)
    if path in above:
        raise ArgumentError(f"--config {path} is its own base: {' → '.join((*above, path))}.")
    beside = str(Path(path).parent / str(base))
    inherited = read_yaml(beside, cls, (*above, path)) if base else {}
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ArgumentError(f"--config {path} has an unknown argument {name!r}.{hint}")
    return inherited | values


def write_yaml(arguments: Any, path: Path) -> None:
    path.write_text(yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


def _check_choices(arguments: Any) -> None:
    """Literal fields, which argparse checks for flags but not for YAML or Python."""
    for name, hint in get_type_hints(type(arguments)).items():
        options = [hint, *get_args(hint)]
        choices = [value for option in options if _is_literal(option) for value in get_args(option)]
        value = getattr(arguments, name)
        if choices and value not in choices and not (value is None and type(None) in options):
            raise ArgumentError(
                f"--{name} must be one of {', '.join(map(str, choices))}, but got {value!r}."
            )


def _is_literal(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is Literal


def _check_positive(arguments: Any, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is None:
            continue
        if not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
            # YAML 1.1 reads 1e-4 as a string.
            hint = " (in YAML write 1.0e-4, not 1e-4)" if isinstance(value, str) else ""
            raise ArgumentError(f"--{name} must be positive and finite, but got {value!r}{hint}.")


def _check_target(arguments: Any) -> None:
    if not 0 < arguments.nc_target <= 100:
        raise ArgumentError(f"--nc_target must be in (0, 100], but got {arguments.nc_target}.")


def _check_counts(arguments: Any, *names: str, at_least: int = 1) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and (not isinstance(value, int) or value < at_least):
            raise ArgumentError(
                f"--{name} must be a whole number of at least {at_least}, but got {value!r}."
            )
