"""What a run says at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .adaptation import count_parameters, count_trained_parameters

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
