"""Prototype contrast on the unit sphere: NormFace, NTCE, NONL and SupCon.

With embeddings u_i and prototypes w_c of unit norm, a batch of M instances, K classes, temperature
t and s_jc = w_c·u_j / t, the objectives of "Neural Collapse by Design" (Koromilas et al., ICML
2026, arXiv 2605.20302) are

    NormFace   mean_i [ logsumexp_c s_ic              − s_i,yi ]   contrast: the K prototypes
    NTCE       mean_i [ logsumexp_j s_j,yi            − s_i,yi ]   contrast: the M instances
    NONL       mean_i [ logsumexp_{j: yj ≠ yi} s_j,yi − s_i,yi ]   contrast: other classes' only
    SupCon     mean_i [ logsumexp_{j ≠ i} u_i·u_j / t − mean_{p: yp = yi, p ≠ i} u_i·u_p / t ]

All four are one operation, a log-sum-exp over one side of a matrix of similarities, computed by
`ContrastLogSumExp`. In NTCE and NONL the anchor is the prototype, so the batch enters
through one log-sum-exp *per class*: O(M·K) work, no M×M matrix, K numbers to exchange between
processes. SupCon's denominator is NONL's with every instance as the prototype of its own class.

This file travels to the Hub with every checkpoint and imports torch and `contrast.py` only.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .contrast import (
    ContrastLogSumExp,
    GatherBatches,
    Group,
    GroupLogSumExp,
    PairwiseLogSumExp,
    compute_dtype,
    full_precision,
    readable,
    resolve_group,
    rows_per_chunk,
)

Reduction = Literal["mean", "sum", "none"]


def normface_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    group: Group = None,
    normalize: bool = True,
) -> Tensor:
    """Softmax cross-entropy on cosines: every instance against the K prototypes.

        L = mean_i [ logsumexp_c w_c·u_i / t − w_yi·u_i / t ]

    Wang et al., "NormFace", 2017; the normalised softmax of arXiv 2605.20302. Prefer `ntce_loss` or
    `nonl_loss` where the batch is larger than the number of classes: they have more negatives.

    Arguments, errors and distribution are those of `ntce_loss`.
    """
    terms = _prototype_terms(
        embeddings, prototypes, labels, temperature, weight, ignore_index, chunk_size, group,
        normalize, over="prototypes", exclude_own_class=False,
    )  # fmt: skip
    return _reduce(terms, reduction, group)


def ntce_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    group: Group = None,
    normalize: bool = True,
) -> Tensor:
    """NTCE: the prototype of each instance's class against all M instances of the batch.

        L = mean_i [ logsumexp_j w_yi·u_j / t − w_yi·u_i / t ]

    "Neural Collapse by Design", arXiv 2605.20302. Its relative `nonl_loss` leaves the instances of
    the own class out of the contrast, which decouples alignment from uniformity.

    Args:
        embeddings: (M, D), any float dtype. Computed in float32 at least, with autocast off.
        prototypes: (K, D), one row per class, any float dtype.
        labels: (M,) int64 in [0, K), or `ignore_index`.
        temperature: t > 0.
        weight: (K,) weight of each class, as in `torch.nn.functional.cross_entropy`: the mean is
            divided by the sum of the instances' weights.
        ignore_index: instances with this label take no part, neither as anchors nor as contrast.
        reduction: "mean", "sum" or "none" ((M,), zero for ignored instances).
        chunk_size: prototypes handled at a time. `None` keeps the (K, M) similarities while there
            are at most `MAX_SIMILARITIES` of them; above, and whenever a size is given, they are
            recomputed chunk by chunk in the backward pass and only log-sum-exps are kept.
        group: the processes whose union of batches is the contrast set. `None`: the default group
            when one is initialised. "local": this process alone. Every process of the group must
            make the call; value and *averaged* gradients (what DistributedDataParallel computes)
            are those of one process with the concatenated batch. K-sized reductions are exchanged,
            never embeddings.
        normalize: divide embeddings and prototypes by their L2 norm first. With `False` they are
            taken as they are, and no gradient flows through a normalisation.

    Returns:
        A scalar, or (M,) with `reduction="none"`, in float32 (float64 for float64 inputs). Zero,
        and still connected to the graph, when no instance takes part. Differentiable once.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, an unknown
            reduction.
        IndexError: labels outside [0, K), on the CPU. On CUDA a device-side assertion, which needs
            no synchronisation, as in torch.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss = ntce_loss(embeddings, prototypes, torch.tensor([0, 1]), temperature=1.0)
        >>> round(loss.item(), 4)
        0.3133
    """
    terms = _prototype_terms(
        embeddings, prototypes, labels, temperature, weight, ignore_index, chunk_size, group,
        normalize, over="instances", exclude_own_class=False,
    )  # fmt: skip
    return _reduce(terms, reduction, group)


def nonl_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    group: Group = None,
    normalize: bool = True,
) -> Tensor:
    """NONL: the prototype of each instance's class against the instances of the *other* classes.

        L = mean_i [ logsumexp_{j: yj ≠ yi} w_yi·u_j / t − w_yi·u_i / t ]

    "Neural Collapse by Design", arXiv 2605.20302: normalised over negatives only, so that pulling
    a class together does not weaken the push between classes. The value may be negative.

    A batch that holds a single class has no negatives: its anchors are left out, counted
    (`NONLLoss.left_out`) and warned of once, on the CPU; the loss is a zero connected to the graph.

    Arguments, errors and distribution are those of `ntce_loss`.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> nonl_loss(embeddings, prototypes, torch.tensor([0, 1]), temperature=1.0).item()
        -1.0
    """
    terms = _prototype_terms(
        embeddings, prototypes, labels, temperature, weight, ignore_index, chunk_size, group,
        normalize, over="instances", exclude_own_class=True,
    )  # fmt: skip
    return _reduce(terms, reduction, group)


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    group: Group = None,
    normalize: bool = True,
) -> Tensor:
    """Supervised contrastive loss: every view against every other view of the batch.

        L = mean_i [ logsumexp_{j ≠ i} u_i·u_j / t − mean_{p: yp = yi, p ≠ i} u_i·u_p / t ]

    Khosla et al. 2020 (arXiv 2004.11362), the "out" form, base temperature equal to temperature.
    The positives' mean needs only the class sums, O(N·D). The similarities are walked in blocks of
    anchors, each pair computed once, and recomputed in the backward pass. After training with it,
    the class means are the classifier (arXiv 2605.20302): `hf_protosphere.prototypes.class_means`.

    Args:
        embeddings: (M, V, D), V views of M instances, or (M, D) for one view. N = M·V.
        labels: (M,) int64, any values, or `ignore_index`.
        weight: (K,) indexed by label.
        chunk_size: anchors handled at a time; `None` chooses, and never keeps N×N similarities.
        group: as in `ntce_loss`. Embeddings are gathered, with gradients.

    The rest as in `ntce_loss`. Anchors without a positive are left out of the mean
    (`SupConLoss.left_out` counts them).

    Returns:
        A scalar, or (M, V) with `reduction="none"`.

    Example:
        >>> views = torch.eye(2)[:, None].repeat(1, 2, 1)  # two classes, two equal views each
        >>> round(supcon_loss(views, torch.tensor([0, 1]), temperature=1.0).item(), 4)
        0.5514
    """
    terms = _supcon_terms(
        embeddings, labels, temperature, weight, ignore_index, chunk_size, group, normalize
    )
    losses = _reduce(terms, reduction, group)
    return losses.view(embeddings.shape[:-1]) if reduction == "none" else losses


class _LossModule(nn.Module):
    """Stores a loss function's arguments; `left_out` counts the last batch's unusable anchors."""

    weight: Tensor | None

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        chunk_size: int | None = None,
        group: Group = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.temperature = _checked_temperature(temperature)
        self.register_buffer("weight", weight, persistent=False)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.chunk_size = chunk_size
        self.group = group
        self.normalize = normalize
        self.left_out: Tensor | None = None

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"

    def _finish(self, terms: _Terms) -> Tensor:
        self.left_out = terms.left_out
        return _reduce(terms, self.reduction, self.group)


class _PrototypeLossModule(_LossModule):
    _over: Literal["prototypes", "instances"]
    _exclude_own_class = False

    def forward(self, embeddings: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
        terms = _prototype_terms(
            embeddings, prototypes, labels, self.temperature, self.weight, self.ignore_index,
            self.chunk_size, self.group, self.normalize, self._over, self._exclude_own_class,
        )  # fmt: skip
        return self._finish(terms)


class NormFaceLoss(_PrototypeLossModule):
    """`normface_loss` as a module: `loss(embeddings, prototypes, labels)`."""

    _over = "prototypes"


class NTCELoss(_PrototypeLossModule):
    """`ntce_loss` as a module: `loss(embeddings, prototypes, labels)`."""

    _over = "instances"


class NONLLoss(_PrototypeLossModule):
    """`nonl_loss` as a module: `loss(embeddings, prototypes, labels)`."""

    _over = "instances"
    _exclude_own_class = True


class SupConLoss(_LossModule):
    """`supcon_loss` as a module: `loss(embeddings, labels)`."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        terms = _supcon_terms(
            embeddings, labels, self.temperature, self.weight, self.ignore_index,
            self.chunk_size, self.group, self.normalize,
        )  # fmt: skip
        losses = self._finish(terms)
        return losses.view(embeddings.shape[:-1]) if self.reduction == "none" else losses


class _Terms(NamedTuple):
    losses: Tensor  # (M,), zero where the instance takes no part
    weights: Tensor  # (M,), zero where the instance takes no part
    left_out: Tensor  # 0-d int64: anchors that had nothing to be contrasted with


def _prototype_terms(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float,
    weight: Tensor | None,
    ignore_index: int,
    chunk_size: int | None,
    group: Group,
    normalize: bool,
    over: Literal["prototypes", "instances"],
    exclude_own_class: bool,
) -> _Terms:
    temperature = _checked_temperature(temperature)
    if prototypes.dim() != 2 or embeddings.dim() != 2 or embeddings.shape[1] != prototypes.shape[1]:
        raise ValueError(
            "expected embeddings (M, D) and prototypes (K, D), one row per class, but got "
            f"embeddings {tuple(embeddings.shape)} and prototypes {tuple(prototypes.shape)}."
        )
    num_classes = len(prototypes)
    keep = _kept(labels, len(embeddings), ignore_index, num_classes)
    own_class = torch.where(keep, labels, -1)

    lse, positives, _ = ContrastLogSumExp.apply(
        prototypes, embeddings, own_class, keep, temperature, over == "instances",
        exclude_own_class, rows_per_chunk(chunk_size, num_classes, len(embeddings)), normalize,
    )  # fmt: skip
    index = own_class.clamp_min(0)
    if over == "instances":  # lse is (K,), one per anchoring prototype: hand it to its instances
        if (processes := resolve_group(group)) is not None:
            lse = GroupLogSumExp.apply(lse, processes)
        lse = lse.index_select(0, index)  # (M,)

    has_contrast = lse.detach() != -math.inf  # NaN stays in, to be seen
    left_out = (keep & ~has_contrast).sum()
    if exclude_own_class and readable(left_out) and left_out:
        warnings.warn(
            f"nonl_loss: the batch holds a single class, so {int(left_out)} anchors have no "
            "negatives and are left out. Shuffle the data, or use a larger batch.",
            stacklevel=4,
        )
    included = keep & has_contrast
    losses = torch.where(included, lse - positives, 0.0)
    return _Terms(losses, _sample_weights(included, index, weight, losses.dtype), left_out)


def _supcon_terms(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float,
    weight: Tensor | None,
    ignore_index: int,
    chunk_size: int | None,
    group: Group,
    normalize: bool,
) -> _Terms:
    temperature = _checked_temperature(temperature)
    if embeddings.dim() not in (2, 3):
        raise ValueError(
            f"expected embeddings (M, V, D) or (M, D), but got {tuple(embeddings.shape)}."
        )
    with full_precision(embeddings):
        keep = _kept(labels, len(embeddings), ignore_index, num_classes=None)
        features = embeddings.reshape(-1, embeddings.shape[-1])  # (N, D)
        views = embeddings.shape[1] if embeddings.dim() == 3 else 1
        labels, keep = labels.repeat_interleave(views), keep.repeat_interleave(views)  # (N,)
        features = features.to(compute_dtype(features))
        if normalize:
            norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
            features = features / norms.masked_fill(norms == 0, 1)

        all_features, all_labels, all_keep, offset = features, labels, keep, 0
        if (processes := resolve_group(group)) is not None:
            all_features, offset = GatherBatches.apply(features, processes)
            all_labels, _ = GatherBatches.apply(labels, processes)
            all_keep, _ = GatherBatches.apply(keep.long(), processes)
            all_keep = all_keep.bool()
        here = slice(offset, offset + len(features))

        # A class is known by the place of its label among the sorted labels: below the batch size
        # whatever the label's value, and found without a synchronisation.
        order = all_labels.sort().values
        class_of = torch.searchsorted(order, all_labels)  # (N_all,)
        kept_features = all_features * all_keep[:, None]
        sums = torch.zeros_like(all_features).index_add(0, class_of, kept_features)
        counts = torch.zeros_like(all_features[:, 0]).index_add(
            0, class_of, all_keep.to(all_features.dtype)
        )
        others = counts.index_select(0, class_of[here]) - 1  # (N,) positives of each anchor
        other_sums = sums.index_select(0, class_of[here]) - features
        positives = (features * other_sums).sum(-1) / (temperature * others.clamp_min(1))

        chunk_rows = rows_per_chunk(chunk_size, len(features), len(all_features))
        if processes is None:
            lse = PairwiseLogSumExp.apply(features, keep, temperature, chunk_size)
        else:
            position = torch.arange(len(all_features), device=features.device) - offset
            own_row = torch.where((position >= 0) & (position < len(features)), position, -1)
            lse, _, _ = ContrastLogSumExp.apply(
                features, all_features, own_row, all_keep, temperature, True, True, chunk_rows,
                False,
            )  # fmt: skip
        included = keep & (others > 0)
        losses = torch.where(included, lse - positives, 0.0)
        index = labels.clamp_min(0)
        weights = _sample_weights(included, index, weight, losses.dtype)
        return _Terms(losses, weights, (keep & ~included).sum())


def _reduce(terms: _Terms, reduction: Reduction, group: Group) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', but got {reduction!r}.")
    weighted = terms.losses * terms.weights
    if reduction == "none":
        return weighted
    processes = resolve_group(group)
    total = weighted.sum()
    if reduction == "mean":
        denominator = terms.weights.sum()
        if processes is not None:
            dist.all_reduce(denominator, group=processes)
        total = total / torch.where(denominator == 0, 1.0, denominator)
    if processes is not None:
        # Gradients are averaged over the processes afterwards, so each contributes its share times
        # their number; the value is the whole batch's on every process.
        value = total.detach().clone()
        dist.all_reduce(value, group=processes)
        share = total * dist.get_world_size(processes)
        total = share + (value - share.detach())
    return total


def _checked_temperature(temperature: float) -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, but got {temperature}.")
    return float(temperature)


def _kept(labels: Tensor, size: int, ignore_index: int, num_classes: int | None) -> Tensor:
    """(M,) bool: not ignored. Checks labels on the way."""
    if labels.shape != (size,):
        raise ValueError(f"expected labels of shape ({size},), but got {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"expected integer labels, but got {labels.dtype}.")
    keep = labels != ignore_index
    if num_classes is None:
        return keep
    in_range = ~keep | ((labels >= 0) & (labels < num_classes))
    message = f"labels must be in [0, {num_classes}) or {ignore_index} (ignore_index)"
    if not readable(labels):
        torch._assert_async(in_range.all(), message)
    elif not in_range.all():
        wrong = labels[~in_range].unique().tolist()
        raise IndexError(f"{message}, but got {wrong[:5]}{'...' if len(wrong) > 5 else ''}.")
    return keep


def _sample_weights(
    included: Tensor, index: Tensor, weight: Tensor | None, dtype: torch.dtype
) -> Tensor:
    weights = included.to(dtype)
    return weights if weight is None else weights * weight.to(dtype).index_select(0, index)
