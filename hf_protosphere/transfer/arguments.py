"""The arguments of transfer: what to start from, how to adapt it, with how many images."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..arguments import fields
from ..arguments.fields import Arguments, Beside, Count, PathName, check, flag, required
from ..arguments.parsing import field_names
from ..data.arguments import CacheArguments, DataArguments, SplitArguments
from ..errors import ArgumentError
from ..training.arguments import OF_PIXELS, TrainArguments
from ..training.groups import ObjectiveName, OptimizationArguments, RunArguments

TRAINED_MODES = ("full", "head", "layerwise", "lora")
FROZEN_MODES = ("linear_probe", "normalized_linear_probe", "knn", "prototypes")
MODES = (*TRAINED_MODES, *FROZEN_MODES)
LADDER = ("prototypes", "linear_probe", "head", "layerwise")  # of auto, each rung dearer than the one before
TRAINING = field_names(TrainArguments)
OF_ONE_MODE = {"decay": "layerwise", "rank": "lora", "feature_views": "head", "neighbors": "knn"}
# Of a head on a backbone without one: what comes as near to neural collapse on features as a whole
# network does, and learns them by heart the least (scripts/study/frozen_features).
HEAD_PROJECTION = {
    "projection": "mlp", "projection_hidden_dim": 256, "projection_batch_norm": True, "projection_dropout": 0.3,
}  # fmt: skip
# What few shots decide; None, too, is not to be given.
OF_FEW_SHOTS = {
    "validation_fraction": 0.0, "nc_every": 0, "nc_train_samples": 0, "pictures": False,
    "evaluate_every": None, "checkpoint_every": None, "early_stopping_patience": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TransferArguments:
    model: PathName = required(
        "What to start from: a ProtoSphere checkpoint, a transformers checkpoint (each a folder or "
        "an id on the Hub), a timm model, or a folder saved by timm."
    )
    pretrained: PathName | None = flag("Your weights for it, a backbone: a .safetensors or .pth file, or a folder.")
    partial_weights: bool = flag("Of --pretrained WHERE take what fits, and leave out the rest.", False)
    mode: Literal[("auto", *MODES)] = flag(
        "auto: prototypes, linear_probe, head, then layerwise from the best of these; kept is what is best on "
        "validation images (--time_budget). full: train everything; head: projection and head, in seconds, on "
        "features of the backbone, which stays as it is (--feature_views); layerwise: lower layers learn slower "
        "(--decay); lora: adapters (--rank); linear_probe, normalized_linear_probe: a linear layer on the "
        "backbone's features; knn: the nearest training images (--neighbors); prototypes: the class means, one "
        "pass and no training.",
        "auto",
    )
    time_budget: str = flag(
        "Of auto: as many epochs of layerwise as fit, beside what went before; such as 90s, 30m or 2h.", "30m"
    )
    compare: str | None = flag(
        "Several modes, comma-separated, or all: one table of accuracy, time, trained parameters, neural collapse."
    )
    shots: Annotated[str, int] | None = flag("Few-shot: training images of each class, such as 1,2,5,10.")
    trials: Annotated[Count, Beside("shots")] = flag("Draws for each number of shots.", 10)
    several_labels: bool = flag(
        "The label column lists the classes of each image: a linear classifier of each class "
        "against the others, measured by mean average precision. With linear_probe only.",
        False,
    )
    objective: ObjectiveName | None = flag("By default the checkpoint's, else ntce.")
    temperature: fields.Positive | None = flag(
        "Divides cosines. By default the checkpoint's, for as many classes and the same objective; else as of train."
    )
    image_size: Count | None = flag(
        "Side of the square input, by default the model's; to another, position embeddings are resampled."
    )
    decay: Annotated[float, "(0, 1]"] = flag("Of layerwise: learning rate by layer.", 0.75)
    rank: Count = flag("Of the adapters of lora.", 8)
    feature_views: fields.CountOrZero | None = flag(
        "Of head, as of train: versions of each training image whose features are computed; 0: "
        "images pass through the backbone, slow. By default 2 with --horizontal_flip, else 1."
    )
    probe_augmentation: bool = flag(
        "Of probes: on features of eight versions of each training image, six of them augmented, a point or two "
        "stronger; by default as many as head has beside them, else the plain image alone.",
        False,
    )
    neighbors: Count = flag("Training images that vote, weighted by nearness, with knn.", 20)
    min_steps: Annotated[Count, Beside("shots")] = flag("With --shots: epochs for so many optimiser steps.", 100)


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(
    RunArguments, OptimizationArguments, SplitArguments, CacheArguments, DataArguments, TransferArguments, Arguments
):
    """A transfer, or several to compare. Invalid values raise `ArgumentError` at once.

    Example:
        >>> arguments = FinetuneArguments(model="user/name", dataset_name="beans", shots="1,5")
        >>> arguments.modes, arguments.shot_counts
        (['auto'], [1, 5])
    """

    epochs: Count = flag("Passes. By default 20 or more, for 100 steps; of head 40 or more, for 750 steps.", 20)
    batch_size: Count = flag("Images per process and step. By default 64 where all layers are trained, else 256.", 256)
    learning_rate: fields.Positive | None = flag("Peak. By default 0.01, of head and lora 0.1; for AdamW a hundredth.")
    output_dir: PathName = "outputs/finetune"

    def __post_init__(self) -> None:
        check(self)
        if self.shots is not None and self.images_per_class is not None:
            raise ArgumentError("--shots and --images_per_class say the same: give one of them.")
        self.shot_counts  # noqa: B018  (no number is an error now, not later)
        self._check_modes()
        # Every check of training. The objective may be the checkpoint's: only its linear head takes
        # labels that are mixed, and not all a bias.
        of_its_own = self.mixup or self.cutmix or self.label_smoothing or self.logit_adjustment
        mixed = self.objective is None and of_its_own
        for mode in self.modes:
            last = self.seed + (self.trials - 1 if self.shots else 0)
            self.training(mode, seed=last, **({"objective": "cross_entropy"} if mixed else {}))

    def _check_modes(self) -> None:
        """That nothing was given which the modes, or few shots, do not obey."""
        self.seconds  # noqa: B018  (no time is an error now, not later)
        if "time_budget" in self.given and (self.compare or self.shots or self.mode != "auto"):
            raise ArgumentError(f"--time_budget {self.time_budget} is for --mode auto, without --compare or --shots.")
        if self.compare is not None and "mode" in self.given:
            raise ArgumentError("--mode and --compare both say how to transfer: leave out one.")
        if self.several_labels and (self.modes != ["linear_probe"] or self.shots):
            raise ArgumentError("--several_labels is for --mode linear_probe, without --shots.")
        for name, mode in OF_ONE_MODE.items():
            if name in self.given and self.compare is None and self.mode not in (mode, "auto"):
                raise ArgumentError(f"--{name} is for --mode {mode}, but got {self.mode}.")
        for name, value in OF_FEW_SHOTS.items() if self.shots else ():
            if name in self.given and getattr(self, name) != value:
                raise ArgumentError(
                    f"--{name} {getattr(self, name)} is not for --shots: its models are not kept. Leave it out."
                )

    @property
    def modes(self) -> list[str]:
        if self.compare is None:
            return [self.mode] if self.mode != "auto" else ["auto"] if self.shots else [*LADDER]
        names = MODES if self.compare == "all" else self.compare.replace(" ", "").split(",")
        fields.check_known(names, MODES, f"--compare takes all or some of {', '.join(MODES)}, but got")
        return list(dict.fromkeys(names))

    @property
    def is_ladder(self) -> bool:
        return self.compare is None and self.shots is None and self.mode == "auto"

    @property
    def seconds(self) -> float:
        """Of the time budget."""
        match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([smh])", self.time_budget)
        if match is None:
            raise ArgumentError(f"--time_budget takes such as 90s, 30m or 2h, but got {self.time_budget!r}.")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]

    @property
    def shot_counts(self) -> list[int]:
        """Images per class of each few-shot row; empty without --shots."""
        if self.shots is None:
            return []
        counts = [int(part) if part.strip().isdecimal() else 0 for part in str(self.shots).split(",")]
        if min(counts) < 1:
            raise ArgumentError(f"--shots takes whole numbers of at least 1, such as 1,5,10, but got {self.shots}.")
        return counts

    def training(self, mode: str, **more: Any) -> TrainArguments:
        """The arguments of training in a mode; `more` are those of what it starts from."""
        given = {name: value for name, value in self.given.items() if name in TRAINING}
        views = given.pop("feature_views", 2 if self.horizontal_flip else 1)
        if mode == "head" and 0 < views < 3 and (self.compare is not None or self.is_ladder):
            given = {k: v for k, v in given.items() if k not in OF_PIXELS}  # of the others
        shared = {"epochs": self.epochs, "output_dir": self.output_dir}
        if mode == "head" and views:  # faster trained than written
            shared["checkpoint_every"] = 10
        shared |= given
        adaptation = {
            "head": {"freeze_backbone": True, "feature_views": views},
            "layerwise": {"layer_decay": self.decay},
            "lora": {"lora_rank": self.rank},
        }.get(mode, {})
        return TrainArguments(**{**shared, **adaptation, "imprint": True, **more})


@dataclass(frozen=True, kw_only=True)
class AddClassArguments(Arguments):
    """New classes for a checkpoint. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "new classes"

    folder: PathName = required("Folder or Hub id of a ProtoSphere checkpoint.")
    name: str | None = flag("Of the new class.")
    images: list[PathName] | None = flag("Images of the new class: files and folders of them.")
    dataset_name: PathName | None = flag(
        "In place of a name and images: a data set, on the Hub or local. Those of its classes that are new are added."
    )
    split: Annotated[str, Beside("dataset_name")] = flag("Of the data set.", "train")
    shrinkage: Annotated[float, "[0, inf)"] = flag(
        "Steady a class of very few images: its mean is averaged with what the known classes say "
        "of it, as if that were so many images. Try 10 for one image or two.",
        0.0,
    )
    center: bool = flag(
        "Subtract the mean embedding of the checkpoint's own classes, which its snapshot holds: away from neural "
        "collapse a new class would otherwise attract the images of all others. Not done for class-mean prototypes.",
        True,
    )
    leave_one_out: bool = flag(
        "Choose a margin of each class, and its mean or a spare vertex, by leaving out its images in turn.", False
    )
    batch_size: Count = flag("Images embedded at once.", 64)
    output_dir: PathName | None = flag("Folder for the new checkpoint; by default the same one.")

    def __post_init__(self) -> None:
        check(self)
        if self.dataset_name is None and not (self.name and self.images):
            raise ArgumentError(
                "give a checkpoint, the name of the class and its images, as in `protosphere "
                "add-class outputs/run okapi okapi_1.jpg okapi_2.jpg`, or --dataset_name."
            )
        if self.dataset_name is not None and (self.name or self.images):
            raise ArgumentError("--dataset_name gives names and images of new classes: leave out --name and --images.")
