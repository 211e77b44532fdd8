"""The arguments of measuring a checkpoint: a group for each thing that can be asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .argument_groups import DataArguments, flag
from .corruptions import load_library, parse_corruptions, parse_severities
from .errors import ArgumentError
from .parsing import check_choices, check_counts, check_range


@dataclass(kw_only=True)
class _EvaluationArguments:
    _argument_group_name = "evaluation"

    model: str = field(metadata={"help": "Folder or Hub id of a ProtoSphere checkpoint."})
    split: str = flag("Split to evaluate on.", "test")
    class_means: bool = flag(
        "Also classify by the class means of --train_split: one pass over it.", True
    )
    batch_size: int = flag("Images per process and step.", 256)
    output: str | None = flag("Write the report as JSON here.")
    pictures: str | None = flag(
        "Draw the sphere, the cosines between classes and the margins into this folder."
    )
    json: bool = flag("Print the report as JSON instead of a table.", False)


@dataclass(kw_only=True)
class RobustnessArguments:
    _argument_group_name = "robustness"

    corruptions: list[str] | None = field(
        default=None,
        metadata={
            "help": "Also measure errors on corrupted images: all, for the 15 corruptions of "
            "ImageNet-C, noise, blur, weather, digital, extra (4 more), or single names such as "
            "fog. The means are over those asked for.",
            "nargs": "+",
        },
    )
    severities: str = flag("Severities of the corruptions, as 1-5 or 1,3,5.", "1-5")
    baseline: str | None = flag(
        "Folder or Hub id of a ProtoSphere checkpoint whose errors on the same corrupted images "
        "the model's are divided by, as the benchmark does with AlexNet's."
    )
    corrupted_dataset: str | None = flag(
        "Folder of images that are corrupted already, laid out as ImageNet-C "
        "(corruption/severity/class/image) or CIFAR-10-C (corruption.npy, labels.npy), instead of "
        "corrupting those of --split. Those of the model's input size are not resized again."
    )

    @property
    def measures_robustness(self) -> bool:
        return self.corruptions is not None or self.corrupted_dataset is not None

    def check_robustness(self) -> None:
        if self.corruptions is not None:
            parse_corruptions(self.corruptions)
        parse_severities(self.severities)
        if self.baseline is not None and not self.measures_robustness:
            raise ArgumentError("--baseline is compared on corrupted images: give --corruptions.")
        if self.corrupted_dataset is not None:
            if not Path(self.corrupted_dataset).is_dir():
                raise ArgumentError(
                    f"--corrupted_dataset {self.corrupted_dataset}: there is no such folder."
                )
        elif self.corruptions is not None:
            load_library()


@dataclass(kw_only=True)
class OpenSetArguments:
    _argument_group_name = "unknown images"

    ood_dataset: str | None = flag(
        "Also tell the images of --split from those of this data set, given like --dataset_name: "
        "images of none of the classes. It needs no labels."
    )
    ood_split: str | None = flag("Its split; by default 'test', or the only one.")
    ood_config: str | None = flag("Its configuration (subset).")
    ood_image_column: str | None = flag("Its column of images; found by its type when not given.")


@dataclass(kw_only=True)
class EvaluateArguments(_EvaluationArguments, OpenSetArguments, RobustnessArguments, DataArguments):
    """What to evaluate, on what. Invalid values raise `ArgumentError` at once."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "batch_size", "max_train_samples", "max_eval_samples")
        check_counts(self, "num_workers", at_least=0)
        self.check_robustness()
        for name in ("ood_split", "ood_config", "ood_image_column"):
            if getattr(self, name) is not None and self.ood_dataset is None:
                raise ArgumentError(
                    f"--{name} {getattr(self, name)} says more of --ood_dataset, which is missing."
                )


@dataclass(kw_only=True)
class _CalibrationArguments:
    _argument_group_name = "calibration"

    model: str = field(metadata={"help": "Folder or Hub id of a ProtoSphere checkpoint."})
    split: str | None = flag(
        "Split to calibrate on, which was not trained on. By default what the run in the folder "
        "validated on: a split, or the images that it held out of its training split; of another "
        "checkpoint a split called validation, val, valid or dev."
    )
    false_rejection_rate: float = flag(
        "Share of known images that may be called unknown: the threshold is chosen for it.", 0.05
    )
    output_dir: str | None = flag("Save the calibrated model here; by default where it is.")
    batch_size: int = flag("Images per process and step.", 256)


@dataclass(kw_only=True)
class CalibrateArguments(_CalibrationArguments, DataArguments):
    """What to calibrate, on what. Invalid values raise `ArgumentError` at once."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "batch_size", "max_train_samples", "max_eval_samples")
        check_counts(self, "num_workers", at_least=0)
        check_range(self, "false_rejection_rate", "(0, 1)")
