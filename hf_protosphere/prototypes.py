"""Prototypes on the unit sphere: a head of them, the simplex ETF, exact class means, the nearest.

Travels to the Hub with every checkpoint and imports nothing but torch."""

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .contrast import Group, resolve_group

# Prototypes in one product: at 10 classes the zeros cost less than 1 % of the smallest backbone.
TILE = 128
# Between which one is learned. Below, logits would exceed 100, as in CLIP (Radford et al. 2021);
# above, the softmax of cosines is nearly flat: t*(K) of K ≥ 5 is less.
TEMPERATURES = (0.01, 1.0)
NEIGHBOURS = 10


def simplex_etf(num_classes: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Unit vectors with all cosines −1/(K − 1): the simplex equiangular tight frame.

    The optimum of every objective here (Papyan et al. 2020; arXiv 2605.20302), in a random orientation.

    Args:
        num_classes: K ≥ 2.
        dim: D ≥ K − 1.
        generator: of the orientation; torch's default when None.

    Returns:
        (K, D) in torch's default dtype, constructed in float64.

    Raises:
        ValueError: when K > D + 1 (no such frame exists), or K < 2.

    Example:
        >>> etf = simplex_etf(3, 2)
        >>> round((etf[0] @ etf[1]).item(), 4)
        -0.5
    """
    if num_classes < 2:
        raise ValueError(f"a simplex ETF has at least 2 classes, but got num_classes={num_classes}.")
    if num_classes > dim + 1:
        raise ValueError(
            f"a simplex ETF of {num_classes} classes needs at least {num_classes - 1} dimensions, "
            f"but the embeddings have {dim}: use projection='linear' or 'mlp' with projection_dim={num_classes - 1} "
            "or more, fewer reserved classes, or prototypes='learned'."
        )
    # Helmert's rows are an orthonormal basis of the vectors whose entries sum to 0. Column c of
    # them is the c-th unit vector less its mean, in K − 1 coordinates: the frame up to its length.
    rows = torch.arange(1, num_classes, dtype=torch.float64)[:, None]  # (K − 1, 1)
    columns = torch.arange(num_classes)[None]  # (1, K)
    helmert = torch.where(columns < rows, 1.0, torch.where(columns == rows, -rows, 0.0))
    helmert = helmert / torch.sqrt(rows * (rows + 1))
    gaussian = torch.randn(dim, num_classes - 1, dtype=torch.float64, generator=generator)
    basis, _ = torch.linalg.qr(gaussian)  # (D, K − 1), orthonormal columns
    frame = math.sqrt(num_classes / (num_classes - 1)) * (basis @ helmert).T  # (K, D)
    return frame.to(torch.get_default_dtype())


def nonnegative_limit(num_classes: int) -> float:
    """2 − 2·√(1 − 1/K), of K ≥ 2 classes: the least squared distance of prototypes to class means without a negative
    entry, where signed embeddings can bring it to 0.

    Such means have no negative cosine, so that at best they are orthonormal, e_1 … e_K. There the
    unit prototypes that separate them best, maximising w_c·e_c − w_c·e_j for all j alike, are the
    simplex ETF of that frame, √(K/(K − 1))·(e_c − ē), whose cosine with e_c is √(1 − 1/K). (That
    non-negative features end orthogonal is known of SCL: Kini et al., ICLR 2024.)

    Example:
        >>> round(nonnegative_limit(10), 3), round(nonnegative_limit(1000), 4)
        (0.103, 0.001)
    """
    return 2 - 2 * math.sqrt(1 - 1 / num_classes)


def turned(vertex: Tensor, prototypes: Tensor, means: Tensor) -> Tensor:
    """(n, D) as near to each of n means, (n, D) of any norm, as a `vertex` (D,) comes by a rotation that leaves
    prototypes (K, D) in place: what it has in their span stays, the rest turns to what the mean has outside. All spare
    vertices of a simplex come to the same place: such rotations exchange them.

    Example:
        >>> vertex, prototypes = torch.tensor([-0.6, 0.8, 0.0]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> turned(vertex, prototypes, torch.tensor([[5.0, 0.0, 2.0]]))
        tensor([[-0.6000,  0.0000,  0.8000]])
    """
    basis, _ = torch.linalg.qr(prototypes.T)  # (D, K)
    within, targets = (x @ basis @ basis.T for x in (vertex, means))
    return within + (vertex - within).norm() * F.normalize(means - targets, dim=-1)


def chosen_margin(gains: Tensor, losses: Tensor, labels: Tensor) -> tuple[float, float]:
    """What to subtract from the cosines to a new prototype, so that the most images are told right, each class as much
    as another: in [0, 1] in steps of 0.01, of equally good ones the least.

    Args:
        gains: (n,) by how much images of the new class are nearer to it, made without them, than to any other.
        losses: (M,) by how much those of the known classes are nearer to it than to their own; infinite where wrong.
        labels: (M,) int64, their classes.

    Returns:
        The margin, and the mean accuracy over the new class and those known that have images, in [0, 1].

    Example:
        >>> chosen_margin(torch.tensor([0.5, 0.1]), torch.tensor([-0.3, 0.044]), torch.tensor([0, 0]))
        (0.05, 1.0)
    """
    margins, counts = gains.new_tensor(range(101))[:, None] / 100, labels.bincount()
    right = gains.new_zeros(len(margins), len(counts)).index_add_(1, labels, (losses <= margins).to(gains))
    known, new = (right / counts)[:, counts > 0], (gains > margins).to(gains).mean(1, keepdim=True)
    accuracies = torch.cat([known, new], 1).mean(1)
    return round(margins[accuracies.argmax()].item(), 2), accuracies.max().item()


def cosines_to(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """(..., K) inner products of embeddings (..., D) and prototypes (K, D), those of a class the
    same to the bit whatever other classes there are.

    Matrix kernels round differently for other shapes, so that one more class would change the last
    bits of all others. Here every product has the same shape: TILE prototypes, some of them zero."""
    missing = -len(prototypes) % TILE
    tiles = F.pad(prototypes, (0, 0, 0, missing)).split(TILE)
    return torch.cat([embeddings @ tile.T for tile in tiles], dim=-1)[..., : len(prototypes)]


@torch.no_grad()
def class_means(
    embeddings_or_batches: Tensor | Iterable[tuple[Tensor, Tensor]],
    labels: Tensor | None = None,
    num_classes: int | None = None,
    *,
    group: Group = None,
) -> Tensor:
    """The mean embedding of each class, scaled to unit norm: SCL's fixed prototypes (2605.20302).

    Exact means over everything given, not a moving average: sums in float64, over all batches and
    all processes. Every process of the group must make the call.

    Args:
        embeddings_or_batches: (N, D) embeddings with `labels` (N,), or an iterable of
            (embeddings, labels) batches, which is read once.
        labels: (N,) int64 in [0, K); None with batches.
        num_classes: K; by default, for tensors, the largest label plus one.
        group: as in `hf_protosphere.losses.ntce_loss`.

    Returns:
        (K, D), unit rows, in the dtype of the embeddings (float32 for half precisions).

    Raises:
        ValueError: a class without samples, or whose mean is zero (named), labels out of range, or nothing at all.

    Example:
        >>> embeddings = torch.tensor([[2.0, 1.0], [2.0, -1.0], [0.0, 5.0]])
        >>> class_means(embeddings, torch.tensor([0, 0, 1]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    batches = embeddings_or_batches
    if isinstance(batches, Tensor):
        if labels is None:
            raise ValueError("class_means needs the labels (N,) of the embeddings (N, D).")
        batches, num_classes = [(batches, labels)], num_classes or int(labels.max()) + 1
    if num_classes is None:
        raise ValueError("class_means needs num_classes when it is given batches.")

    sums: Tensor | None = None
    for embeddings, batch_labels in batches:
        if embeddings.dim() != 2 or batch_labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"expected embeddings (N, D), labels (N,), got {tuple(embeddings.shape)}, {tuple(batch_labels.shape)}."
            )
        if len(outside := batch_labels[(batch_labels < 0) | (batch_labels >= num_classes)]):
            raise ValueError(f"labels must be in [0, {num_classes}), but got {int(outside[0])}.")
        if sums is None:
            dtype = embeddings.dtype if embeddings.dtype == torch.float64 else torch.float32
            sums = embeddings.new_zeros(num_classes, embeddings.shape[1], dtype=torch.float64)
            counts = batch_labels.new_zeros(num_classes)
        sums.index_add_(0, batch_labels, embeddings.double())
        counts += torch.bincount(batch_labels, minlength=num_classes)
    if sums is None:
        raise ValueError("class_means got no batches.")
    if (processes := resolve_group(group)) is not None:
        dist.all_reduce(sums, group=processes)
        dist.all_reduce(counts, group=processes)

    if (empty := (counts == 0).nonzero().flatten().tolist()) != []:
        raise ValueError(f"no samples of class {', '.join(map(str, empty))}: it has no mean.")
    means = sums / counts[:, None]
    if (zero := (means.norm(dim=1) == 0).nonzero().flatten().tolist()) != []:
        raise ValueError(f"the mean of class {', '.join(map(str, zero))} is zero: no direction.")
    return F.normalize(means, dim=1).to(dtype)


def known_score(
    name: str, embeddings: Tensor, logits: Tensor, prototypes: Tensor, axes: Tensor | None = None,
    centers: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(M,) larger for images that look more like those of the classes, by "cosine", to the nearest prototype;
    "max_softmax", the largest softmax probability (Hendrycks & Gimpel 2017); "energy", logsumexp of the logits, the
    negative free energy (Liu et al. 2020); or with axes A (D, R) and centers (C, D), which `open_set.scores` fits:

    - "mahalanobis", minus the squared distance to the nearest center c, ‖(u − c) A‖² (Lee et al. 2018);
    - "knn", minus the distance to the k-th nearest (Sun et al. 2022): k = 10, or as few as there are for a class;
    - "vim", the energy less ‖u A‖ (Wang et al. 2022);
    - "neco", ‖(u − c) A‖ / ‖u − c‖ (Ben Ammar et al. 2024).

    Args:
        embeddings: (M, D), unit rows; or (M, V, D), V views, of which the mean direction counts.
        logits: (M, K), as the model returns them: divided by its calibration temperature.
        prototypes: (K, D), unit rows.

    Example:
        >>> known_score("energy", torch.eye(2), torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.eye(2))
        tensor([0.6931, 3.0486])
    """
    if name == "max_softmax":
        return logits.softmax(-1).amax(-1)
    if name == "energy":
        return logits.logsumexp(-1)
    if embeddings.dim() == 3:
        embeddings = F.normalize(embeddings.mean(1), dim=-1)
    if name == "cosine":
        return cosines_to(embeddings, prototypes.to(embeddings)).amax(-1)
    axes, centers = axes.to(embeddings), centers.to(embeddings)
    if name == "mahalanobis":  # from the centers' mean and by differences: what all share would drown what is near
        points = [(x - centers.mean(0)) @ axes for x in (embeddings, centers)]
        distances = torch.cdist(*points, compute_mode="donot_use_mm_for_euclid_dist")
        return -distances.amin(-1).square()
    if name == "knn":
        nearest = (embeddings @ centers.T).topk(min(NEIGHBOURS, max(len(centers) // len(prototypes), 1)), dim=-1)
        return -(2 - 2 * nearest.values[:, -1]).clamp(min=0).sqrt()
    if name == "vim":
        return logits.to(embeddings).logsumexp(-1) - (embeddings @ axes).norm(dim=-1)
    centred = embeddings - centers
    return (centred @ axes).norm(dim=-1) / centred.norm(dim=-1).clamp(min=1e-12)


class PrototypeHead(nn.Module):
    """K prototypes on the unit sphere; trained when learned, a saved buffer when fixed. With
    `learns_temperature` the logarithm of a temperature beside them; with `spare` so many vertices more, a buffer
    (N, D), of one simplex ETF with the prototypes that training starts from."""

    def __init__(
        self, num_classes: int, dim: int, kind: str, learns_temperature: bool = False, spare: int = 0
    ) -> None:
        super().__init__()
        if learns_temperature:
            self.log_temperature = nn.Parameter(torch.empty(1))  # FSDP2 shards no scalar
        self.kind = kind
        weight = torch.empty(num_classes, dim)
        if kind == "learned":
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.register_buffer("spare", torch.empty(spare, dim) if spare else None)

    @property
    def prototypes(self) -> Tensor:
        """(K, D), unit rows, float32 or wider. Of a sharded model all processes ask together."""
        weight = whole(self.weight)
        return F.normalize(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=-1)

    def cosines(self, embeddings: Tensor, exact: bool) -> Tensor:
        """(..., K) of embeddings (..., D): as by `cosines_to`, or by one product, which is faster."""
        if exact:
            return cosines_to(embeddings, self.prototypes.to(embeddings.dtype))
        if torch.is_grad_enabled():
            return embeddings @ self.prototypes.to(embeddings.dtype).T
        weight = whole(self.weight).to(embeddings.dtype)  # normalised, many would be twice the memory
        return (embeddings @ weight.T).div_(torch.linalg.vector_norm(weight, dim=-1).clamp_min(1e-12))

    @staticmethod
    def temperature(log_temperature: Tensor) -> Tensor:
        """(1,), float32 or wider, within `TEMPERATURES`."""
        log = whole(log_temperature)
        log = log.to(torch.promote_types(log.dtype, torch.float32))
        least, most = map(math.log, TEMPERATURES)
        # The gradient passes: what a step brought beyond a bound, another one brings back.
        return (log + (log.clamp(least, most) - log).detach()).exp()

    @torch.no_grad()
    def start(self, copy: Callable[..., Tensor] = Tensor.copy_) -> None:
        """The prototypes that training starts from, and the spare vertices of the same frame."""
        (num_classes, dim), spare = self.weight.shape, 0 if self.spare is None else len(self.spare)
        etf, vertices = self.kind == "simplex_etf" or spare, num_classes + spare
        first = simplex_etf(vertices, dim) if etf else F.normalize(torch.randn(vertices, dim), dim=-1)
        copy(self.weight, first[:num_classes])
        if spare:
            copy(self.spare, first[num_classes:])


def whole(weight: Tensor) -> Tensor:
    """FSDP2 leaves a shard of a DTensor in each process, put together within `forward` only."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
