"""Linear probes on frozen features: the baselines that fixed prototypes replace.

After supervised contrastive learning the class means of the embeddings are a classifier already, in one forward pass
(arXiv 2605.20302). The usual way is to throw the projection head away and train a linear layer on the backbone's
features; the normalised way trains one on the sphere. Both are trained here to the optimum, as the textbook has it:
features standardised, the strength of L2 chosen on images that were not trained on, L-BFGS."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from sklearn.model_selection import KFold, StratifiedKFold, StratifiedShuffleSplit
from torch import Tensor, nn

from ..data.image_cache import FeatureSplit
from ..objectives import default_temperature

# Inverse strengths of L2 as scikit-learn's C: of the sum of the losses, weights of standardised features.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
USUAL = 1e-2  # where there are no images to choose by
PATIENCE = 2  # weaker ones that are tried after the best
PROBE_VERSIONS = 8  # of each training image, for fair probes
FOLDS, MANY = 5, 5000  # of more images than that, one in ten is held out, once

Kind, Pairs = Literal["linear", "normalized_linear"], list[tuple[FeatureSplit, FeatureSplit]]


class Probe(nn.Module):
    """Features (M, F) to logits (M, K): "linear", with a bias, of features as they are; "normalized_linear", the
    cosines to rows of `weight` (K, F) over a temperature, by default NormFace's of so many classes."""

    def __init__(self, kind: Kind, dim: int, num_classes: int, *, temperature: float | None, seed: int = 0) -> None:
        super().__init__()
        temperature = temperature or default_temperature("normface", num_classes)
        weight = dim**-0.5 * torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(seed))
        self.kind, self.temperature, self.weight = kind, temperature, nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if kind == "linear" else None

    def forward(self, features: Tensor) -> Tensor:
        if self.bias is not None:
            return F.linear(features, self.weight, self.bias)
        features, weight = (F.normalize(x, dim=1) for x in (features, self.weight))
        return F.linear(features, weight) / self.temperature


def held_out_pairs(train: FeatureSplit, validation: FeatureSplit | None = None, joined: bool = False) -> Pairs:
    """What to fit on and what to choose by: the validation features, where there are some; else folds of the training
    features, each class in all of them (not of `joined` labels, which one image may have alone); none of one shot."""
    if validation is not None:
        return [(train, validation)]
    if joined:
        folds = KFold(min(FOLDS, len(train)), shuffle=True, random_state=0)
    elif (smallest := train.labels.unique(return_counts=True)[1].min().item()) < 2:
        return []
    elif len(train) > MANY:
        folds = StratifiedShuffleSplit(1, test_size=0.1, random_state=0)
    else:
        folds = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=0)
    return [(train.select(rows), train.select(held)) for rows, held in folds.split(train.labels, train.labels.numpy())]


def fit_probe(
    kind: Kind, train: FeatureSplit, num_classes: int, *, validation: FeatureSplit | None = None,
    temperature: float | None = None, members: Tensor | None = None, device: torch.device | str = "cpu",
) -> tuple[Probe, float | None]:  # fmt: skip
    """A linear layer with the least loss over all versions of the training images.

    "linear" is multinomial logistic regression, within rounding that of scikit-learn; the
    "normalized_linear" one, of NormFace's loss at its temperature, has no L2 to choose.

    Args:
        train: versions (A, N, F), labels (N,) in [0, num_classes).
        validation: to choose the strength by; without it, cross-validation.
        members: (S, K) of `memberships`, where labels are of S joined ones: one against all, chosen by the loss.

    Returns:
        The probe, for features as they are, and its accuracy on what was held out, or None, as with `members`.
    """
    pairs = held_out_pairs(train, validation, joined=members is not None) if kind == "linear" else []
    sizes = train.versions.shape[2], num_classes
    probes = [Probe(kind, *sizes, temperature=temperature).to(device) for _ in (train, *pairs)]
    best, chosen, found, waited = -math.inf, USUAL, [], 0
    for strength in STRENGTHS if pairs else ():
        fitted = [_fitted(probe, fit_on, strength, members) for probe, (fit_on, _) in zip(probes[1:], pairs)]
        value = sum(_score(probe, held, members) for probe, (_, held) in zip(fitted, pairs))
        if value > best:
            best, chosen, found, waited = value, strength, fitted, 0
        elif (waited := waited + 1) == PATIENCE:
            break
    kept = found[0] if found and validation is not None else _fitted(probes[0], train, chosen, members)
    images = sum(len(held) for _, held in pairs)
    return kept, best / images if images and members is None else None


def _fitted(probe: Probe, split: FeatureSplit, strength: float, members: Tensor | None) -> Probe:
    """The optimum, given for features as they are, and found for standardised ones, from where the probe stands."""
    x, labels = split.versions.flatten(0, 1).to(probe.weight), split.labels.repeat(len(split.versions))
    y = labels.to(x.device) if members is None else members.to(x)[labels]
    mean, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    mean, scale = (mean, scale) if probe.kind == "linear" else (torch.zeros_like(mean), torch.ones_like(scale))
    x = (x - mean) / scale
    optimizer = torch.optim.LBFGS(
        probe.parameters(), max_iter=1000, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=1e-9,
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = loss_of(probe(x), y)
        if probe.kind == "linear":
            value = value + probe.weight.square().sum() / (2 * strength * len(x))
        value.backward()
        return value

    optimizer.step(loss)
    made = Probe(probe.kind, x.shape[1], len(probe.weight), temperature=probe.temperature).to(x.device)
    with torch.no_grad():
        made.weight.copy_(probe.weight / scale)
        if probe.bias is not None:
            made.bias.copy_(probe.bias - made.weight @ mean)
    return made


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Of classes (N,), or of memberships (N, K) the sum over classes: each is learned by itself."""
    if targets.dim() == 1:
        return F.cross_entropy(logits, targets)
    return logits.shape[1] * F.multilabel_soft_margin_loss(logits, targets)


@torch.no_grad()
def _score(probe: Probe, held: FeatureSplit, members: Tensor | None) -> float:
    logits, labels = probe(held.versions[0].to(probe.weight)), held.labels.to(probe.weight.device)
    if members is not None:
        return -len(held) * loss_of(logits, members.to(logits)[labels]).item()
    return (logits.argmax(1) == labels).sum().item()
