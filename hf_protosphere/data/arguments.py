"""The arguments of data: which, which splits, how it is read; and how batches are made of it."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from ..arguments.fields import Beside, Count, CountOrZero, PathName, flag, required

OfData = Annotated[str, Beside("dataset_name")]


@dataclass(frozen=True, kw_only=True)
class SourceArguments:
    _argument_group_name = "data set"

    dataset_name: PathName = required(
        "A data set on the Hub ('user/name'), a folder of Parquet files, a folder of images with "
        "one sub-folder per class, a Parquet, CSV or JSON file, or a folder by save_to_disk."
    )
    dataset_config: str | None = flag("Configuration (subset) of the data set.")
    dataset_revision: str | None = flag("Branch, tag or commit of the data set on the Hub.")
    image_column: str | None = flag("Column of images; found by its type when not given.")
    label_column: str | None = flag("Column of labels; found by its type when not given.")
    labels: PathName | None = flag("Corrected labels: images.csv of `protosphere inspect`, edited by hand.")
    exclude: PathName | None = flag("Images left out: exclude.csv of `protosphere inspect`, or rows of images.csv.")


@dataclass(frozen=True, kw_only=True)
class DataArguments(SourceArguments):
    train_split: str = flag("Split to train on, or to take class means from; several as train+validation.", "train")
    on_bad_image: Literal["error", "skip"] = flag(
        "An image that cannot be decoded: stop and name it, or leave it out and count.", "error"
    )
    check_images: bool = flag("Decode every image before the work starts (remembered).", True)
    max_train_samples: Count | None = flag("Use only so many training images, balanced by class.")
    max_eval_samples: Count | None = flag("Use only so many images of each other split.")
    num_workers: CountOrZero = flag(
        "Processes that load images, for each training process. No result depends on it.", 2
    )


@dataclass(frozen=True, kw_only=True)
class CacheArguments:
    cache_images: bool | None = flag(
        "Training decodes and resizes the images once, to squares in a memory-mapped file in the "
        "cache of datasets, and augments whole batches on the device. By default where they fit on "
        "the disk; else, and with false, worker processes decode them in every epoch."
    )


@dataclass(frozen=True, kw_only=True)
class SplitArguments:
    _argument_group_name = "splits"

    validation_split: str | None = flag(
        "Split to validate on; by default one called validation, val, valid or dev, else "
        "--validation_fraction of the training images."
    )
    test_split: str | None = flag("Split for the final evaluation; 'test' when there is one.")
    validation_fraction: Annotated[float, "[0, 1)"] = flag(
        "Share of the training images, drawn class by class, to validate on when there is no "
        "validation split. 0 trains on all images and validates on the training set.",
        0.1,
    )
    imbalance: Literal["exp", "step"] | None = flag(
        "Make the training images long-tailed: exp, each class a constant factor smaller than the "
        "one before; step, the second half of the classes small. Other splits stay as they are."
    )
    imbalance_factor: Annotated[float, "(0, 1]", Beside("imbalance")] = flag(
        "Images of the smallest class over the largest's.", 0.01
    )
    images_per_class: Count | None = flag("Few shots: train on so many images of each class.")


@dataclass(frozen=True, kw_only=True)
class StreamingArguments:
    streaming: bool = flag(
        "Read the training images from the Hub, or the disk, as they are needed, instead of downloading them first. "
        "Other splits are downloaded. The order then depends on the number of processes and workers.",
        False,
    )
    shuffle_buffer: Annotated[Count, Beside("streaming")] = flag(
        "Images that are read and shuffled together, in each worker; files are shuffled as well.", 10_000
    )
    num_train_images: Annotated[Count, Beside("streaming")] | None = flag(
        "How many there are, when the data set does not say: the length of an epoch."
    )


@dataclass(frozen=True, kw_only=True)
class Images:
    """A split of a data set, whatever its labels."""

    dataset_name: PathName | None = flag("Data set, as for `protosphere evaluate`.")
    dataset_config: OfData | None = flag("Configuration (subset) of the data set.")
    dataset_revision: OfData | None = flag("Branch, tag or commit of the data set on the Hub.")
    image_column: OfData | None = flag("Column of images; found by its type when not given.")
    split: OfData = flag("Split of the data set.", "test")


@dataclass(frozen=True, kw_only=True)
class LabelledImages(Images):
    """A split of a data set, its columns found as `protosphere evaluate` finds them."""

    label_column: OfData | None = flag("Column of labels; found by its type when not given.")

    @property
    def columns(self) -> dict[str, Any]:
        """What `load_split` takes beside names of data set and split."""
        names = ("dataset_config", "image_column", "label_column")
        return {name: getattr(self, name) for name in names} | {"revision": self.dataset_revision}


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How batches are made of the training images; what each means, the arguments of jobs say."""

    batch_size: int = 1
    seed: int = 0
    num_workers: int = 0
    augmentation: str = "none"
    horizontal_flip: bool = False
    crop_scale: float | None = None
    blur: float = 0.0
    rand_augment: int | None = None
    random_erasing: float = 0.0
    views: int = 1
    classes_per_batch: int | None = None
    gradient_accumulation_steps: int = 1
    cache_images: bool | None = None
    on_bad_image: str = "error"
    shuffle_buffer: int = 10_000

    @classmethod
    def of(cls, arguments: Any) -> "BatchOptions":
        """Those among the arguments of a job."""
        return cls(**{option.name: getattr(arguments, option.name) for option in fields(cls)})
