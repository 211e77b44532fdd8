"""A small network from scratch: what is trained, and what is measured of it.

timm's `test_resnet` (0.37 M parameters) on six of CIFAR-10's classes, 1,000 training images each,
30 epochs of shifted and mirrored images, batches of 128. The losses of this library run by their
defaults; cross-entropy in every setting of a grid, chosen on 500 validation images a class.
"""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from hf_protosphere.data.dataset import ImageDataset, load_image_dataset
from hf_protosphere.data.subsets import drawn
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train

from ..measures import of_training
from ..rows import Measured, Row, Work

SEEDS = range(3)
CLASSES = 6
PER_CLASS = {"train": 1000, "validation": 500, "test": 1000}
EPOCHS = 30
Options = dict[str, Any]
CROSS_ENTROPY: dict[str, Options] = {
    "CE": {},
    **{
        f"CE, rate {rate}, decay {decay:g}": {"learning_rate": rate, "weight_decay": decay}
        for rate in (0.1, 0.3)
        for decay in (5e-4, 5e-3)
    },
}
PROTOTYPES: dict[str, Options] = {
    "NormFace": {"objective": "normface"},
    "NTCE": {"objective": "ntce"},
    "NONL": {"objective": "nonl"},
}
METHODS: dict[str, Options] = {
    **{name: {"objective": "cross_entropy"} | more for name, more in CROSS_ENTROPY.items()},
    **PROTOTYPES,
}


def rows(data: list[str], seeds: range = SEEDS) -> list[Row]:
    return [Row("classify", "cifar10", method, seed) for seed in seeds for method in METHODS]


def measure(row: Row, work: Work) -> Measured:
    folder = row.path(work.folder).with_suffix("")
    results = train(
        TrainArguments(
            dataset_name=row.data, output_dir=str(folder), seed=row.seed, backbone="test_resnet", batch_size=128,
            epochs=work.options.get("epochs", EPOCHS), augmentation="crop", num_workers=0, evaluate_every=EPOCHS,
            nc_every=0, nc_train_samples=3000, checkpoint_every=5, report_to=["none"], pictures=False,
            resume=folder.exists(), **METHODS[row.method],
        ),
        images=_images(work.data[row.data]), last=False,
    )  # fmt: skip
    return of_training(results, folder)


def _images(name: str) -> ImageDataset:
    """The first six classes; training and validation images are parts of the training split."""
    images = load_image_dataset(name, validation_fraction=0, check_images=False)
    names = images.label_names[:CLASSES]
    splits = {}
    taken = PER_CLASS["train"] + PER_CLASS["validation"]
    pool = _of_classes(images.splits["train"], names, taken)
    kept = drawn(np.asarray(pool[:]["label"]), [PER_CLASS["train"]] * CLASSES, 0)
    splits["train"] = pool.select(kept)
    splits["validation"] = pool.select(np.setdiff1d(np.arange(len(pool)), kept))
    splits["test"] = _of_classes(images.splits["test"], names, PER_CLASS["test"])
    return ImageDataset(splits, names)


def _of_classes(split: datasets.Dataset, names: list[str], per_class: int) -> datasets.Dataset:
    rows = drawn(np.asarray(split[:]["label"]), [per_class] * len(names), 0)
    features = datasets.Features({**split.features, "label": datasets.ClassLabel(names=names)})
    return split.select(rows).cast(features)
