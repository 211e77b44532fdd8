"""The losses written from their equations: double loops, float64, nothing clever."""

import math

import torch


def _similarity(a, b, temperature):
    return (a / a.norm()) @ (b / b.norm()) / temperature


def _logsumexp(terms):
    return torch.stack(terms).logsumexp(0)


def _reduced(losses, weights, reduction):
    if reduction == "none":
        return torch.stack(losses)
    total = torch.stack(losses).sum()
    return total / sum(weights) if reduction == "mean" else total


def prototype_loss(
    objective, embeddings, prototypes, labels, temperature,
    *, weight=None, ignore_index=-100, reduction="mean",
):  # fmt: skip
    """The losses with prototypes, of (M, D), (K, D), (M,)."""
    labels = labels.tolist()
    kept = [i for i, label in enumerate(labels) if label != ignore_index]
    losses, weights = [], []
    for i, label in enumerate(labels):
        if objective in ("normface", "decoupled_normface"):
            contrast = [
                _similarity(embeddings[i], w, temperature)
                for c, w in enumerate(prototypes)
                if objective == "normface" or c != label
            ]
        else:
            contrast = [
                _similarity(embeddings[j], prototypes[label], temperature)
                for j in kept
                if i in kept and (objective == "ntce" or labels[j] != label)
            ]
        if i not in kept or not contrast:
            losses.append(embeddings.sum() * 0)
            continue
        weights.append(1.0 if weight is None else weight[label].item())
        positive = _similarity(embeddings[i], prototypes[label], temperature)
        losses.append(weights[-1] * (_logsumexp(contrast) - positive))
    return _reduced(losses, weights or [1.0], reduction)


def margin_loss(embeddings, prototypes, labels, temperature, *, margin, margin_type, weight=None):
    """NormFace with a margin: cross-entropy of similarities whose own one is changed."""
    losses, weights = [], []
    for i, label in enumerate(labels.tolist()):
        scores = torch.stack([_similarity(embeddings[i], w, 1.0) for w in prototypes])
        angle = scores[label].acos()
        if margin_type == "cosface":
            own = scores[label] - margin
        elif angle + margin <= torch.pi:
            own = (angle + margin).cos()
        else:
            own = scores[label] - margin * math.sin(margin)
        scores = torch.stack([*scores[:label], own, *scores[label + 1 :]]) / temperature
        weights.append(1.0 if weight is None else weight[label].item())
        losses.append(weights[-1] * -scores.log_softmax(0)[label])
    return _reduced(losses, weights, "mean")


def dot_regression_loss(embeddings, prototypes, labels):
    losses = [
        (_similarity(embeddings[i], prototypes[label], 1.0) - 1) ** 2 / 2
        for i, label in enumerate(labels.tolist())
        if label != -100
    ]
    return torch.stack(losses).mean()


def supcon_loss(views, labels, temperature, **options):
    return views_loss("scl", views, labels, temperature, **options)


def views_loss(objective, views, labels, temperature, *, weight=None, ignore_index=-100, reduction="mean"):
    """SupCon, its decoupled form or SINCERE, of (M, V, D) and (M,)."""
    rows = [(views[i, v], labels[i].item()) for i in range(len(views)) for v in range(views.shape[1])]
    losses, weights = [], []
    for i, (anchor, label) in enumerate(rows):
        others = [row for j, row in enumerate(rows) if j != i and row[1] != ignore_index]
        positives = [row for row, other in others if other == label]
        negatives = [row for row, other in others if other != label]
        needed = [positives, negatives] if objective == "decoupled_scl" else [positives]
        if label == ignore_index or not all(needed):
            losses.append(views.sum() * 0)
            continue
        weights.append(1.0 if weight is None else weight[label].item())
        against = {"scl": [row for row, _ in others], "decoupled_scl": negatives}
        pairs = []
        for positive in positives:
            own = _similarity(anchor, positive, temperature)
            contrast = against.get(objective, [*negatives, positive])
            pairs.append(_logsumexp([_similarity(anchor, row, temperature) for row in contrast]) - own)
        losses.append(weights[-1] * torch.stack(pairs).mean())
    return _reduced(losses, weights or [1.0], reduction)
