"""A network from scratch on all of CIFAR-10: what is trained, and what is measured of it.

`airnet` (1.2 M parameters) on 45,000 training images, the other 5,000 to choose settings by; with
long tails, on the part of them that an exponential imbalance leaves. Each row is a run folder
beside its figures, for the tables that need the model.
"""

from __future__ import annotations

from typing import Any

import torch

from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train

from ..rows import Measured, Row, Work

SEEDS = range(5)
Options = dict[str, Any]
EPOCHS = {"classify": 16, "tail": 64}  # of a tail: a quarter of the images, as many steps
TAIL = {"imbalance": "exp", "imbalance_factor": 0.02}
METHODS: dict[str, dict[str, Options]] = {"classify": {}, "tail": {}}


def rows(data: list[str], seeds: range = SEEDS) -> list[Row]:
    return [
        Row(task, "cifar10", method, seed)
        for task, methods in METHODS.items()
        for seed in (seeds[:3] if task == "tail" else seeds)
        for method in methods
    ]


def measure(row: Row, work: Work) -> Measured:
    return trained(row, work, METHODS[row.task][row.method])


def trained(row: Row, work: Work, options: Options) -> Measured:
    folder = row.path(work.folder).with_suffix("")
    epochs = EPOCHS[row.task]
    arguments = {
        "dataset_name": work.data[row.data], "output_dir": str(folder), "seed": row.seed,
        "resume": folder.exists(), "backbone": "airnet", "batch_size": 512, "epochs": epochs,
        "warmup_epochs": epochs / 8, "optimizer": "muon", "augmentation": "crop", "num_workers": 0,
        "check_images": False, "evaluate_every": epochs, "checkpoint_every": epochs // 8,
        "nc_every": 0, "nc_train_samples": 5000, "report_to": ["none"], "pictures": False,
        "mixed_precision": "bf16" if torch.cuda.is_available() else "no",
    }  # fmt: skip
    more = TAIL if row.task == "tail" else {}
    results = train(TrainArguments(**(arguments | more | options)), last=False)
    measured: Measured = {"seconds": results["training_seconds"]}
    for role in ("validation", "test"):
        for name in ("accuracy", "mean_class_accuracy", "class_means_accuracy"):
            measured[f"{role}_{name}"] = 100 * results[role][name]
    last = read_metrics(folder / "metrics.jsonl")[-1]
    measured["train_collapse"] = last["train_neural_collapse"]["attained"]
    return measured | {"test_collapse": results["test"]["neural_collapse"]["attained"]}
