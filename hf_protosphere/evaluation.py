"""Measure a classifier: accuracy by its prototypes and by class means, and neural collapse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .metrics import NeuralCollapse
from .modeling_protosphere import ProtoSphereForImageClassification
from .prototypes import class_means
from .snapshots import SnapshotCollector


@torch.no_grad()
def predictions(
    model: ProtoSphereForImageClassification,
    loader: DataLoader,
    accelerator: Accelerator,
    description: str,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Embeddings (M, D), logits (M, K) and labels (M,) of every image, once, on every process.

    Raises:
        RuntimeError: when the number of images that came back is not the data set's.
    """
    for buffer in model.buffers():
        broadcast(buffer)  # batch norm's running statistics: the main process's are saved
    was_training = model.training
    model.eval()
    seen = 0
    for batch in tqdm(
        loader, desc=description, leave=False, disable=not accelerator.is_main_process
    ):
        with accelerator.autocast():
            output = model(batch["pixel_values"])
        gathered = accelerator.gather_for_metrics(
            (output.embeddings, output.logits, batch["labels"])
        )
        seen += len(gathered[2])
        yield gathered
    model.train(was_training)
    expected = getattr(loader.dataset, "__len__", lambda: seen)()  # a stream's is not known
    if seen != expected:
        raise RuntimeError(f"{description}: {seen} images were counted, but there are {expected}.")


def training_class_means(
    model: ProtoSphereForImageClassification, loader: DataLoader, accelerator: Accelerator
) -> Tensor:
    """(K, D) exact class means of the embeddings of the training images, in one forward pass."""
    batches = predictions(model, loader, accelerator, "class means")
    # Gathered batches are whole on every process: nothing is left to reduce.
    return class_means(
        ((embeddings, labels) for embeddings, _, labels in batches),
        num_classes=model.config.num_labels,
        group="local",
    )


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
        prototypes: (K, D) of unit norm; without them their figures are left out.
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
            figures = collapse.compute(prototypes)
        report["neural_collapse"] = figures | {"optima": collapse.optima}
    return report
