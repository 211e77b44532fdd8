"""The arguments of telling unknown images from known ones."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..arguments.fields import Arguments, Beside, Count, PathName, check, flag, required
from ..data.arguments import DataArguments
from ..errors import ArgumentError

OfUnknown = Annotated[str, Beside("ood_dataset")]


@dataclass(frozen=True, kw_only=True)
class OpenSetArguments:
    _argument_group_name = "unknown images"

    ood_dataset: PathName | None = flag(
        "Tell the images of --split from those of this data set, given like --dataset_name: "
        "images of none of the classes. It needs no labels."
    )
    ood_split: OfUnknown | None = flag("Its split; by default 'test', or the only one.")
    ood_config: OfUnknown | None = flag("Its configuration (subset).")
    ood_image_column: OfUnknown | None = flag("Its column of images; found by its type when not given.")


@dataclass(frozen=True, kw_only=True)
class CalibrateArguments(OpenSetArguments, DataArguments, Arguments):
    """What to calibrate, on what. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "calibration"

    model: PathName = required("Folder or Hub id of a ProtoSphere checkpoint.")
    split: str | None = flag(
        "Split to calibrate on, which was not trained on. By default what the run in the folder "
        "validated on: a split, or the images that it held out of its training split; of another "
        "checkpoint a split called validation, val, valid or dev."
    )
    false_rejection_rate: Annotated[float, "(0, 1)"] = flag(
        "Share of known images that may be called unknown: the threshold is chosen for it.", 0.05
    )
    score: Literal["auto", "cosine", "max_softmax", "energy", "mahalanobis", "knn", "vim", "neco"] = flag(
        "What tells unknown images: the cosine to the nearest prototype, the maximum softmax, the energy of the "
        "logits; mahalanobis, knn, vim or neco, which one half of the images are for; auto: what does it best on "
        "--ood_dataset, else, of the first three, on classes that are left out in turn, and the cosine where none is "
        "better by a point. A table shows them all.",
        "auto",
    )
    coverage: Annotated[float, "(0, 1)"] | None = flag(
        "Also give every image a set of classes that holds the right one so often, such as 0.9."
    )
    sets: Literal["lac", "aps", "raps"] = flag(
        "With --coverage, how sets are made. lac: the smallest, some of them empty; aps: larger where the model is "
        "unsure, never empty; raps: the same with few large ones.",
        "raps",
    )
    class_wise: Annotated[bool, Beside("coverage")] = flag(
        "Keep the coverage for the images of each class, not only for all together. It takes images of every class.",
        False,
    )
    output_dir: PathName | None = flag("Save the calibrated model here; by default where it is.")
    batch_size: Count = flag("Images per process and step.", 256)
    json: bool = flag("Print the report as JSON instead of tables.", False)

    def __post_init__(self) -> None:
        check(self)
        if self.max_train_samples is not None:
            raise ArgumentError("--max_train_samples is of training images: --max_eval_samples.")
        if self.coverage is None and "sets" in self.given:
            raise ArgumentError(f"--sets {self.sets} is for --coverage only: give that, or leave it out.")
