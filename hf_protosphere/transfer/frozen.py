"""Classifiers on a frozen network, for transfer without training it: one pass over the images.

- prototypes: the class means, as after SCL (arXiv 2605.20302): of the embeddings, or, where images
  that were held out say so, of the backbone's features after `whitening`.
- linear_probe, normalized_linear_probe: a linear layer on the backbone's features (`probes`).
- knn: the nearest training images vote, each with exp(cosine / temperature) (Wu et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.image_cache import FeatureSplit
from ..inference.covariance import covariance_within_classes
from ..inference.features import embedded
from ..inference.probes import Probe, held_out_pairs
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..prototypes import class_means
from ..retrieval.neighbours import nearest
from ..training.adaptation import with_new_classes

KNN_TEMPERATURE = 0.07  # Wu et al.'s
# Of the covariance within classes. 1/2 makes it the identity, as linear discriminant analysis has it; 1/4
# stops halfway, and is best of few images.
POWERS = (0.25, 0.5)


@torch.no_grad()
def whitenings(features: Tensor, labels: Tensor) -> dict[float, nn.Linear]:
    """The maps x → Σ^−power (x − m) for `POWERS`, of the mean m of all images (N, F) and the covariance Σ within
    their classes, labels (N,)."""
    _, variances, axes = covariance_within_classes(features, labels)
    mean, dim = features.mean(0, dtype=torch.float64), features.shape[1]
    maps = {}
    for power in POWERS:
        made = maps[power] = nn.Linear(dim, dim, device=mean.device, dtype=mean.dtype)
        made.weight.copy_((axes * variances**-power) @ axes.T)
        made.bias.copy_(-made.weight @ mean)
        made.float()
    return maps


@torch.no_grad()
def of_class_means(
    network: ProtoSphereForImageClassification, train: FeatureSplit, class_names: list[str],
    validation: FeatureSplit | None = None,
) -> tuple[ProtoSphereForImageClassification, float | None]:  # fmt: skip
    """The network with the class means of the training images for prototypes, which are not trained.

    They are those of its embeddings, or of its features under one of the `whitenings`, which is then the projection:
    whichever classifies the validation images best, or in cross-validation those of training. Beside the model comes
    its accuracy on what was held out, None where a class has one image."""
    device = network.device

    def spaces(split: FeatureSplit) -> dict[float, nn.Linear | None]:
        return {0.0: None} | whitenings(split.versions[0].to(device), split.labels.to(device))

    def embed(split: FeatureSplit, made: nn.Linear | None) -> Tensor:
        if made is None:
            return embedded(network, split)[0]
        return F.normalize(made(split.versions[0].to(device)), dim=1)

    def means(split: FeatureSplit, made: nn.Linear | None) -> Tensor:
        return class_means(embed(split, made), split.labels.to(device), len(class_names), group="local")

    pairs, right = held_out_pairs(train, validation), dict.fromkeys((0.0, *POWERS), 0)
    for fit_on, held in pairs:
        for power, made in spaces(fit_on).items():
            predicted = (embed(held, made) @ means(fit_on, made).T).argmax(1)
            right[power] += (predicted.cpu() == held.labels).sum().item()
    power = max(right, key=right.get)
    config, made = network.config, spaces(train)[power] if power else None
    head = {"prototypes": "class_means", "objective": config.objective if config.has_prototypes else "normface"}
    if made is None:
        head["softmax_temperature"] = config.softmax_temperature
    else:
        head |= {"projection": "linear", "projection_dim": made.out_features, "projection_dropout": 0.0}
    model = with_new_classes(network, class_names, **head).to(device)
    if made is not None:
        model.protosphere.projection[0].load_state_dict(made.state_dict())
    model.set_prototypes(means(train, made))
    images = sum(len(held) for _, held in pairs)
    return model, right[power] / images if images else None


def knn(known: Tensor, labels: Tensor, embeddings: Tensor, num_classes: int, neighbors: int) -> Tensor:
    """(N, K) log shares of the votes for embeddings (N, D), of those known with their labels."""
    found = nearest(embeddings, known, neighbors)
    # Of the largest 1 less the nearest: the same shares, and none overflows.
    votes = ((found.cosines - found.cosines[:, :1]) / KNN_TEMPERATURE).exp()
    shares = votes.new_zeros(len(votes), num_classes).scatter_add_(1, labels[found.rows], votes)
    return (shares / shares.sum(1, keepdim=True)).log()


@torch.no_grad()
def of_probe(
    probe: Probe, network: ProtoSphereForImageClassification, class_names: list[str]
) -> ProtoSphereForImageClassification:
    """A model that classifies images as the probe does the network's features of them."""
    objective = "cross_entropy" if probe.kind == "linear" else "normface"
    head = {"softmax_temperature": probe.temperature, "objective": objective, "projection": "none"}
    model = with_new_classes(network, class_names, **head).to(network.device)
    if probe.kind == "linear":
        model.classifier.load_state_dict(probe.state_dict())
    else:
        model.set_prototypes(F.normalize(probe.weight, dim=1))
    return model
