"""The objectives by name, and those losses that complete the table of what contrasts with what.

A loss on the sphere is told by what its *anchor* is, an image or a prototype, what the anchor is
contrasted with, the K prototypes or the M images of the batch, and whether its own class is in the
denominator. Travels to the Hub with every checkpoint."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .contrast import PAIR_ROWS, full_precision, gathered, resolve_group, rows_per_chunk
from .losses import (
    Anchors,
    LossOptions,
    Terms,
    checked_temperature,
    contrast,
    loss_of,
    module_of,
    nonl_loss,
    normface_loss,
    ntce_loss,
    supcon_loss,
    vectors_of,
)


@loss_of
def decoupled_normface_loss(
    embeddings: Tensor, prototypes: Tensor, labels: Tensor, temperature: float = 0.1,
    *, bias: Tensor | None = None, options: LossOptions,
) -> Terms:  # fmt: skip
    """NormFace against the K − 1 prototypes of other classes: to it what NONL is to NTCE.

        L = mean_i [ logsumexp_{c ≠ yi} w_c·u_i / t − w_yi·u_i / t ]

    The value may be negative. The arguments are those of `normface_loss`."""
    return contrast(embeddings, prototypes, labels, temperature, options, "other prototypes", bias)[:2]


@loss_of
def margin_loss(
    embeddings: Tensor, prototypes: Tensor, labels: Tensor, temperature: float = 0.1, *, margin: float,
    margin_type: str = "cosface", bias: Tensor | None = None, options: LossOptions,
) -> Terms:  # fmt: skip
    """NormFace whose own class must win by a margin m.

        L = mean_i log(1 + Σ_{c ≠ yi} exp(w_c·u_i / t − s_i))

    With θ between w_yi and u_i, s_i is (cos θ − m) / t ("cosface", Wang et al. 2018), or
    cos(θ + m) / t ("arcface", Deng et al. 2019) and beyond θ + m = π (cos θ − m sin m) / t.
    The other arguments are those of `normface_loss`.

    Raises:
        ValueError: a margin not in [0, π), or of another type.
    """
    if margin_type not in ("cosface", "arcface") or not 0 <= margin < math.pi:
        raise ValueError(f"margin must be in [0, π), margin_type 'cosface' or 'arcface': {margin}, {margin_type!r}.")
    losses, anchors, own = contrast(embeddings, prototypes, labels, temperature, options, "other prototypes", bias)
    lost = margin
    if margin_type == "arcface":
        cosines = own * temperature
        sines = (1 - cosines.square()).clamp_min(1e-6).sqrt()  # its slope has no limit at 0
        turned = cosines * (1 - math.cos(margin)) + sines * math.sin(margin)
        lost = turned.where(cosines > -math.cos(margin), margin * math.sin(margin))
    return _softplus(losses + lost / temperature), anchors


@loss_of
def dot_regression_loss(embeddings: Tensor, prototypes: Tensor, labels: Tensor, *, options: LossOptions) -> Terms:
    """Dot regression: every embedding to its own prototype, with no contrast.

        L = mean_i (1 − w_yi·u_i)² / 2

    Yang et al. 2022 (arXiv 2203.09081), on unit vectors, where the prototypes are a fixed simplex
    ETF: nothing in it would keep learned ones apart. The arguments are those of `ntce_loss`."""
    _, anchors, cosines = contrast(embeddings, prototypes, labels, 1.0, options, "prototypes")
    return (1 - cosines).square() / 2, anchors


@loss_of
def decoupled_supcon_loss(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.1, *, options: LossOptions
) -> Terms:
    """SupCon against the views of other classes only: to it what NONL is to NTCE.

        L = mean_i mean_{p: yp = yi, p ≠ i} [ logsumexp_{j: yj ≠ yi} u_i·u_j / t − u_i·u_p / t ]

    It may be negative. Anchors without a positive or negative are left out. The arguments are `supcon_loss`'s."""
    return _against_other_classes(embeddings, labels, temperature, options)


@loss_of
def sincere_loss(embeddings: Tensor, labels: Tensor, temperature: float = 0.1, *, options: LossOptions) -> Terms:
    """SINCERE: every positive pair of views against the views of other classes and itself.

        L = mean_i mean_{p: yp = yi, p ≠ i} log(1 + Σ_{j: yj ≠ yi} exp(u_i·u_j / t − u_i·u_p / t))

    Feeney & Hughes 2023 (arXiv 2309.14277): SupCon's denominator would push the other images of
    the class away as well. The arguments are those of `supcon_loss`."""
    return _against_other_classes(embeddings, labels, temperature, options, _softplus)


def _softplus(x: Tensor) -> Tensor:
    return -F.logsigmoid(-x)  # torch's own is linear from 20 on, 2e-9 off


def _against_other_classes(
    embeddings: Tensor, labels: Tensor, temperature: float, options: LossOptions,
    of_pair: Callable[[Tensor], Tensor] | None = None,
) -> Terms:  # fmt: skip
    """The mean over an anchor's positives of its log-sum-exp over other classes less the positive's
    similarity, or of a function of that. In blocks of anchors, recomputed in the backward pass."""
    vectors, labels, kept = vectors_of(embeddings, labels, options)
    temperature, processes = checked_temperature(temperature), resolve_group(options.group)
    everyone, all_labels, all_kept, offset = gathered(vectors, labels, kept, processes)
    places = torch.arange(len(everyone), device=vectors.device)

    def block(anchors: Tensor, everyone: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        similarities = anchors @ everyone.T / temperature
        same = all_labels[own, None] == all_labels
        negatives, positives = ~same & all_kept, same & all_kept & (own[:, None] != places)
        least = torch.finfo(anchors.dtype).min  # −∞ in all of a row would have no gradient
        pulls = similarities.where(negatives, least).logsumexp(1, keepdim=True) - similarities
        pulls = pulls if of_pair is None else of_pair(pulls)
        count = positives.sum(1)
        usable = (count > 0) if of_pair else (count > 0) & negatives.any(1)
        return pulls.where(positives, 0.0).sum(1) / count.clamp_min(1), usable

    rows = rows_per_chunk(options.chunk_size, len(everyone), len(everyone)) or PAIR_ROWS
    parts = zip(vectors.split(rows), places[offset : offset + len(vectors)].split(rows))
    with full_precision(embeddings):
        again = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        blocks = [again(part, everyone, own) for part, own in parts]
    losses, usable = (torch.cat(each) for each in zip(*blocks))
    anchors = (losses, kept, usable, labels.clamp_min(0))
    losses, *anchors = (each.view(embeddings.shape[:-1]) for each in anchors)
    return losses, Anchors(*anchors)


DecoupledNormFaceLoss = module_of("DecoupledNormFaceLoss", decoupled_normface_loss)
DecoupledSupConLoss = module_of("DecoupledSupConLoss", decoupled_supcon_loss)
SINCERELoss = module_of("SINCERELoss", sincere_loss)


@dataclass(frozen=True)
class Objective:
    """
    Args:
        loss: of embeddings, prototypes (not where views are contrasted), labels and temperature
            (not where nothing is); for a linear head, of logits and labels.
        anchor: what is contrasted; contrast: with what, or None.
        own_class: whether the anchor's own class is in the denominator too.
        temperature_factor: the default temperature in units of `optimal_temperature`.
        prototypes: the kind that is trained with it by default; None for a linear head.
        options: arguments of training that are for it.
    """

    loss: Callable[..., Tensor]
    anchor: Literal["image", "prototype"]
    contrast: Literal["prototypes", "images"] | None
    own_class: bool
    temperature_factor: float = 0.5  # but for views: scripts/study/temperature
    prototypes: Literal["learned", "simplex_etf", "class_means"] | None = "learned"
    options: tuple[str, ...] = ()

    @property
    def contrasts_images(self) -> bool:
        """A batch in parts is then another loss than the whole."""
        return self.contrast == "images"

    @property
    def contrasts_views(self) -> bool:
        """Images with images: it needs two views of each, and trains no prototypes."""
        return self.contrasts_images and self.anchor == "image"


_image = ("margin", "logit_adjustment")
_queue, _learned = ("queue_size",), ("learn_temperature",)
_mixed = ("label_smoothing", "mixup", "cutmix", "logit_adjustment")
_views = {"anchor": "image", "contrast": "images", "temperature_factor": 0.25, "prototypes": "class_means"}
OBJECTIVES = {
    "nonl": Objective(nonl_loss, "prototype", "images", False, options=_queue),
    "ntce": Objective(ntce_loss, "prototype", "images", True, options=_queue + _learned),
    "scl": Objective(supcon_loss, own_class=True, options=_learned, **_views),
    "decoupled_scl": Objective(decoupled_supcon_loss, own_class=False, **_views),
    "sincere": Objective(sincere_loss, own_class=False, options=_learned, **_views),
    "normface": Objective(normface_loss, "image", "prototypes", True, options=_image + _learned),
    "decoupled_normface": Objective(decoupled_normface_loss, "image", "prototypes", False, options=_image[1:]),
    "dot_regression": Objective(dot_regression_loss, "image", None, own_class=True, prototypes="simplex_etf"),
    "cross_entropy": Objective(F.cross_entropy, "image", "prototypes", True, prototypes=None, options=_mixed),
}


def objective_loss(
    name: str, embeddings: Tensor, logits: Tensor, labels: Tensor, prototypes: Tensor | None,
    temperature: float | Tensor, *, margin: float = 0.0, margin_type: str = "cosface", **options: Any,
) -> Tensor:  # fmt: skip
    """The objective `name` of a batch.

    Args:
        embeddings: (M, D) or (M, V, D), V views, of unit norm.
        logits: (M, K) or (M, V, K), which a linear head is trained by.
        labels: (M,) int64 in [0, K); for a linear head also (M, K) of probabilities.
        prototypes: (K, D) of any norm; None for a linear head.
        temperature: a number, or (1,) that is learned.
        options: weight, bias and queue, where they are not None and the loss takes them.
    """
    objective = OBJECTIVES[name]
    loss, options = objective.loss, {k: v for k, v in options.items() if v is not None}
    if margin:
        loss, options = margin_loss, options | {"margin": margin, "margin_type": margin_type}
    if isinstance(temperature, Tensor) and objective.prototypes is not None:
        # The operators take a number: the vectors carry it to them, and its gradient back.
        if objective.contrasts_views:
            embeddings = embeddings * temperature.rsqrt()
        prototypes = F.normalize(prototypes.to(temperature.dtype), dim=-1) / temperature
        temperature, options["normalize"] = 1.0, False
    if objective.contrasts_views:
        # What the model returns has unit norm already: normalising again would cost a pass.
        return loss(embeddings, labels, temperature, **options | {"normalize": False})
    if embeddings.dim() == 3:  # each view is an instance of its class
        labels = labels.repeat_interleave(embeddings.shape[1], dim=0)
        embeddings, logits = embeddings.flatten(0, 1), logits.flatten(0, 1)
    if objective.prototypes is None:
        return loss(logits + options.pop("bias", 0.0), labels, **options)
    contrast = () if objective.contrast is None else (temperature,)
    return loss(embeddings, prototypes, labels, *contrast, **options)


def class_terms(
    objective: str, counts: Sequence[int], *, balanced: bool, logit_adjustment: float
) -> tuple[Tensor | None, Tensor | None]:
    """What makes up for classes of unequal size, n_c of N images: (K,) weights N / (K n_c) and
    biases (K,) τ·log(n_c / N); each None where it is not asked for.

    An image's softmax learns p(c | x) ∝ p(x | c) n_c. A bias in training takes the n_c upon itself, and the scores
    without it are those of classes of equal size (Menon et al. 2021). Where the anchor is the prototype of c, its bias
    is in every term of its log-sum-exp and in s_i,yi: it cancels. NTCE is the likelihood of a class's images among
    all; its optimum, but for a constant of c, is s_jc = log p(x_j | c) / p(x_j), which holds no n_c to adjust. They
    only decide how much an anchor counts, n_c times, and that is what the weights undo.

    Raises:
        ValueError: a bias that does nothing under the objective; a class without images.
    """
    images = torch.as_tensor(counts, dtype=torch.float32)
    if logit_adjustment and "logit_adjustment" not in OBJECTIVES[objective].options:
        raise ValueError(f"logit_adjustment does nothing under {objective!r}: balance the classes.")
    if logit_adjustment and not images.all():
        none = (images == 0).nonzero().flatten().tolist()
        raise ValueError(f"logit_adjustment needs images of every class, but has none of {none}.")
    weights = images.sum() / (len(images) * images.clamp_min(1)) if balanced else None
    return weights, logit_adjustment * (images / images.sum()).log() if logit_adjustment else None


class EmbeddingQueue(nn.Module):
    """The newest embeddings of earlier batches of this process, with their labels: what NTCE and
    NONL contrast with as well, by `model.queue.append(EmbeddingQueue(size, dim))`.

    Over processes, each one's are in the contrast, by its K log-sum-exps: none are exchanged."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), -100))  # of none yet
        self.register_buffer("position", torch.zeros((), dtype=torch.long))  # of the oldest

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """(M, D) or (M, V, D), and (M,), in place of the oldest."""
        size, views = len(self.labels), embeddings.shape[1:-1].numel()
        labels = labels.repeat_interleave(views)[-size:]
        places = (self.position + torch.arange(len(labels), device=labels.device)) % size
        self.embeddings[places] = embeddings.flatten(0, -2)[-size:].to(self.embeddings)
        self.labels[places] = labels
        self.position.copy_((self.position + len(labels)) % size)


def optimal_temperature(num_classes: int) -> float:
    """t*(K), the scale in which the best temperatures of different numbers of classes agree.

    At the simplex ETF the cosine to the own prototype exceeds those to the K − 1 others by
    Δ = 1 + 1/(K − 1) = K/(K − 1). The softmax over the K prototypes gives the own class
    1 / (1 + (K − 1) exp(−Δ/t)), which is one half at

        t*(K) = Δ / ln(K − 1) = K / ((K − 1) ln(K − 1))      K=10: 0.51   100: 0.22   1000: 0.145

    Far below it the gradient fades before the optimum is reached. The logarithm is taken to be at
    least 1, so that K = 2 and 3 have a finite one: 2.0 and 1.5."""
    return num_classes / (num_classes - 1) / math.log(max(num_classes - 1, math.e))


def default_temperature(objective: str, num_classes: int) -> float:
    """The objective's factor, times t*(K)."""
    return OBJECTIVES[objective].temperature_factor * optimal_temperature(num_classes)
