"""The arguments of each job: one dataclass for flags, YAML files and Python, checked at once."""

import importlib.util
import json
from dataclasses import dataclass
from typing import Any

from ..arguments.fields import Arguments, check, check_known, decide, expanded
from ..data.arguments import CacheArguments, DataArguments, SplitArguments, StreamingArguments
from ..errors import ArgumentError, errors_in_one_line
from .groups import AdaptationArguments, ModelArguments, OptimizationArguments, RunArguments

# Of timm: with moments of other shapes than the weights, with second derivatives, for one device, of other packages.
UNFIT_OPTIMIZERS = ("*adafactor*", "kron*", "adahessian", "bnb*", "fused*")
TRACKERS = ("tensorboard", "trackio", "wandb")
OF_ALL_IMAGES = (
    "cache_images", "imbalance", "classes_per_batch", "max_train_samples", "images_per_class", "labels", "exclude",
    "nc_train_samples", "feature_views", "class_weights", "logit_adjustment",
)  # fmt: skip
OF_PIXELS = ("augmentation", "crop_scale", "blur", "rand_augment", "random_erasing", "cutmix")
# What is for some objectives only, and why not for others.
OF_AN_OBJECTIVE = {
    "learn_temperature": ": others have no temperature, or fall for ever as it goes to 0, once "
    "classes are separated, since the own class is not in their denominator",
    "margin": "", "queue_size": "",
    "logit_adjustment": ", under which a class's share is not in the scores, or cancels (give "
    "--class_weights balanced)", **dict.fromkeys(
        ("label_smoothing", "mixup", "cutmix"), ", whose loss needs one class for every image"
    ),
}  # fmt: skip
# What the best epoch can be chosen by, beside any metric of neural collapse.
BEST_METRICS = ("accuracy", "mean_class_accuracy", "neural_collapse")


@dataclass(frozen=True, kw_only=True)
class TrainArguments(
    RunArguments, OptimizationArguments, AdaptationArguments, ModelArguments, StreamingArguments,
    SplitArguments, CacheArguments, DataArguments, Arguments,
):  # fmt: skip
    """Everything that defines a training run. Invalid values raise `ArgumentError` at once.

    Example:
        >>> arguments = TrainArguments(dataset_name="beans", objective="ntce", epochs=10)
        >>> arguments.views
        1
    """

    def __post_init__(self) -> None:
        check(self)
        self._check_adaptation()
        self._check_sampling()
        self._check_run()
        self.backbone_options  # noqa: B018  (malformed JSON is an error now, not later)
        self._check_optimizer()
        self._check_objective()

    def _check_objective(self) -> None:
        from ..objectives import OBJECTIVES  # and torch

        if self.views is None:
            decide(self, views=2 if OBJECTIVES[self.objective].contrasts_views else 1)
        if OBJECTIVES[self.objective].contrasts_views and self.views < 2:
            raise ArgumentError(
                f"--objective {self.objective} contrasts views: --views must be 2 or more, not {self.views}."
            )
        for name, why in OF_AN_OBJECTIVE.items():
            known = [of for of, objective in OBJECTIVES.items() if name in objective.options]
            if getattr(self, name) and self.objective not in known:
                raise ArgumentError(
                    f"--{name} {getattr(self, name)} is for --objective {' and '.join(known)}, but "
                    f"got {self.objective}{why}: leave it out."
                )
        trains = OBJECTIVES[self.objective].prototypes in ("learned", "simplex_etf")
        fits = self.resume_from is not None or (trains and self.prototypes in (None, "simplex_etf"))
        if self.reserve_classes and not fits:
            got = f"--prototypes {self.prototypes} and --objective {self.objective}"
            raise ArgumentError(f"--reserve_classes {self.reserve_classes} is for a fixed simplex ETF, not for {got}.")
        if self.margin_type != "cosface" and not self.margin:
            raise ArgumentError(f"--margin_type {self.margin_type} is for --margin: give it too.")

    def _check_optimizer(self) -> None:
        has_momentum = self.optimizer == "sgd"
        if self.optimizer not in ("sgd", "adamw"):
            from timm.optim import get_optimizer_info, list_optimizers

            known = ["sgd", "adamw", *list_optimizers(exclude_filters=[*UNFIT_OPTIMIZERS])]
            complaint = "--optimizer takes sgd, adamw or one of timm.optim.list_optimizers(), not"
            check_known([self.optimizer], known, complaint)
            if self.learning_rate is None:
                raise ArgumentError(f"--optimizer {self.optimizer} has no usual --learning_rate: try 0.001.")
            has_momentum = get_optimizer_info(self.optimizer).has_momentum
        if self.momentum != type(self).momentum and not has_momentum:
            raise ArgumentError(f"--momentum {self.momentum} is not for --optimizer {self.optimizer}: leave it out.")
        stones = self.milestones or []
        rise = stones == sorted({*stones}) and all(0 < epoch < self.epochs for epoch in stones)
        if self.epochs and (not rise or (self.schedule == "step") != bool(stones)):
            raise ArgumentError(
                f"--milestones, for --schedule step alone, must rise between 0 and --epochs "
                f"{self.epochs}, but got {stones or None} for {self.schedule}."
            )

    def _check_adaptation(self) -> None:
        for name in ("layer_decay", "lora_rank"):
            if self.freeze_backbone and (value := getattr(self, name)) is not None:
                raise ArgumentError(f"--{name} {value} trains the backbone, --freeze_backbone does not: give one.")
        for name in OF_PIXELS if self.feature_views else ():
            value, pasted = self.given.get(name) or "none", name == "cutmix"
            if value != "none" and (self.feature_views < 3 or pasted):
                raise ArgumentError(
                    f"--{name} {value} changes images, but --feature_views {self.feature_views} "
                    "trains on features: leave it out, or give 0"
                    + ("." if pasted else ", or for augmented versions 3 or more.")
                )
        if self.lora_rank is not None and importlib.util.find_spec("peft") is None:
            raise ArgumentError(f"--lora_rank {self.lora_rank} needs peft: pip install peft.")

    def _check_sampling(self) -> None:
        classes = self.classes_per_batch
        if classes is not None and self.batch_size % classes:
            nearest = classes * max(1, self.batch_size // classes)
            raise ArgumentError(
                f"--batch_size {self.batch_size} is no multiple of --classes_per_batch {classes}: {nearest}, say."
            )
        if not self.streaming:
            return
        for name in OF_ALL_IMAGES:
            if getattr(self, name) not in (None, False, "none"):
                raise ArgumentError(f"--streaming does not know all images, which --{name} needs: leave out one.")

    def _check_run(self) -> None:
        if self.epochs and self.warmup_epochs >= self.epochs:
            if "warmup_epochs" in self.given:
                raise ArgumentError(
                    f"--warmup_epochs {self.warmup_epochs} must be less than --epochs {self.epochs}: or leave it out."
                )
            decide(self, warmup_epochs=self.epochs / 2)
        if self.resume and self.overwrite:
            raise ArgumentError("--resume keeps the earlier run and --overwrite deletes it: one.")
        if isinstance(where := self.pretrained, str):
            decide(self, pretrained={"true": True, "false": False}.get(where.lower(), expanded(where)))
        if self.partial_weights and not isinstance(self.pretrained, str):
            raise ArgumentError("--partial_weights is for --pretrained WHERE: give a file or folder, or leave it out.")
        checkpoints = {name: getattr(self, name) for name in ("resume_from", "finetune_from")}
        given = [f"--{name} {value}" for name, value in checkpoints.items() if value is not None]
        if len(given := given + ["--pretrained"] * bool(self.pretrained)) > 1:
            raise ArgumentError(f"{given[0]} and {given[1]} both give the first weights: leave out one of the two.")
        if self.eval_batch_size is None:
            decide(self, eval_batch_size=2 * self.batch_size)
        if self.best_metric not in BEST_METRICS:
            from ..metrics.neural_collapse import METRICS

            known = [*BEST_METRICS, *(metric.name for metric in METRICS)]
            complaint = f"--best_metric must be one of {', '.join(known)}, but got"
            check_known([self.best_metric], known, complaint)
        names = self.report_to
        if names is None:
            names = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        decide(self, report_to=[name for name in names if name != "none"])
        complaint = f"--report_to takes {', '.join(TRACKERS)} or none, but got"
        check_known(self.report_to, TRACKERS, complaint)
        for name in self.report_to:
            if importlib.util.find_spec(name) is None:
                raise ArgumentError(f"--report_to {name} is not installed: pip install {name}.")

    @property
    def starts_from_weights(self) -> bool:
        """Of a trained network, whichever it is."""
        return bool(self.pretrained or self.resume_from or self.finetune_from)

    @property
    def backbone_options(self) -> dict[str, Any]:
        if isinstance(self.backbone_kwargs, dict):  # from Python or YAML
            return self.backbone_kwargs
        form = "--backbone_kwargs must be JSON, such as '{\"patch_size\": 4}', but got"
        with errors_in_one_line(f"{form} {self.backbone_kwargs!r}", of=(ValueError, RecursionError)):
            options = json.loads(self.backbone_kwargs or "{}")
        if not isinstance(options, dict):
            raise ArgumentError(f"--backbone_kwargs must be a JSON object, but got {options!r}.")
        return options
