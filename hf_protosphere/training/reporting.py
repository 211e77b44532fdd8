"""What a run says: what is about to be trained, a line for each epoch, and that to trackers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from .adaptation import count_parameters, count_trained_parameters
from .arguments import TrainArguments

if TYPE_CHECKING:
    from .run import TrainingRun


def announcement(run: TrainingRun) -> str:
    """What is about to be trained, on what, for how long."""
    config, arguments, accelerator = run.model.config, run.arguments, run.accelerator
    parameters, trained = count_parameters(run.model), count_trained_parameters(run.model)
    share = "" if trained == parameters else f", {trained:,} of them trained"
    sizes = ", ".join(
        f"{name} {run.images.num_train if name == 'train' else len(split)}"
        for name, split in run.images.splits.items()
    )
    lines = [
        f"{config.objective} on {config.backbone} ({parameters / 1e6:.2f} M parameters{share}, "
        f"embeddings of {run.model.protosphere.embedding_dim}, {config.prototypes} prototypes)",
        f"{arguments.dataset_name}: {config.num_labels} classes, {sizes}; "
        f"{config.image_size} px, {config.num_channels} channel(s)",
        f"{arguments.epochs} epochs of {run.steps_per_epoch} steps of {run.images_per_step} "
        f"images, {accelerator.num_processes} process(es) on {accelerator.device.type}"
        f"{'' if arguments.dry_run else f'; → {run.output_dir}'}",
    ]
    if arguments.imbalance:
        counts = ", ".join(map(str, run.train_counts))
        lines.append(f"long-tailed ({arguments.imbalance}): {counts} images a class")
    if run.validation == "train":
        lines.append("No validation images: validating on the training set.")
    return "\n".join(lines)


def epoch_line(record: dict[str, Any]) -> str:
    line = f"epoch {record['epoch']:>5.4g}"
    if "train_loss" in record:
        line += f"  loss {record['train_loss']:.3f}"
    if "validation_accuracy" in record:
        line += f"  validation accuracy {record['validation_accuracy']:.2%}"
    if "validation_neural_collapse" in record:
        attained = record["validation_neural_collapse"]["attained"]["overall"]
        line += f"  neural collapse {attained:.1f} %"
    return line


def start_trackers(accelerator: Accelerator, arguments: TrainArguments, run_id: str) -> None:
    """Start what `--report_to` names; a resumed run goes on where it was.

    Args:
        run_id: the run's identity, the same when it is resumed.
    """
    name = arguments.run_name or Path(arguments.output_dir).resolve().name
    plain = (bool, int, float, str)
    accelerator.init_trackers(
        arguments.project,
        config={
            key: value if isinstance(value, plain) else str(value)
            for key, value in dataclasses.asdict(arguments).items()
        },
        init_kwargs={
            "wandb": {
                "name": name, "id": run_id, "resume": "allow", "dir": arguments.output_dir
            },
            "trackio": {"name": name, "resume": "allow" if arguments.resume else "never"},
        },
    )  # fmt: skip
