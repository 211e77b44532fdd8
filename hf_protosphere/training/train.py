"""The command `protosphere train`: train a classifier, from one dataclass of arguments."""

from __future__ import annotations

from typing import Any

from transformers.utils import logging as transformers_logging

from ..data.dataset import ImageDataset
from ..runs.signals import stop_signals
from .arguments import TrainArguments
from .dry_run import dry_run
from .finish import finish
from .reporting import announcement
from .run import TrainingRun


def train(
    arguments: TrainArguments, *, images: ImageDataset | None = None, last: bool = True
) -> dict[str, Any]:
    """Train as the arguments say; leaves a folder that `from_pretrained` and pipelines load.

    `output_dir` holds the model of the best epoch, metrics.jsonl (a line per measurement),
    results.json, pictures, arguments.yaml, environment.json (versions, commit, data, for every
    start), best/ and checkpoints/.

    Args:
        images: the data set, if it was loaded before, as `load_training_data` does.
        last: nothing else is trained in these processes: they part.

    Returns:
        What results.json holds: the final evaluation of each held-out split.

    Raises:
        ArgumentError, DataError: before training starts.
        TrainingError: a loss that is not finite; the last good checkpoint is kept.
        TrainingInterrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    transformers_logging.disable_progress_bar()
    run = TrainingRun(arguments, images)
    run.accelerator.print(announcement(run))
    with stop_signals(run.accelerator.is_main_process) as stop:
        while not run.is_over:
            run.train_epoch(stop)
            run.finish_epoch()
    results = finish(run)
    if last:
        run.accelerator.end_training()
    else:
        for tracker in run.accelerator.trackers:
            tracker.finish()
    return results


def train_or_plan(arguments: TrainArguments) -> dict[str, Any]:
    """What `protosphere train` does, with `--dry_run` or without."""
    return dry_run(arguments) if arguments.dry_run else train(arguments)
