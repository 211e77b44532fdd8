"""`--mode auto`: rungs from the cheapest to the dearest, each kept only where it is better on validation images."""

import shutil
import time
from pathlib import Path
from typing import Any

from ..data.dataset import ImageDataset
from ..objectives import OBJECTIVES
from ..plots.text import say
from ..runs.files import replacing_files, write_json
from ..runs.finished_run import read_run_arguments
from ..runs.folders import RUN_FILES, TRANSFER_FILES, remove_run
from ..runs.loading import load_config
from ..runs.reading import read_json
from ..training.arguments import TrainArguments
from ..training.train import dry_run

KEPT = "kept"  # sub-folder for a frozen rung that becomes a run
MARGIN = 1.3  # of an epoch with its validation over its optimiser steps alone


def best_rung(rows: list[dict[str, Any]]) -> str:
    """The mode of the highest accuracy on validation images; of equals the cheapest."""
    return max(rows, key=lambda row: row["held_out_accuracy"])["mode"]


def start_of(folder: Path) -> dict[str, Any]:
    """The arguments of training that goes on from a rung's model, with prototypes that are trained."""
    config = load_config(str(folder))
    start = {"finetune_from": str(folder), "objective": config.objective, "prototypes": None}
    start |= {"pretrained": False, "partial_weights": False}  # they are in the rung's
    if config.has_prototypes and not OBJECTIVES[config.objective].contrasts_views:
        start["prototypes"] = "simplex_etf" if config.prototypes == "simplex_etf" else "learned"
    return start


def affordable(
    training: TrainArguments, images: ImageDataset, seconds: float, started: float
) -> TrainArguments | None:
    """With as many epochs as fit into so many seconds since `started`, by the pace of two steps; None if none does."""
    if begun := read_run_arguments(training.output_dir):  # and stopped: it goes on as it was planned
        return training.but(epochs=begun.epochs, warmup_epochs=begun.warmup_epochs)
    if (left := seconds - (time.perf_counter() - started)) > 0:
        pace = MARGIN * dry_run(training, images=images, last=False)["seconds_per_epoch"]
        if epochs := min(training.epochs, int(left / pace)):
            return training.but(epochs=epochs, warmup_epochs=min(training.warmup_epochs, epochs / 2))
    say(f"Left out: an epoch takes longer than the {max(left, 0):.0f} s that are left of --time_budget.")
    return None


def move(source: Path, folder: Path, base_model: str | None) -> None:
    """A rung's files to the folder of the ladder, as a run that started where the ladder did."""
    results = read_json(source / "results.json")
    results["provenance"]["base_model"] = base_model
    with replacing_files(folder) as new:
        for pattern in {*RUN_FILES} - {*TRANSFER_FILES}:
            for path in source.glob(pattern):
                shutil.copy2(path, new / path.name)
        write_json(new / "results.json", results)
    remove_run(folder / KEPT)
