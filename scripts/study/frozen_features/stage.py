"""Heads on frozen features: what is trained, and what is measured of each.

Features of a pretrained network are computed once for each data set, and kept; then a projection
and a head are trained on them in seconds, as `protosphere finetune --mode head` does.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import torch

from hf_protosphere.data.dataset import ImageDataset, load_image_dataset
from hf_protosphere.data.labels import labels_of
from hf_protosphere.data.subsets import drawn
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.transfer.arguments import HEAD_PROJECTION
from hf_protosphere.transfer.features import features_of, train_head
from hf_protosphere.transfer.finetune import LEARNING_RATES, head_epochs

from ..measures import classification, collapse, part, retrieval, unknown
from ..rows import Measured, Row, Work
from .methods import METHODS, Options

SEEDS = range(5)
TRAIN, VALIDATION = 500, 300  # images a class of a data set that has no validation split
BATCH_TRAIN = 900  # for batches of 8192 of them
UNSEEN = 3  # classes that the task "open" leaves out
TAIL = (112, 2)  # images of the largest and of the smallest class
EPOCHS = {"tail": 150, "5 a class": 100, "20 a class": 100, "batch": 20}  # else as by default
BATCH = {"tail": 128, "5 a class": 50, "20 a class": 100}  # 256 otherwise
FEW = ("tail", "5 a class", "20 a class")


def rows(data: list[str], seeds: range = SEEDS) -> list[Row]:
    return [
        Row(task, name, method, seed)
        for task, methods in METHODS.items()
        for name in data
        for seed in (seeds[:3] if task == "batch" else seeds)
        for method in methods
        if not (task == "batch" and name == "clothing" and "8192" in method)  # it has 3,068 images
    ]


def measure(row: Row, work: Work) -> Measured:
    features = features_of_data(row.data, work.data[row.data], work.options["model"])
    if row.task != "batch":
        features = reduced(features)
    unseen: list[int] = []
    if row.task == "open":
        unseen = np.random.default_rng(row.seed).permutation(features.num_labels)[:UNSEEN].tolist()
        known = without(features, unseen)
    elif row.task in FEW:
        known = _few(features, row)
    else:
        known = features
    options = METHODS[row.task][row.method]
    arguments = arguments_of(row, work.options["model"], options, known.num_train)
    model, results = train_head(arguments, known)
    measured = classification(model, known) | {"seconds": results["training_seconds"]}
    if row.task == "classify":
        measured |= collapse(model, known) | retrieval(model, known.splits["test"], "known")
        others = (
            features_of_data(name, path, work.options["model"]) for name, path in work.data.items() if name != row.data
        )
        far = torch.cat([other.splits["test"].versions[0] for other in others])
        measured["far"] = unknown(model, known, far)
    if row.task == "open":
        test = features.splits["test"]
        left_out = test.select(np.flatnonzero(np.isin(test.labels, unseen)).tolist())
        measured["near"] = unknown(model, known, left_out.versions[0])
        measured |= retrieval(model, known.splits["test"], "known")
        measured |= retrieval(model, left_out, "unseen")
    return measured


def arguments_of(row: Row, model: str, options: Options, images: int = 0) -> TrainArguments:
    epochs = EPOCHS.get(row.task) or head_epochs(images // 256)
    batch_size = options.get("batch_size", BATCH.get(row.task, 256))
    return TrainArguments(**{
        "dataset_name": row.data, "backbone": model, "pretrained": True,
        "freeze_backbone": True, "feature_views": 2, "imprint": True, "epochs": epochs,
        "evaluate_every": epochs, "nc_every": 0, "nc_train_samples": 0, "seed": row.seed,
        "learning_rate": LEARNING_RATES["head"] * min(batch_size / 256, 4),
        "batch_size": batch_size,
    } | HEAD_PROJECTION | options)  # fmt: skip


@cache
def features_of_data(name: str, path: str, model: str) -> ImageDataset:
    images = load_image_dataset(path, validation_fraction=0, check_images=False)
    if "validation" not in images.splits:
        train = images.splits["train"]
        kept, both = (
            drawn(labels_of(train), [count] * images.num_labels, 0)
            for count in (BATCH_TRAIN, BATCH_TRAIN + VALIDATION)
        )
        splits = {"train": train.select(kept), "validation": train.select(np.setdiff1d(both, kept))}
        images = dataclasses.replace(images, splits=dict(images.splits) | splits)
    return features_of(arguments_of(Row("classify", path, "", 0), model, {}), images)


def reduced(features: ImageDataset) -> ImageDataset:
    """With at most TRAIN training images of each class on average."""
    train = features.splits["train"]
    if len(train) <= TRAIN * features.num_labels:
        return features
    kept = drawn(train.labels.numpy(), [TRAIN] * features.num_labels, 0)
    return features.with_train(part(train, kept))


def without(features: ImageDataset, unseen: list[int]) -> ImageDataset:
    """Without these classes; the others are numbered anew."""
    kept = [label for label in range(features.num_labels) if label not in unseen]
    splits = {}
    for role, split in features.splits.items():
        rows = np.flatnonzero(np.isin(split.labels, kept))
        splits[role] = part(split, rows, np.searchsorted(kept, split.labels[rows]))
    return ImageDataset(splits, [features.label_names[label] for label in kept])


def _few(features: ImageDataset, row: Row) -> ImageDataset:
    """Few training images: so many of each class, or a long tail over the classes in an order of the seed's."""
    train, count = features.splits["train"], features.num_labels
    if row.task == "tail":
        largest, smallest = TAIL
        ranks = np.random.default_rng(row.seed).permutation(count)
        counts = np.round(largest * (smallest / largest) ** (ranks / (count - 1))).astype(int)
    else:
        counts = [int(row.task.split()[0])] * count
    return features.with_train(part(train, drawn(train.labels.numpy(), counts, row.seed)))
