"""Metrics of a classifier: accuracies by its prototypes and by class means, and neural collapse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ..inference.predictions import predictions
from ..metrics.neural_collapse import NeuralCollapse
from ..metrics.snapshot import SnapshotCollector
from ..modeling_protosphere import ProtoSphereForImageClassification


def evaluate_model(
    model: ProtoSphereForImageClassification,
    loader: DataLoader,
    accelerator: Accelerator,
    *,
    means: Tensor | None = None,
    neural_collapse: bool = True,
    description: str = "evaluation",
    snapshot: SnapshotCollector | None = None,
    stopwatch: AbstractContextManager | None = None,
) -> dict[str, Any]:
    """Accuracies in [0, 1] and neural-collapse metrics of a model over one split.

    As `evaluate_predictions`, of what the model predicts.
    """
    return evaluate_predictions(
        predictions(model, loader, accelerator, description),
        accelerator,
        num_classes=model.config.num_labels,
        embedding_dim=model.protosphere.embedding_dim,
        prototypes=model.prototypes,
        means=means,
        neural_collapse=neural_collapse,
        snapshot=snapshot,
        stopwatch=stopwatch,
    )


def evaluate_predictions(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    accelerator: Accelerator,
    *,
    num_classes: int,
    embedding_dim: int,
    prototypes: Tensor | None = None,
    means: Tensor | None = None,
    neural_collapse: bool = True,
    snapshot: SnapshotCollector | None = None,
    stopwatch: AbstractContextManager | None = None,
) -> dict[str, Any]:
    """Accuracies in [0, 1] and neural-collapse metrics over one split.

    Args:
        batches: embeddings (M, D), logits (M, K) and labels (M,), the same on every process.
        prototypes: (K, D) of unit norm; without them their metrics are left out.
        means: (K, D) class means, to classify by them as well.
        snapshot: takes part in every batch.
        stopwatch: entered for what neural collapse costs beside the accuracies.

    Returns:
        {"num_images", "accuracy", "top5_accuracy" (of more than 5 classes), "class_accuracies" (of
        each class, None without images), "mean_class_accuracy", "class_means_accuracy" (with
        `means`),
        "neural_collapse" (as `NeuralCollapse.compute` returns it, and "optima")}.
    """
    stopwatch = stopwatch or nullcontext()
    correct = torch.zeros(3, dtype=torch.int64, device=accelerator.device)
    by_class = torch.zeros(2, num_classes, device=accelerator.device)  # right, all
    total = 0
    collapse = NeuralCollapse(num_classes, embedding_dim)
    collapse.to(accelerator.device)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    top = min(5, num_classes)
    for embeddings, logits, labels in batches:
        hits = logits.topk(top).indices == labels[:, None]  # (M, top)
        correct[0] += hits[:, 0].sum()
        correct[1] += hits.sum()
        if means is not None:
            nearest = (embeddings @ means.to(embeddings).T).argmax(-1)
            correct[2] += (nearest == labels).sum()
        total += len(labels)
        by_class[0].index_add_(0, labels, hits[:, 0].float())
        by_class[1].index_add_(0, labels, torch.ones_like(hits[:, 0], dtype=torch.float32))
        if neural_collapse:
            with stopwatch:
                collapse.update(embeddings[share], labels[share])
        if snapshot is not None:
            snapshot.update(embeddings, labels)
    by_prototype, in_top5, by_mean = (correct / total).tolist()
    class_accuracies = [right / n if n else None for right, n in by_class.T.tolist()]
    seen = [accuracy for accuracy in class_accuracies if accuracy is not None]
    report: dict[str, Any] = {
        "num_images": total,
        "accuracy": by_prototype,
        "mean_class_accuracy": sum(seen) / len(seen),
        "class_accuracies": class_accuracies,
    }
    if num_classes > top:
        report["top5_accuracy"] = in_top5
    if means is not None:
        report["class_means_accuracy"] = by_mean
    if neural_collapse:
        with stopwatch:
            metrics = collapse.compute(prototypes)
        report["neural_collapse"] = metrics | {"optima": collapse.optima}
    return report


# Classes by their training images, as Liu et al. 2019 ("Large-Scale Long-Tailed Recognition in an
# Open World") count them and the field has since.
MANY, FEW = 100, 20


def accuracy_by_frequency(
    accuracies: Sequence[float | None], train_counts: Sequence[int]
) -> dict[str, float]:
    """Mean accuracy of the classes with many (> 100), medium and few (< 20) training images.

    Args:
        accuracies: of each class, in [0, 1]; None for one that was not evaluated.

    Returns:
        {"many": ..., "medium": ..., "few": ...} without groups that are empty.

    Example:
        >>> accuracy_by_frequency([1.0, 0.5, 0.0], [500, 300, 5])
        {'many': 0.75, 'few': 0.0}
    """
    groups: dict[str, list[float]] = {"many": [], "medium": [], "few": []}
    for accuracy, count in zip(accuracies, train_counts):
        if accuracy is not None:
            group = "many" if count > MANY else "few" if count < FEW else "medium"
            groups[group].append(accuracy)
    return {name: sum(values) / len(values) for name, values in groups.items() if values}
