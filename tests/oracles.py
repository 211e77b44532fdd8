"""The losses written from their equations: double loops, float64, nothing clever."""

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
    """NormFace, NTCE or NONL of (M, D), (K, D), (M,)."""
    labels = labels.tolist()
    kept = [i for i, label in enumerate(labels) if label != ignore_index]
    losses, weights = [], []
    for i, label in enumerate(labels):
        if objective == "normface":
            contrast = [_similarity(embeddings[i], w, temperature) for w in prototypes]
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


def supcon_loss(
    views, labels, temperature, *, weight=None, ignore_index=-100, reduction="mean"
):  # fmt: skip
    """SupCon of (M, V, D) and (M,)."""
    rows = [
        (views[i, v], labels[i].item()) for i in range(len(views)) for v in range(views.shape[1])
    ]
    losses, weights = [], []
    for i, (anchor, label) in enumerate(rows):
        others = [row for j, row in enumerate(rows) if j != i and row[1] != ignore_index]
        positives = [row for row, other in others if other == label]
        if label == ignore_index or not positives:
            losses.append(views.sum() * 0)
            continue
        weights.append(1.0 if weight is None else weight[label].item())
        lse = _logsumexp([_similarity(anchor, row, temperature) for row, _ in others])
        alike = torch.stack([_similarity(anchor, row, temperature) for row in positives]).mean()
        losses.append(weights[-1] * (lse - alike))
    return _reduced(losses, weights or [1.0], reduction)
