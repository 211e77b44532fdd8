"""Heads on frozen features at several multiples of t*(K), for 2 to 100 classes.

Chosen by accuracy on validation images, which are parts of CIFAR-10's training images. 100 classes
are the ten, each in ten clusters of its features (k-means on the training images).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans

from hf_protosphere.data.dataset import ImageDataset
from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.objectives import optimal_temperature
from hf_protosphere.transfer.features import embedded, train_head

from ..frozen_features import stage as frozen
from ..rows import Measured, Row, Work

SEEDS = range(2)
CLASSES = (2, 3, 6, 10, 100)
EPOCHS = (10, 40)
FACTORS = (0.25, 0.5, 1.0)
LEARNED = "learned"
OBJECTIVES = {"NormFace": "normface", "NTCE": "ntce", "NONL": "nonl", "SupCon": "scl"}


def rows(data: list[str], seeds: range = SEEDS) -> list[Row]:
    return [
        Row(f"{epochs} epochs", f"K={count}", f"{title}, {factor}", seed)
        for seed in seeds
        for epochs in EPOCHS
        for count in CLASSES
        for title in OBJECTIVES
        for factor in (*FACTORS, LEARNED)
        # NONL has no minimum in the temperature.
        if not (title in ("NONL", "SupCon") and factor == LEARNED)
    ]


def measure(row: Row, work: Work) -> Measured:
    title, factor = row.method.split(", ")
    count, epochs = int(row.data[2:]), int(row.task.split()[0])
    features = _classes(work.data["cifar10"], work.options["model"], count, row.seed)
    options: dict[str, Any] = {"objective": OBJECTIVES[title]}
    if factor == LEARNED:
        options["learn_temperature"] = True
    else:
        options["temperature"] = float(factor) * optimal_temperature(count)
    arguments = frozen.arguments_of(row, work.options["model"], options)
    arguments = arguments.but(epochs=epochs, evaluate_every=epochs)
    model, _ = train_head(arguments, features)
    split = features.splits["validation"]
    right = embedded(model, split)[1].argmax(1) == split.labels
    return {"accuracy": 100 * right.double().mean().item(), "temperature": _temperature(model)}


def _temperature(model: Any) -> float:
    return float(model.config.softmax_temperature)


@cache
def _classes(path: str, model: str, count: int, seed: int) -> ImageDataset:
    """Training and validation images of so many classes, drawn by the seed."""
    features = frozen.reduced(frozen.features_of_data("cifar10", path, model))
    if count < features.num_labels:
        order = np.random.default_rng(seed).permutation(features.num_labels)
        return frozen.without(features, order[count:].tolist())
    if count == features.num_labels:
        return features
    parts = count // features.num_labels
    splits = {role: features.splits[role] for role in ("train", "validation")}
    labels = {role: torch.empty_like(split.labels) for role, split in splits.items()}
    for label in range(features.num_labels):
        found = None
        for role, split in splits.items():
            own = split.labels == label
            points = split.versions[0, own].numpy()
            if found is None:  # training images come first
                found = KMeans(parts, n_init=1, random_state=seed).fit(points)
            labels[role][own] = torch.as_tensor(found.predict(points)).long() + parts * label
    names = [f"{name} {i}" for name in features.label_names for i in range(parts)]
    return ImageDataset({role: FeatureSplit(split.versions, labels[role]) for role, split in splits.items()}, names)
