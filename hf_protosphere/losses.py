"""Contrast on the unit sphere: NormFace, NTCE, NONL and SupCon; their relatives in `objectives.py`.

With embeddings u_i and prototypes w_c of unit norm, a batch of M instances, K classes, temperature t and
s_jc = w_c·u_j / t, the objectives of "Neural Collapse by Design" (Koromilas et al., ICML 2026, arXiv 2605.20302) are

    NormFace   mean_i [ logsumexp_c s_ic              − s_i,yi ]   contrast: the K prototypes
    NTCE       mean_i [ logsumexp_j s_j,yi            − s_i,yi ]   contrast: the M instances
    NONL       mean_i [ logsumexp_{j: yj ≠ yi} s_j,yi − s_i,yi ]   contrast: other classes' only
    SupCon     mean_i [ logsumexp_{j ≠ i} u_i·u_j / t − mean_{p: yp = yi, p ≠ i} u_i·u_p / t ]

All four are one operation, a log-sum-exp over one side of a matrix of similarities, computed by
`ContrastLogSumExp`. In NTCE and NONL the anchor is the prototype, so the batch enters
through one log-sum-exp *per class*: O(M·K) work, no M×M matrix, K numbers to exchange between
processes. SupCon's denominator is NONL's with every instance as the prototype of its own class.

Travels to the Hub with every checkpoint and imports torch and `contrast.py` only."""

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .contrast import (
    ContrastLogSumExp,
    Group,
    GroupLogSumExp,
    compute_dtype,
    contrast_vectors,
    full_precision,
    group_sum,
    readable,
    resolve_group,
    rows_per_chunk,
)

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The keywords that every loss takes, as a function and as a module.

    Args:
        weight: (K,) weight of each class, as in `torch.nn.functional.cross_entropy`: the mean is
            divided by the sum of the instances' weights.
        ignore_index: instances with this label take no part, neither as anchors nor as contrast.
        reduction: "mean", "sum" or "none" ((M,), zero for ignored instances).
        chunk_size: prototypes (SupCon: anchors) handled at a time. `None` keeps the (K, M) similarities while there
            are at most `MAX_SIMILARITIES` of them; above, and whenever a size is given, they are recomputed chunk by
            chunk in the backward pass and only log-sum-exps are kept. SupCon never keeps its (N, N).
        group: the processes whose union of batches is the contrast set. `None`: the default group when one is
            initialised. "local": this process alone. Every process of the group must make the call; value and
            *averaged* gradients (what DistributedDataParallel computes) are those of one process with the concatenated
            batch. K-sized reductions are exchanged, never embeddings; SupCon gathers them, with gradients.
        normalize: divide embeddings and prototypes by their L2 norm first. With `False` they are
            taken as they are, and no gradient flows through a normalisation.
    """

    weight: Tensor | None = None
    ignore_index: int = -100
    reduction: Reduction = "mean"
    chunk_size: int | None = None
    group: Group = None
    normalize: bool = True


OPTIONS = tuple(field.name for field in fields(LossOptions))


class Anchors(NamedTuple):
    """Which instances take part: (M,) each, of SupCon's views (M, V)."""

    kept: Tensor  # bool: their label is not `ignore_index`
    contrasted: Tensor  # bool: there is something to contrast them with
    classes: Tensor  # int64, index into the classes' weights; 0 where the label is ignored

    @property
    def left_out(self) -> Tensor:
        """0-d int64: how many had nothing to be contrasted with."""
        return (self.kept & ~self.contrasted).sum()


Terms = tuple[Tensor, Anchors]  # what one returns: (M,), or (M, V) of views, and who takes part


def loss_of(equation: Callable[..., Terms]) -> Callable[..., Tensor]:
    """The public function of an equation: takes `LossOptions` as keywords, and is reduced."""

    @functools.wraps(equation)
    def loss(*args: Any, **kwargs: Any) -> Tensor:
        options = LossOptions(**{name: kwargs.pop(name) for name in OPTIONS if name in kwargs})
        return _reduce(*equation(*args, **kwargs, options=options), options)

    *own, _ = inspect.signature(equation).parameters.values()
    keywords = inspect.signature(LossOptions).parameters.values()
    loss.__signature__ = inspect.Signature([*own, *keywords], return_annotation="Tensor")
    return loss


@loss_of
def normface_loss(
    embeddings: Tensor, prototypes: Tensor, labels: Tensor, temperature: float = 0.1,
    *, bias: Tensor | None = None, options: LossOptions,
) -> Terms:  # fmt: skip
    """Softmax cross-entropy on cosines: every instance against the K prototypes.

        L = mean_i [ logsumexp_c w_c·u_i / t − w_yi·u_i / t ]

    Wang et al., "NormFace", 2017; the normalised softmax of arXiv 2605.20302. Prefer `ntce_loss` or
    `nonl_loss` where the batch is larger than the number of classes: they have more negatives.

    Args:
        bias: (K,) added to the similarities with each class's prototype: τ·log(its share of the
            training images) is logit adjustment (Menon et al. 2021).

    The other arguments, errors and distribution are those of `ntce_loss`.
    """
    return contrast(embeddings, prototypes, labels, temperature, options, "prototypes", bias)[:2]


@loss_of
def ntce_loss(
    embeddings: Tensor, prototypes: Tensor, labels: Tensor, temperature: float = 0.1,
    *, queue: tuple[Tensor, Tensor] | None = None, options: LossOptions,
) -> Terms:  # fmt: skip
    """NTCE: the prototype of each instance's class against all M instances of the batch.

        L = mean_i [ logsumexp_j w_yi·u_j / t − w_yi·u_i / t ]

    "Neural Collapse by Design", arXiv 2605.20302. Its relative `nonl_loss` leaves the instances of
    the own class out of the contrast, which decouples alignment from uniformity.

    Args:
        embeddings: (M, D), any float dtype. Computed in float32 at least, with autocast off.
        prototypes: (K, D), one row per class, any float dtype.
        labels: (M,) int64 in [0, K), or `ignore_index`.
        temperature: t > 0.
        queue: (Q, D) embeddings and (Q,) labels of earlier batches, or `ignore_index`. They are
            contrasted with as well, as constants; they are no anchors.
        weight, ignore_index, reduction, chunk_size, group, normalize: see `LossOptions`.

    Returns:
        A scalar, or (M,) with `reduction="none"`, in float32 (float64 for float64 inputs). Zero,
        and still connected to the graph, when no instance takes part. Differentiable once.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, an unknown reduction.
        IndexError: labels outside [0, K), on the CPU; on CUDA a device-side assertion, without synchronisation.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss = ntce_loss(embeddings, prototypes, torch.tensor([0, 1]), temperature=1.0)
        >>> round(loss.item(), 4)
        0.3133
    """
    return contrast(embeddings, prototypes, labels, temperature, options, "instances", queue=queue)[:2]


@loss_of
def nonl_loss(
    embeddings: Tensor, prototypes: Tensor, labels: Tensor, temperature: float = 0.1,
    *, queue: tuple[Tensor, Tensor] | None = None, options: LossOptions,
) -> Terms:  # fmt: skip
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
    losses, anchors, _ = contrast(embeddings, prototypes, labels, temperature, options, "other classes", queue=queue)
    if readable(losses) and (left_out := int(anchors.left_out)):
        words = f"nonl_loss: the batch holds a single class, so {left_out} anchors have no negatives and are left out."
        warnings.warn(f"{words} Shuffle the data, or use a larger batch.", stacklevel=_level_of_caller())
    return losses, anchors


@loss_of
def supcon_loss(embeddings: Tensor, labels: Tensor, temperature: float = 0.1, *, options: LossOptions) -> Terms:
    """Supervised contrastive loss: every view against every other view of the batch.

        L = mean_i [ logsumexp_{j ≠ i} u_i·u_j / t − mean_{p: yp = yi, p ≠ i} u_i·u_p / t ]

    Khosla et al. 2020 (arXiv 2004.11362), the "out" form, base temperature equal to temperature.
    The positives' mean needs only the class sums, O(N·D). The similarities are walked in blocks of
    anchors, each pair computed once, and recomputed in the backward pass. After training with it,
    the class means are the classifier (arXiv 2605.20302): `hf_protosphere.prototypes.class_means`.

    Args:
        embeddings: (M, V, D), V views of M instances, or (M, D) for one view. N = M·V.
        labels: (M,) int64, any values, or `ignore_index`; `weight` is indexed by them.
        temperature: t > 0.
        weight, ignore_index, reduction, chunk_size, group, normalize: see `LossOptions`.

    The rest as in `ntce_loss`. Anchors without a positive are left out (`SupConLoss.left_out` counts them).

    Returns:
        A scalar, or (M, V) with `reduction="none"`.

    Example:
        >>> views = torch.eye(2)[:, None].repeat(1, 2, 1)  # two classes, two equal views each
        >>> round(supcon_loss(views, torch.tensor([0, 1]), temperature=1.0).item(), 4)
        0.5514
    """
    vectors, labels, kept = vectors_of(embeddings, labels, options)
    temperature, processes = checked_temperature(temperature), resolve_group(options.group)
    with full_precision(embeddings):
        lse, sums, counts = contrast_vectors(vectors, labels, kept, temperature, options.chunk_size, processes)
        others = counts - 1  # (N,) positives of each anchor
        positives = (vectors * (sums - vectors)).sum(-1) / (temperature * others.clamp_min(1))
    anchors = (lse - positives, kept, others > 0, labels.clamp_min(0))
    losses, *anchors = (x.view(embeddings.shape[:-1]) for x in anchors)
    return losses, Anchors(*anchors)


class _LossModule(nn.Module):
    """A loss function's options, as attributes. Called with what the function takes before the
    temperature, and keywords of its own; `left_out` counts that batch's unusable anchors."""

    _function: Callable[..., Tensor]
    weight: Tensor | None

    def __init__(
        self, temperature: float = 0.1, *, weight: Tensor | None = None, ignore_index: int = -100,
        reduction: Reduction = "mean", chunk_size: int | None = None, group: Group = None, normalize: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.temperature = checked_temperature(temperature)
        self.register_buffer("weight", weight, persistent=False)
        self.ignore_index, self.reduction, self.chunk_size = ignore_index, reduction, chunk_size
        self.group, self.normalize = group, normalize
        self.left_out: Tensor | None = None

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"

    def forward(self, *batch: Tensor, **more: Any) -> Tensor:
        options = LossOptions(**{name: getattr(self, name) for name in OPTIONS})
        equation, more["temperature"] = self._function.__wrapped__, self.temperature
        losses, anchors = equation(*batch, **more, options=options)
        self.left_out = anchors.left_out
        return _reduce(losses, anchors, options)


def module_of(name: str, function: Callable[..., Tensor]) -> type[_LossModule]:
    words = f"`{function.__name__}` as a module, which keeps temperature and options."
    body = {"__module__": function.__module__, "__doc__": words}
    return type(name, (_LossModule,), body | {"_function": staticmethod(function)})


NormFaceLoss = module_of("NormFaceLoss", normface_loss)
NTCELoss = module_of("NTCELoss", ntce_loss)
NONLLoss = module_of("NONLLoss", nonl_loss)
SupConLoss = module_of("SupConLoss", supcon_loss)


def contrast(
    embeddings: Tensor, prototypes: Tensor, labels: Tensor, temperature: float, options: LossOptions, over: str,
    bias: Tensor | None = None, queue: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Anchors, Tensor]:  # fmt: skip
    """(M,) log-sum-exp over the "prototypes", "other prototypes", "instances" or "other classes",
    less the own s_i,yi, both with the bias; and (M,) the latter without."""
    temperature = checked_temperature(temperature)
    if prototypes.dim() != 2 or embeddings.dim() != 2 or embeddings.shape[1] != prototypes.shape[1]:
        ours, theirs = tuple(embeddings.shape), tuple(prototypes.shape)
        raise ValueError(f"expected embeddings (M, D) and prototypes (K, D), but got {ours} and {theirs}.")
    kept = _kept(labels, len(embeddings), options.ignore_index, len(prototypes))
    own_class, normalize = torch.where(kept, labels, -1), options.normalize
    classes, columns = own_class.clamp_min(0), embeddings
    if queue is not None:
        queued = _kept(queue[1], len(queue[0]), options.ignore_index, len(prototypes))
        columns = torch.cat([embeddings, queue[0].detach().to(embeddings)])
        own_class = torch.cat([own_class, torch.where(queued, queue[1], -1)])
    if bias is not None:  # a coordinate more: 1 of the instances, t·bias of the prototypes
        columns, rows = unit(columns, normalize), unit(prototypes, normalize)
        columns = F.pad(columns, (0, 1), value=1.0)
        prototypes = torch.cat([rows, temperature * bias.to(rows)[:, None]], 1)
        normalize = False
    over_columns, exclude_own = "prototypes" not in over, over.startswith("other")
    lse, own, _ = ContrastLogSumExp.apply(
        prototypes, columns, own_class, own_class >= 0, temperature, over_columns, exclude_own,
        rows_per_chunk(options.chunk_size, len(prototypes), len(columns)), normalize,
    )  # fmt: skip
    own = own[: len(embeddings)]
    if over_columns:  # lse is (K,), one per anchoring prototype: hand it to its instances
        if (processes := resolve_group(options.group)) is not None:
            lse = GroupLogSumExp.apply(lse, processes)
        lse = lse.index_select(0, classes)  # (M,)
    contrasted = lse.detach() != -math.inf  # NaN stays in, to be seen
    bare = own if bias is None else own - bias.to(own).index_select(0, classes)
    return lse - own, Anchors(kept, contrasted, classes), bare


def unit(vectors: Tensor, normalize: bool = True) -> Tensor:
    """(N, D) of unit norm, in float32 or wider; a zero vector stays zero."""
    with full_precision(vectors):
        vectors = vectors.to(compute_dtype(vectors))
        norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        return vectors / norms.masked_fill(norms == 0, 1) if normalize else vectors


def vectors_of(embeddings: Tensor, labels: Tensor, options: LossOptions) -> tuple[Tensor, ...]:
    """Views (M[, V], D) and labels (M,) as N = M·V vectors (N, D), their labels, and bool: kept."""
    if embeddings.dim() not in (2, 3):
        shape = tuple(embeddings.shape)
        raise ValueError(f"expected embeddings (M, V, D) or (M, D), but got {shape}.")
    kept = _kept(labels, len(embeddings), options.ignore_index)
    views = embeddings.shape[1:-1].numel()
    labels, kept = (x.repeat_interleave(views) for x in (labels, kept))
    return unit(embeddings.flatten(0, -2), options.normalize), labels, kept


def _reduce(losses: Tensor, anchors: Anchors, options: LossOptions) -> Tensor:
    if (reduction := options.reduction) not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', but got {reduction!r}.")
    included = anchors.kept & anchors.contrasted
    weights = included.to(losses.dtype)
    if options.weight is not None:
        weights = weights * options.weight.to(losses.dtype)[anchors.classes]
    losses = torch.where(included, losses, 0.0) * weights
    if reduction == "none":
        return losses
    processes = resolve_group(options.group)
    total = losses.sum()
    if reduction == "mean":
        denominator = weights.sum()
        if processes is not None:
            dist.all_reduce(denominator, group=processes)
        total = total / torch.where(denominator == 0, 1.0, denominator)
    return total if processes is None else group_sum(total, processes)


def checked_temperature(temperature: float) -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, but got {temperature}.")
    return float(temperature)


def _kept(labels: Tensor, size: int, ignore_index: int, num_classes: int | None = None) -> Tensor:
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


def _level_of_caller() -> int:
    """For a warning: how far up the code is that called the function, or the module."""
    files = (__file__, nn.modules.module.__file__)
    return next(i for i, frame in enumerate(inspect.stack(0)) if frame.filename not in files)
