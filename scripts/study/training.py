"""The networks of the study: six objectives, three seeds, balanced and long-tailed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.subsets import balanced_sample
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train

# The first six classes are known; the others are new to the networks that are trained here.
KNOWN = ("airplane", "automobile", "bird", "cat", "deer", "dog")
SEEDS = (0, 1, 2)
VALIDATION_PER_CLASS, TEST_PER_CLASS = 150, 500

OBJECTIVES: dict[str, dict[str, Any]] = {
    "cross_entropy": {"objective": "cross_entropy"},
    "normface": {"objective": "normface"},
    "ntce": {"objective": "ntce"},
    "nonl": {"objective": "nonl"},
    "simplex_etf": {"objective": "normface", "prototypes": "simplex_etf"},
    "scl": {"objective": "scl", "projection": "mlp", "projection_dim": 128},
}


@dataclass(frozen=True)
class Scale:
    """How much is trained."""

    backbone: str = "test_resnet"
    small_images: bool = False
    train_per_class: int = 1000
    epochs: int = 30
    long_tailed_epochs: int = 40
    batch_size: int = 128
    mixed_precision: str = "no"
    transfer_epochs: int = 3


CPU = Scale()
GPU = Scale("resnet18", True, 4850, 100, 100, 256, "bf16", transfer_epochs=20)


def prepare_data(dataset_name: str, folder: Path, scale: Scale) -> dict[str, Path]:
    """CIFAR-10 in two folders of Parquet files: the known classes, and the unknown ones.

    Splits train, validation (of the training images, disjoint) and test, balanced, the same for
    every seed.
    """
    parts = {"known": folder / "known", "unknown": folder / "unknown"}
    if all(path.exists() for path in parts.values()):
        return parts
    images = load_image_dataset(dataset_name, validation_fraction=0)
    for part, path in parts.items():
        names = [name for name in images.label_names if (name in KNOWN) == (part == "known")]
        unfinished = path.with_name(f"{part}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for split, dataset in _splits(images, names, scale).items():
            dataset.to_parquet(unfinished / f"{split}-00000-of-00001.parquet")
        unfinished.rename(path)
    return parts


def _splits(images: Any, names: list[str], scale: Scale) -> dict[str, datasets.Dataset]:
    classes = [images.label_names.index(name) for name in names]
    feature = datasets.ClassLabel(names=names)

    def of_classes(split: datasets.Dataset) -> datasets.Dataset:
        labels = np.asarray(split[:]["label"])
        rows = split.select(np.flatnonzero(np.isin(labels, classes)))
        numbers = [classes.index(label) for label in rows[:]["label"]]
        return (
            rows.remove_columns("label").add_column("label", numbers).cast_column("label", feature)
        )

    pool = of_classes(images.splits["train"])
    per_class = scale.train_per_class + VALIDATION_PER_CLASS
    pool = balanced_sample(pool, per_class * len(names), seed=0)
    validation = balanced_sample(
        pool.add_column("row", range(len(pool))), VALIDATION_PER_CLASS * len(names), seed=0
    )
    kept = np.setdiff1d(np.arange(len(pool)), validation["row"])
    return {
        "train": pool.select(kept),
        "validation": validation.remove_columns("row"),
        "test": balanced_sample(
            of_classes(images.splits["test"]), TEST_PER_CLASS * len(names), seed=0
        ),
    }


def _arguments(network: Network, data: Path, folder: Path, scale: Scale) -> TrainArguments:
    objective, seed, long_tailed = network.objective, network.seed, network.long_tailed
    more: dict[str, Any] = {}
    if long_tailed:
        more = {"imbalance": "exp", "imbalance_factor": 0.01}
    if objective == "scl":
        more |= {"linear_probe": True, "normalized_linear_probe": True}
    return TrainArguments(
        dataset_name=str(data), output_dir=str(folder), seed=seed, backbone=scale.backbone,
        small_images=scale.small_images, batch_size=scale.batch_size,
        epochs=scale.long_tailed_epochs if long_tailed else scale.epochs,
        mixed_precision=scale.mixed_precision, image_size=32, augmentation="crop", num_workers=0,
        report_to=["none"], check_images=False, pictures=False, best_metric="accuracy",
        nc_every_steps=23,  # twice an epoch of the default scale
        resume=True, **OBJECTIVES[objective], **more,
    )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One that is trained on the known classes."""

    objective: str
    seed: int
    long_tailed: bool = False

    def folder(self, output_dir: Path) -> Path:
        kind = "long_tailed" if self.long_tailed else "balanced"
        return output_dir / kind / f"{self.objective}-{self.seed}"

    def __str__(self) -> str:
        return f"{self.objective}{', long-tailed' * self.long_tailed}, seed {self.seed}"


def networks_to_train(output_dir: Path, seeds: Sequence[int]) -> list[Network]:
    """Those that are not finished yet."""
    networks = [
        Network(objective, seed, long_tailed)
        for seed in seeds
        for long_tailed in (False, True)
        for objective in OBJECTIVES
    ]
    return [n for n in networks if not (n.folder(output_dir) / "results.json").exists()]


def train_network(data: Path, output_dir: Path, scale: Scale, network: Network) -> None:
    """Train it, from where it was stopped if it was."""
    folder = network.folder(output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        train(_arguments(network, data, folder, scale))


def start_worker(jobs: int) -> None:
    """In each process of the pool. (Not in __main__, which a new process does not find.)"""
    # The parent tells them to end; each would otherwise print a traceback of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
