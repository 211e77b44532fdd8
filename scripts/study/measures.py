"""What a training came to; and what a head makes of features: accuracy, calibration, collapse,
retrieval, unknown images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_protosphere.data.dataset import ImageDataset
from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.metrics.neural_collapse import NeuralCollapse
from hf_protosphere.modeling_protosphere import ProtoSphereForImageClassification
from hf_protosphere.open_set.confidence import (
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from hf_protosphere.open_set.detection import detection_metrics
from hf_protosphere.prototypes import class_means, cosines_to
from hf_protosphere.retrieval.neighbours import nearest, retrieval_metrics
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.transfer.features import embedded

NEIGHBOURS = 10
QUERIES = 2000  # of retrieval, at most
SCORES = ("max_softmax", "energy", "prototypes", "class means", "neighbours")  # of `unknown`


def of_training(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds, accuracies (%) and what collapse attains, of a finished run in its folder."""
    measured: dict[str, Any] = {"seconds": results["training_seconds"]}
    for role in ("validation", "test"):
        for name in ("accuracy", "class_means_accuracy"):
            measured[f"{role}_{name}"] = 100 * results[role][name]
    last = read_metrics(folder / "metrics.jsonl")[-1]
    measured["train_collapse"] = last["train_neural_collapse"]["attained"]
    return measured | {"test_collapse": results["test"]["neural_collapse"]["attained"]}


def part(split: FeatureSplit, rows: np.ndarray, labels: np.ndarray | None = None) -> FeatureSplit:
    labels = split.labels[rows] if labels is None else torch.as_tensor(labels)
    return FeatureSplit(split.versions[:, rows], labels)


def classification(model: ProtoSphereForImageClassification, features: ImageDataset) -> dict[str, Any]:
    """Accuracies (mean over classes too, by the head and by class means), and calibration."""
    measured: dict[str, Any] = {}
    splits, count = features.splits, features.num_labels
    trained = [embedded(model, part(splits["train"], slice(None)))[0]]
    means = class_means(trained[0], splits["train"].labels, count)
    logits = {role: embedded(model, splits[role])[1] for role in ("validation", "test")}
    for role in logits:
        labels = splits[role].labels
        by_means = embedded(model, splits[role])[0] @ means.T
        for name, scores in (("", logits[role]), ("means_", by_means)):
            right = (scores.argmax(1) == labels).double()
            measured[f"{role}_{name}accuracy"] = 100 * right.mean().item()
            classes = [right[labels == c].mean().item() for c in labels.unique()]
            measured[f"{role}_{name}class_accuracy"] = 100 * float(np.mean(classes))
    labels, scores = splits["test"].labels, logits["test"]
    temperature = fit_temperature(logits["validation"], splits["validation"].labels) or 1.0
    for name, t in (("", 1.0), ("scaled_", temperature)):
        error = reliability(scores / t, labels).expected_calibration_error
        measured[f"{name}calibration_error"] = 100 * error
        measured[f"{name}nll"] = negative_log_likelihood(scores, labels, t)
    return measured


def collapse(model: ProtoSphereForImageClassification, features: ImageDataset) -> dict[str, Any]:
    """What `NeuralCollapse` attains on training and test images, in per cent."""
    measured = {}
    for role in ("train", "test"):
        embeddings, _ = embedded(model, features.splits[role])
        metric = NeuralCollapse(features.num_labels, embeddings.shape[1])
        metric.update(embeddings, features.splits[role].labels)
        measured[f"{role}_collapse"] = metric.compute(model.prototypes.detach())["attained"]
    return measured


def hidden(model: ProtoSphereForImageClassification, features: Tensor) -> Tensor:
    """(N, H), unit norm: the layer before the projection's last; the features, where it has one."""
    layers = model.protosphere.projection
    with torch.no_grad():
        before = layers[:-1](features) if isinstance(layers, nn.Sequential) else features
    return F.normalize(before, dim=1)


def retrieval(model: ProtoSphereForImageClassification, split: FeatureSplit, name: str) -> dict[str, float]:
    """mAP@R among the images of a split, by the embeddings and by the layer before them."""
    some = np.random.default_rng(0).permutation(len(split))[:QUERIES]
    split = part(split, np.sort(some))
    spaces = {"": embedded(model, split)[0], "hidden_": hidden(model, split.versions[0])}
    return {
        f"{name}_{space}map": 100
        * retrieval_metrics(x, split.labels, x, split.labels, leave_one_out=True)["mean_average_precision_at_r"]
        for space, x in spaces.items()
    }


def unknown(model: ProtoSphereForImageClassification, features: ImageDataset, others: Tensor) -> dict[str, float]:
    """AUROC of telling test images from unknown ones, by five scores."""
    train, _ = embedded(model, features.splits["train"])
    means = class_means(train, features.splits["train"].labels, features.num_labels)

    def scores(split: FeatureSplit) -> dict[str, Tensor]:
        embeddings, logits = embedded(model, split)
        return {
            "max_softmax": logits.double().softmax(1).amax(1),
            "energy": logits.double().logsumexp(1),
            "prototypes": cosines_to(embeddings, model.prototypes.detach().to(embeddings)).amax(-1),
            "class means": cosines_to(embeddings, means.to(embeddings)).amax(-1),
            "neighbours": nearest(embeddings, train, NEIGHBOURS).cosines[:, -1],
        }

    labels = torch.zeros(len(others), dtype=torch.int64)
    known, strange = scores(features.splits["test"]), scores(FeatureSplit(others, labels))
    return {name: 100 * detection_metrics(known[name], strange[name])["auroc"] for name in known}
