"""Metrics of a classifier: accuracies by its prototypes and by class means, and neural collapse, by layer too."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..configuration_protosphere import ProtoSphereConfig
from ..errors import ArgumentError, errors_in_one_line
from ..inference.predictions import inferred, predictions
from ..metrics.neural_collapse import NeuralCollapse
from ..metrics.snapshot import SnapshotCollector
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..pipeline_protosphere import prediction_sets


def evaluate_model(
    model: ProtoSphereForImageClassification, loader: DataLoader, accelerator: Accelerator,
    *, description: str = "evaluation", **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """`evaluate_predictions`, with its options, of what the model predicts over one split."""
    return evaluate_predictions(
        predictions(model, loader, accelerator, description), accelerator, num_classes=model.config.num_labels,
        embedding_dim=model.prototypes.shape[1], prototypes=model.prototypes, sets_of=model.config, **options,
    )  # fmt: skip


def evaluate_predictions(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]], accelerator: Accelerator, *, num_classes: int,
    embedding_dim: int, prototypes: Tensor | None = None, means: Tensor | None = None, neural_collapse: bool = True,
    snapshot: SnapshotCollector | None = None, outcomes: list[tuple[Tensor, ...]] | None = None,
    sets_of: ProtoSphereConfig | None = None, stopwatch: AbstractContextManager | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracies in [0, 1] and neural-collapse metrics over one split.

    Args:
        batches: embeddings (M, D), logits (M, K) and labels (M,), the same on every process.
        prototypes: (K, D) of unit norm; without them their metrics are left out.
        means: (K, D) class means, to classify by them as well.
        snapshot: takes part in every batch.
        outcomes: takes in labels, predictions and their scores, in float64, as `outcome_table` reads them.
        sets_of: the configuration whose prediction sets, if it has any, are measured as well.
        stopwatch: entered for what neural collapse costs beside the accuracies.

    Returns:
        {"num_images", "accuracy", "top5_accuracy" (of more than 5 classes), "class_accuracies" (of each class, None
        without images), "mean_class_accuracy" (of those with images), "class_means_accuracy" (with `means`),
        "prediction_sets" ({"set_score", "promised", "coverage", "mean_size", "class_coverages"}), "neural_collapse"
        (as `NeuralCollapse.compute` returns it, and "optima")}. Of equal scores the first class is predicted.
    """
    stopwatch = stopwatch or nullcontext()
    device = accelerator.device
    # Without torchmetrics, which counts K² pairs in every batch, and for which a class without
    # images that is predicted has an accuracy of 0.
    right, counts = torch.zeros(2, num_classes, dtype=torch.int64, device=device)
    in_top5, by_mean, sizes = torch.zeros(3, dtype=torch.int64, device=device)
    covered = torch.zeros_like(right)
    collapse = NeuralCollapse(num_classes, embedding_dim).to(device)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    for embeddings, logits, labels in batches:
        in_top5 += (logits.topk(min(5, num_classes)).indices == labels[:, None]).sum()
        if means is not None:
            by_mean += ((embeddings @ means.to(embeddings).T).argmax(-1) == labels).sum()
        right += labels[logits.argmax(-1) == labels].bincount(minlength=num_classes)
        counts += labels.bincount(minlength=num_classes)
        if sets_of and (sets := prediction_sets(logits, sets_of)) is not None:
            covered += labels[sets.gather(1, labels[:, None])[:, 0]].bincount(minlength=num_classes)
            sizes += sets.sum()
        if neural_collapse:
            with stopwatch:
                collapse.update(embeddings[share], labels[share])
        if snapshot is not None:
            snapshot.update(embeddings, labels)
        if outcomes is not None:
            outcomes.append((labels, logits.argmax(-1), logits.double().softmax(-1).amax(-1)))
    class_accuracies = [h / n if n else None for h, n in zip(right.tolist(), counts.tolist())]
    seen = [accuracy for accuracy in class_accuracies if accuracy is not None]
    report: dict[str, Any] = {
        "num_images": int(counts.sum()), "accuracy": (right.sum() / counts.sum()).item(),
        "mean_class_accuracy": sum(seen) / len(seen), "class_accuracies": class_accuracies,
    }  # fmt: skip
    if num_classes > 5:
        report["top5_accuracy"] = (in_top5 / counts.sum()).item()
    if means is not None:
        report["class_means_accuracy"] = (by_mean / counts.sum()).item()
    if sets_of and sets_of.set_thresholds is not None:
        report["prediction_sets"] = {
            "set_score": sets_of.set_score, "promised": sets_of.set_coverage,
            "coverage": (covered.sum() / counts.sum()).item(), "mean_size": (sizes / counts.sum()).item(),
            "class_coverages": [h / n if n else None for h, n in zip(covered.tolist(), counts.tolist())],
        }  # fmt: skip
    if neural_collapse:
        with stopwatch:
            report["neural_collapse"] = collapse.compute(prototypes) | {"optima": collapse.optima}
    return report


def layers_of(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """The labels (M,), and (M, D) of every layer, each with a D of its own: features pooled to their mean over places
    or tokens and scaled to unit norm, as embeddings are; the last are the embeddings."""
    with errors_in_one_line("--by_layer"):
        output = model(batch["pixel_values"], output_hidden_states=True)
    if not output.hidden_states:
        raise ArgumentError("--by_layer: the network gives no hidden states.")
    # (M, C, H, W) of convolutions, (M, T, C) of tokens
    pooled = [h.flatten(2).mean(2) if h.dim() == 4 else h.mean(1) for h in output.hidden_states]
    return [batch["labels"], *(F.normalize(x.float(), dim=1) for x in (*pooled, output.embeddings))]


def collapse_by_layer(model: nn.Module, loader: DataLoader, accelerator: Accelerator) -> list[dict[str, Any]]:
    """How neural collapse grows with depth (Rangamani et al. 2023, "Feature Learning in Deep Classifiers through
    Intermediate Neural Collapse"): [{"layer", "dim", and what `NeuralCollapse` computes without prototypes}]."""
    metrics: list[NeuralCollapse] = []
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    for labels, *layers in inferred([model], loader, accelerator, "layers", lambda batch: layers_of(model, batch)):
        metrics = metrics or [NeuralCollapse(len(model.prototypes), x.shape[1]) for x in layers]
        for metric, features in zip(metrics, layers):
            metric.update(features[share], labels[share])
    names = [*map(str, range(1, len(metrics))), "embeddings"]
    return [{"layer": name, "dim": m.embedding_dim} | m.compute() for name, m in zip(names, metrics)]


# Classes by their training images, as Liu et al. 2019 ("Large-Scale Long-Tailed Recognition in an
# Open World") count them and the field has since.
MANY, FEW = 100, 20


def accuracy_by_frequency(accuracies: Sequence[float | None], train_counts: Sequence[int]) -> dict[str, float]:
    """Mean accuracy of the classes with many (> 100), medium and few (< 20) training images; groups
    that are empty are left out. A class that was not evaluated has an accuracy of None.

    >>> accuracy_by_frequency([1.0, 0.5, 0.0], [500, 300, 5])
    {'many': 0.75, 'few': 0.0}
    """
    groups: dict[str, list[float]] = {"many": [], "medium": [], "few": []}
    for accuracy, count in zip(accuracies, train_counts):
        if accuracy is not None:
            groups["many" if count > MANY else "few" if count < FEW else "medium"].append(accuracy)
    return {name: sum(values) / len(values) for name, values in groups.items() if values}
