"""Classifiers on a frozen network, for transfer without training it: one pass over the images.

- prototypes: the class means of the embeddings, as after SCL (arXiv 2605.20302).
- linear_probe, normalized_linear_probe: a linear layer on the backbone's features (`probes`).
- knn: the nearest training images vote, each with exp(cosine / temperature) (Wu et al. 2018).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.image_cache import FeatureSplit
from ..inference.features import embedded
from ..inference.probes import train_probe
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..prototypes import class_means
from ..training.adaptation import with_new_classes

KNN_TEMPERATURE = 0.07  # Wu et al.'s


@dataclass(frozen=True)
class FrozenClassifier:
    """What it says of the evaluation images, and what it is made of."""

    embeddings: Tensor  # (N, D) of the evaluation images, unit norm, in the space it classifies in
    logits: Tensor  # (N, K)
    prototypes: Tensor | None  # (K, D), unit norm; None of knn
    parameters: int  # that were fitted
    seconds: float  # beside the pass over the images
    weight: Tensor | None = None  # (K, D) and bias (K,) of a linear layer
    bias: Tensor | None = None


def fit(
    mode: str,
    train: FeatureSplit,
    evaluation: FeatureSplit,
    network: ProtoSphereForImageClassification,
    num_classes: int,
    *,
    temperature: float = 0.1,
    epochs: int = 90,
    neighbors: int = 20,
    seed: int = 0,
) -> FrozenClassifier:
    """The classifier of one of `FROZEN_MODES`: cosines of prototypes and of the normalised probe
    are divided by the temperature, the epochs are of the probes, the neighbors of knn."""
    if mode in ("prototypes", "knn"):
        started = time.perf_counter()
        known, embeddings = (embedded(network, split)[0] for split in (train, evaluation))
        labels, prototypes = train.labels.to(known.device), None
        if mode == "prototypes":
            prototypes = class_means(known, labels, num_classes, group="local")
            logits = embeddings @ prototypes.to(embeddings).T / temperature
        else:
            logits = _knn(known, labels, embeddings, num_classes, neighbors)
        seconds = time.perf_counter() - started
        return FrozenClassifier(embeddings, logits, prototypes, 0, seconds)
    device = network.device
    features = train.versions[0].to(device), evaluation.versions[0].to(device)
    probe = train_probe(
        mode.removesuffix("_probe"), (features[0], train.labels.to(device)),
        (features[1], evaluation.labels.to(device)), num_classes,
        epochs=epochs, temperature=temperature, seed=seed,
    )  # fmt: skip
    return FrozenClassifier(
        F.normalize(features[1], dim=1), probe.logits, F.normalize(probe.weight, dim=1),
        sum(part.numel() for part in (probe.weight, probe.bias) if part is not None),
        probe.training_seconds, probe.weight, probe.bias,
    )  # fmt: skip


def _knn(
    known: Tensor, labels: Tensor, embeddings: Tensor, num_classes: int, neighbors: int
) -> Tensor:
    """(N, K) log shares of the votes."""
    neighbors = min(neighbors, len(labels))
    logits = []
    for block in embeddings.split(1024):  # no N x N matrix
        cosines, nearest = (block @ known.T).topk(neighbors)  # (n, neighbors)
        # Of the largest 1 less the nearest: the same shares, and none overflows.
        votes = ((cosines - cosines[:, :1]) / KNN_TEMPERATURE).exp()
        shares = votes.new_zeros(len(block), num_classes)
        shares.scatter_add_(1, labels[nearest], votes)
        logits.append((shares / shares.sum(1, keepdim=True)).log())
    return torch.cat(logits)


@torch.no_grad()
def as_model(
    mode: str,
    classifier: FrozenClassifier,
    network: ProtoSphereForImageClassification,
    class_names: list[str],
    temperature: float,
) -> ProtoSphereForImageClassification | None:
    """A model that classifies as the classifier does; None for knn, which needs its images."""
    if mode == "knn":
        return None
    objective = "cross_entropy" if mode == "linear_probe" else "normface"
    head = {"projection": "none"}
    if mode == "prototypes":
        objective = network.config.objective if network.config.has_prototypes else objective
        head = {"prototypes": "class_means"}
    head["softmax_temperature"] = temperature
    model = with_new_classes(network, class_names, objective=objective, **head)
    if mode == "linear_probe":
        model.classifier.weight.copy_(classifier.weight)
        model.classifier.bias.copy_(classifier.bias)
    else:
        model.set_prototypes(classifier.prototypes)
    return model
