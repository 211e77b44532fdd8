"""Classifiers on a frozen network, for transfer without training it: one pass over the images.

- prototypes: the class means of the embeddings, as after SCL (arXiv 2605.20302).
- linear_probe, normalized_linear_probe: a linear layer on the backbone's features (`probes`).
- knn: the nearest training images vote, each with exp(cosine / temperature) (Wu et al. 2018).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.image_cache import FeatureSplit
from ..inference.features import embedded
from ..inference.probes import Probe
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..prototypes import class_means
from ..training.adaptation import with_new_classes

KNN_TEMPERATURE = 0.07  # Wu et al.'s


@torch.no_grad()
def of_class_means(network: ProtoSphereForImageClassification, train: FeatureSplit, num_classes: int) -> Probe:
    """Of embeddings, not of features, by their class means, which are not trained."""
    embeddings, _ = embedded(network, train)
    means = class_means(embeddings, train.labels.to(embeddings.device), num_classes, group="local")
    temperature = network.config.softmax_temperature
    probe = Probe("normalized_linear", means.shape[1], num_classes, temperature=temperature)
    probe.weight.copy_(means)
    return probe.requires_grad_(False).to(embeddings.device)


def knn(known: Tensor, labels: Tensor, embeddings: Tensor, num_classes: int, neighbors: int) -> Tensor:
    """(N, K) log shares of the votes for embeddings (N, D), of those known with their labels."""
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
    mode: str, probe: Probe, network: ProtoSphereForImageClassification, class_names: list[str]
) -> ProtoSphereForImageClassification:
    """A model that classifies images as the probe does what the network makes of them."""
    objective = "cross_entropy" if mode == "linear_probe" else "normface"
    head = {"projection": "none"}
    if mode == "prototypes":
        objective = network.config.objective if network.config.has_prototypes else objective
        head = {"prototypes": "class_means"}
    head |= {"softmax_temperature": probe.temperature, "objective": objective}
    model = with_new_classes(network, class_names, **head)
    if mode == "linear_probe":
        model.classifier.load_state_dict(probe.state_dict())
    else:
        model.set_prototypes(F.normalize(probe.weight, dim=1))
    return model
