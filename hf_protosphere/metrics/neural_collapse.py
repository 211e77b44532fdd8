"""`NeuralCollapse`: every metric of neural collapse over batches, beside its optimum.

The formulas are in `geometry.py`; here they are accumulated, named, and put on one scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from . import geometry
from .accumulators import ClassMoments, EmbeddingSample, EmbeddingStore
from .class_statistics import (
    ClassStatistics,
    check_batch,
    count_non_finite,
    statistics_of_embeddings,
    statistics_of_moments,
)


def _zero(num_classes: int, embedding_dim: int) -> float:
    return 0.0


def _full_rank(num_classes: int, embedding_dim: int) -> float:
    return float(min(num_classes - 1, embedding_dim))


def _largest_class_rank(statistics: ClassStatistics) -> float:
    # 0 with one sample per class, and so is every rank: any divisor would do
    return max(1.0, min(statistics.means.shape[1], statistics.counts.max().item() - 1))


@dataclass(frozen=True)
class MetricInfo:
    """What tables, plots and cards need to know of one metric of `NeuralCollapse.compute()`."""

    name: str
    title: str
    reference: str
    needs_prototypes: bool
    zero_at: float | Callable[[ClassStatistics], float] = math.inf  # the value that attains 0 %
    optimum: Callable[[int, int], float] = _zero  # of num_classes and embedding_dim
    min_classes: int = 2  # with fewer the metric is not readable and stays out of "overall"

    @property
    def higher_is_better(self) -> bool:
        return self.optimum is not _zero

    def attained(self, value: float, optimum: float, statistics: ClassStatistics) -> float:
        """Percentage of the optimum, clamped to [0, 100]: value / optimum where higher is better,
        else 1 − value / zero_at, or 1 / (1 + value) where there is no upper end."""
        zero_at = self.zero_at(statistics) if callable(self.zero_at) else self.zero_at
        if self.higher_is_better:
            share = value / optimum
        else:
            share = 1 / (1 + value) if zero_at == math.inf else 1 - value / zero_at
        return 100 * min(max(share, 0.0), 1.0)


_PAPER, _PAPYAN, _SONG = "Koromilas et al. 2026", "Papyan et al. 2020", "Song et al. 2024"
METRICS: tuple[MetricInfo, ...] = (  # in the order of compute(); cosine = 1 − d²/2, hence zero_at 2
    MetricInfo(
        "intra_class_effective_rank", "Intra-class rank", _PAPER, False, _largest_class_rank
    ),
    MetricInfo("inter_class_effective_rank", "Inter-class rank", _PAPER, False, optimum=_full_rank),
    MetricInfo("prototype_effective_rank", "Prototype rank", _PAPER, True, optimum=_full_rank),
    MetricInfo("instance_alignment", "Instance alignment", _PAPER, True, 2.0),
    MetricInfo("class_alignment", "Class alignment", _PAPER, True, 2.0),
    MetricInfo(
        "mutual_information_ratio",
        "Mutual information ratio",
        _SONG,
        True,
        min_classes=3,
        optimum=lambda num_classes, _: geometry.simplex_etf_mutual_information_ratio(num_classes),
    ),
    MetricInfo("entropy_difference_ratio", "Entropy difference", _SONG, True, 1.0, min_classes=3),
    MetricInfo("nc1_variability", "NC1 variability", _PAPYAN, False),
    MetricInfo("nc1_cdnv", "NC1 CDNV", "Galanti et al. 2022", False),
    MetricInfo("nc2_equinorm", "NC2 equinorm", _PAPYAN, False, 1.0),
    MetricInfo("nc2_equiangular", "NC2 equiangular", _PAPYAN, False, 1.0),
    MetricInfo("nc3_self_duality", "NC3 self-duality", _PAPYAN, True, 2.0),
    MetricInfo("nc4_agreement", "NC4 agreement", _PAPYAN, True, optimum=lambda k, d: 1.0),
)


def undefined_metrics(counts: Iterable[float], num_classes: int) -> set[str]:
    """Which metrics, and "overall", are not defined where classes have so many samples.

    What compares with the geometry of all K classes is not where one has none; nor is what varies
    within classes where none has two; and the means of only two classes are always opposite.

    Args:
        counts: of each class, or of those only that have samples.

    Example:
        >>> sorted(undefined_metrics([4, 1, 1], num_classes=3))
        []
        >>> "nc3_self_duality" in undefined_metrics([4, 1], num_classes=3)
        True
    """
    present = [count for count in counts if count]
    names: set[str] = set()
    if max(present, default=0) < 2:
        names.add("intra_class_effective_rank")
    if names or len(present) < 2:
        names |= {"nc1_variability", "nc1_cdnv"}
    if len(present) < num_classes:
        names |= {"inter_class_effective_rank", "mutual_information_ratio", "nc4_agreement"}
        names |= {"entropy_difference_ratio", "nc3_self_duality"}
        if len(present) < 3:
            names |= {"nc2_equinorm", "nc2_equiangular"}
    return names | {"overall"} if names else names


class NeuralCollapse(Metric):
    """All metrics of `METRICS` over batches of embeddings (M, D) and labels (M,).

    Accumulate the whole data set with `update`, best with balanced classes and unit embeddings;
    then `compute(prototypes)`, as often as you like. Over processes each updates with its own
    samples, and `compute`, called by all, gives every one the metrics of all samples.

    Args:
        num_classes: K ≥ 2. Of classes without samples `compute` says which they are.
        embedding_dim: D.
        keep: what is remembered of the embeddings.
            "embeddings": all of them, in the dtype they come in. Every metric is exact.
            "moments": K·D² second moments in float64, whatever N. All metrics are exact, but
            `nc4_agreement` is left out: it asks every sample about the final class means.
            n, an int: D² pooled moments and a uniform sample of at most n embeddings of each class.
            `intra_class_effective_rank` and `nc4_agreement` are those of the sample, and the result
            says so by "samples_per_class"; everything else is exact.
        memory_limit: bytes of embeddings to hold in memory (4 GiB). Those beyond go to a temporary
            file. "moments" that would take more are refused.
        directory: of that file; None is the system's, which may itself be memory.

    Raises:
        ValueError: sizes or `keep` out of range; moments beyond the memory limit; in `update`,
            shapes, dtypes, labels out of range, non-finite embeddings; in `compute`, no samples at
            all, coinciding class means, or prototypes that do not fit.

    >>> points, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)  # a simplex ETF
    >>> metric = NeuralCollapse(num_classes=3, embedding_dim=3)
    >>> metric.update(points, labels)
    >>> result = metric.compute()
    >>> round(result["inter_class_effective_rank"], 3), result["nc1_variability"]
    (2.0, 0.0)
    >>> round(result["attained"]["overall"], 3)
    100.0
    """

    is_differentiable = False
    higher_is_better = None  # differs per metric, see METRICS
    full_state_update = False

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        keep: Literal["embeddings", "moments"] | int = "embeddings",
        memory_limit: int = 4 * 2**30,
        directory: str | None = None,
        **kwargs: Any,
    ) -> None:
        if num_classes < 2 or embedding_dim < 1:
            raise ValueError(
                "num_classes must be at least 2 and embedding_dim at least 1, "
                f"got num_classes={num_classes} and embedding_dim={embedding_dim}."
            )
        if keep not in ("embeddings", "moments") and not (isinstance(keep, int) and keep >= 2):
            raise ValueError(
                "keep must be 'embeddings', 'moments' or a number of samples per class of at "
                f"least 2, got {keep!r}."
            )
        needed = 8 * num_classes * embedding_dim**2
        if keep == "moments" and needed > memory_limit:
            raise ValueError(
                f"keep='moments' takes 8·K·D² = {needed} bytes, more than "
                f"memory_limit={memory_limit}: raise that, or take keep='embeddings' or a number."
            )
        # torchmetrics would answer other prototypes with the cached values of the first ones
        super().__init__(compute_with_cache=False, **kwargs)
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.keep, self.memory_limit, self.directory = keep, memory_limit, directory
        self._start()

    def _start(self) -> None:
        # Not torchmetrics states: those are gathered whole, to every process.
        self._moments: ClassMoments | None = None  # made on the device of the first embeddings
        self._embeddings: EmbeddingStore | EmbeddingSample | None = None
        if self.keep == "embeddings":
            self._embeddings = EmbeddingStore(
                self.num_classes, self.embedding_dim, self.memory_limit, self.directory
            )
        elif self.keep != "moments":
            self._embeddings = EmbeddingSample(self.num_classes, self.embedding_dim, self.keep)
        self._statistics: ClassStatistics | None = None

    def reset(self) -> None:
        super().reset()
        self._start()

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        check_batch(embeddings, labels, self.num_classes, self.embedding_dim)
        self._statistics = None
        if self._embeddings is not None:
            self._embeddings.append(embeddings, labels)
        if self.keep != "embeddings":
            self._ensure_moments().append(embeddings, labels)

    @property
    def storage(self) -> str:
        """In words, what this process remembers of the embeddings, and where."""
        parts = [part for part in (self._embeddings, self._moments) if part is not None]
        return "; ".join(map(str, parts))

    @property
    def optima(self) -> dict[str, float]:
        """What each metric is at neural collapse."""
        return {info.name: info.optimum(self.num_classes, self.embedding_dim) for info in METRICS}

    def merge_state(self, incoming_state: NeuralCollapse) -> None:
        """Add what another metric of the same sizes and the same `keep` has accumulated."""
        other = incoming_state
        sizes = [(m.num_classes, m.embedding_dim, m.keep) for m in (self, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"cannot merge metrics of (num_classes, embedding_dim, keep) {sizes}.")
        self._statistics = None
        self._update_count += other._update_count
        if self._embeddings is not None:
            self._embeddings.merge(other._embeddings)
        if other._moments is not None:
            self._ensure_moments().merge(other._moments)

    def _ensure_moments(self) -> ClassMoments:
        if self._moments is None:
            per_class = self.keep == "moments"
            sizes = self.num_classes, self.embedding_dim
            self._moments = ClassMoments(*sizes, per_class, self._float64_device)
        return self._moments

    @property
    def _float64_device(self) -> torch.device:
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @property
    def _group(self) -> dist.ProcessGroup | None:
        if not (self._to_sync and self.distributed_available_fn()):
            return None
        return self.process_group or dist.group.WORLD

    def statistics(self) -> ClassStatistics:
        """What the formulas in `geometry.py` take: class means, their spectrum, and more."""
        if self._statistics is not None:
            return self._statistics
        if self.keep == "embeddings":
            made = statistics_of_embeddings(self._embeddings, self._float64_device, self._group)
        else:
            made = statistics_of_moments(self._ensure_moments(), self._embeddings, self._group)
        if self._group is None:  # else one process might have it, and leave the others waiting
            self._statistics = made
        return made

    def compute(self, prototypes: Tensor | None = None) -> dict[str, float | dict[str, float]]:
        """The metrics by name, and "attained": percentages of their optima (`MetricInfo.attained`)
        with "overall", the *minimum* of them. Without prototypes (K, D) those metrics that need
        them are left out.

        Where classes have no samples, "absent_classes" lists them, and the others are measured.
        Then, and where no class has two samples, some metrics are not defined, and neither is
        "overall": they are not in the result (`undefined_metrics`).
        """
        if prototypes is not None:  # before the long work
            self._check_prototypes(prototypes)
        s = self.statistics()
        formulas: dict[str, Callable[[], float]] = {
            info.name: partial(getattr(geometry, info.name), s)
            for info in METRICS
            if not info.needs_prototypes
        }
        if prototypes is not None:
            formulas |= self._against(prototypes.detach().to(s.means.device).double(), s)
        undefined = undefined_metrics(s.counts.tolist(), self.num_classes)
        infos = [info for info in METRICS if info.name in formulas.keys() - undefined]
        result: dict[str, Any] = {info.name: formulas[info.name]() for info in infos}
        attained = {i.name: i.attained(result[i.name], self.optima[i.name], s) for i in infos}
        if "overall" not in undefined:
            readable = [info.name for info in infos if info.min_classes <= self.num_classes]
            attained["overall"] = min(attained[name] for name in readable)
        result["attained"] = attained
        if absent := {*range(self.num_classes)} - {*s.classes.tolist()}:
            result["absent_classes"] = sorted(absent)
        if isinstance(self.keep, int):
            result["samples_per_class"] = self.keep
        return result

    def _against(self, w: Tensor, s: ClassStatistics) -> dict[str, Callable[[], float]]:
        """The formulas of the metrics that need the prototypes (K, D)."""
        own = w[s.classes]
        grams = cache(lambda: (geometry.prototype_gram(w), geometry.class_mean_gram(s)))
        formulas = {
            "prototype_effective_rank": partial(geometry.prototype_effective_rank, w),
            "instance_alignment": partial(geometry.instance_alignment, s, own),
            "class_alignment": partial(geometry.class_alignment, s, own),
            "mutual_information_ratio": lambda: geometry.mutual_information_ratio(*grams()),
            "entropy_difference_ratio": lambda: geometry.entropy_difference_ratio(*grams()),
            "nc3_self_duality": partial(geometry.nc3_self_duality, s, own),
        }
        if self._embeddings is not None:
            formulas["nc4_agreement"] = lambda: s.sample_mean(self._agreement_per_class(s, w))
        return formulas

    def _agreement_per_class(self, statistics: ClassStatistics, prototypes: Tensor) -> Tensor:
        """(K,) share of the kept embeddings of each class for which `nc4_agreement` is true."""
        device = prototypes.device
        agreeing, kept = torch.zeros(2, self.num_classes, dtype=torch.float64, device=device)
        for rows, labels in self._embeddings.batches():
            labels = labels.to(device)
            agrees = geometry.nc4_agreement(rows.to(device), statistics, prototypes).double()
            agreeing.index_add_(0, labels, agrees)
            kept.index_add_(0, labels, torch.ones_like(agrees))
        if self._group is not None:
            dist.all_reduce(agreeing, group=self._group)
            dist.all_reduce(kept, group=self._group)
        return agreeing / kept

    def _check_prototypes(self, prototypes: Tensor) -> None:
        shape = (self.num_classes, self.embedding_dim)
        zero_rows = int((prototypes == 0).all(-1).sum())
        if prototypes.shape != shape or count_non_finite(prototypes) or zero_rows:
            raise ValueError(
                f"prototypes must be finite, non-zero rows of shape {shape}, one per class, "
                f"got shape {tuple(prototypes.shape)}, {zero_rows} zero rows and "
                f"{count_non_finite(prototypes)} non-finite values."
            )
