"""`NeuralCollapse`: every metric of neural collapse over batches, beside its optimum.

The formulas are in `geometry.py`; here they are accumulated, named, and put on one scale."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.metric import CompositionalMetric

from . import class_statistics, geometry
from .accumulators import ClassMoments, EmbeddingStore
from .class_statistics import ClassStatistics, count_non_finite, summed


def _zero(num_classes: int, embedding_dim: int) -> float:
    return 0.0


def _full_rank(num_classes: int, embedding_dim: int) -> float:
    return float(min(num_classes - 1, embedding_dim))


def _largest_rank(statistics: ClassStatistics) -> float:
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
    MetricInfo("intra_class_effective_rank", "Intra-class rank", _PAPER, False, _largest_rank),
    MetricInfo("inter_class_effective_rank", "Inter-class rank", _PAPER, False, optimum=_full_rank),
    MetricInfo("prototype_effective_rank", "Prototype rank", _PAPER, True, optimum=_full_rank),
    MetricInfo("instance_alignment", "Instance alignment", _PAPER, True, 2.0),
    MetricInfo("class_alignment", "Class alignment", _PAPER, True, 2.0),
    MetricInfo(
        "mutual_information_ratio", "Mutual information ratio", _SONG, True, min_classes=3,
        optimum=lambda k, d: geometry.simplex_etf_mutual_information_ratio(k),
    ),
    MetricInfo("entropy_difference_ratio", "Entropy difference", _SONG, True, 1.0, min_classes=3),
    MetricInfo("nc1_variability", "NC1 variability", _PAPYAN, False),
    MetricInfo("nc1_cdnv", "NC1 CDNV", "Galanti et al. 2022", False),
    MetricInfo("nc2_equinorm", "NC2 equinorm", _PAPYAN, False, 1.0),
    MetricInfo("nc2_equiangular", "NC2 equiangular", _PAPYAN, False, 1.0),
    MetricInfo("nc3_self_duality", "NC3 self-duality", _PAPYAN, True, 2.0),
    MetricInfo("nc4_agreement", "NC4 agreement", _PAPYAN, True, optimum=lambda k, d: 1.0),
)  # fmt: skip


def undefined_metrics(counts: Iterable[float], num_classes: int) -> set[str]:
    """Which metrics, and "overall", are not defined where classes have so many samples.

    What compares with the geometry of all K classes is not where one has none; nor is what varies
    within classes where none has two; and the means of only two classes are always opposite.

    Args:
        counts: of each class, or of those only that have samples.

    >>> undefined_metrics([4, 1, 1], num_classes=3)
    set()
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
    then `compute(prototypes)`, as often as you like. Called with a batch, it accumulates as well,
    and returns the metrics of that batch. Over processes each updates with its own samples, and
    `compute`, called by all, gives every one the metrics of all samples. As any torchmetrics metric
    it can be cloned, pickled, saved by `state_dict()` after `persistent(True)`, and be in a
    `MetricCollection`. A copy is in memory, whatever `memory_limit`, until its next update.

    Args:
        num_classes: K ≥ 2. Of classes without samples `compute` says which they are.
        embedding_dim: D.
        keep: what is remembered of the embeddings.
            "embeddings": all of them, in the dtype they come in. Every metric is exact.
            "moments": K·D² second moments in float64, whatever N. All metrics are exact, but
            `nc4_agreement` is left out: it asks every sample about the final class means.
            n, an int: D² pooled moments and a sample of at most n embeddings of each class, drawn by a hash of their
            values: the same in any order, batches and processes. `intra_class_effective_rank` and `nc4_agreement` are
            those of the sample, and the result says so by "samples_per_class"; everything else is exact.
        memory_limit: bytes of embeddings to hold in memory (2 GiB). Those beyond go to a temporary
            file. "moments" that would take more are refused.
        directory: of that file; None is the system's, which may itself be memory.

    Raises:
        ValueError: sizes or `keep` out of range; moments beyond the memory limit; in `update`,
            shapes, dtypes, labels out of range, non-finite embeddings; in `compute`, no samples at
            all, or prototypes that do not fit; in `load_state_dict`, a state of other sizes.

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
    full_state_update = True  # `forward` puts what was kept aside: a batch refused costs none of it

    def __init__(
        self, num_classes: int, embedding_dim: int, *, keep: Literal["embeddings", "moments"] | int = "embeddings",
        memory_limit: int = 2 * 2**30, directory: str | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        if num_classes < 2 or embedding_dim < 1:
            raise ValueError(f"num_classes must be ≥ 2 and embedding_dim ≥ 1, got {num_classes} and {embedding_dim}.")
        if keep not in ("embeddings", "moments") and not (isinstance(keep, int) and keep >= 2):
            raise ValueError(
                f"keep must be 'embeddings', 'moments' or a number per class of at least 2, got {keep!r}."
            )
        needed = 8 * num_classes * embedding_dim**2
        if keep == "moments" and needed > memory_limit:
            raise ValueError(
                f"keep='moments' takes {needed} bytes, more than memory_limit={memory_limit}: keep a number."
            )
        # torchmetrics would answer other prototypes with the cached values of the first ones
        super().__init__(compute_with_cache=False, **kwargs)
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.keep, self.memory_limit, self.directory = keep, memory_limit, directory
        # What the states are of. Two metrics of a collection share them only if it is the same.
        kind = {"embeddings": -1, "moments": 0}.get(keep, keep)
        self.add_state("sizes", torch.tensor([num_classes, embedding_dim, kind], device="cpu"))
        for name in ("rows", "labels", "moments"):  # of an `EmbeddingStore` and of `ClassMoments`
            self.add_state(name, [])

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        class_statistics.check_batch(embeddings, labels, self.num_classes, self.embedding_dim)
        if self.keep != "moments":
            store = self._store
            store.append(embeddings, labels)
            self.rows, self.labels = store.rows, store.labels
        if self.keep != "embeddings":
            moments = self._moments
            moments.append(embeddings, labels)
            self.moments = moments.tensors

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Any]:
        if len(labels) or self.dist_sync_on_step:
            return super().forward(embeddings, labels)
        self.update(embeddings, labels)
        return {"attained": {}, "absent_classes": list(range(self.num_classes))}

    @property
    def _store(self) -> EmbeddingStore:
        """A copy of the lists, to read from and to append to."""
        sizes = self.num_classes, self.embedding_dim, self.rows, self.labels
        if isinstance(self.keep, int):
            return EmbeddingStore(*sizes, size=self.keep)
        return EmbeddingStore(*sizes, memory_limit=self.memory_limit, directory=self.directory)

    @property
    def _moments(self) -> ClassMoments:
        """Of the states; before the first embeddings zeros, on the device of the metric."""
        if self.moments:
            return ClassMoments(*self.moments)
        return ClassMoments.none(self.num_classes, self.embedding_dim, self.keep == "moments", self._float64_device)

    @property
    def optima(self) -> dict[str, float]:
        """What each metric is at neural collapse."""
        return {info.name: info.optimum(self.num_classes, self.embedding_dim) for info in METRICS}

    def merge_state(self, incoming_state: "NeuralCollapse | dict[str, Any]") -> None:
        """Add what another metric of the same sizes and the same `keep` has accumulated."""
        state = incoming_state if isinstance(incoming_state, dict) else incoming_state.metric_state
        self._check_sizes(state["sizes"])
        self._update_count += 1
        store, sizes = self._store, self.sizes[:2].tolist()
        store.merge(EmbeddingStore(*sizes, state["rows"], state["labels"]))
        self.rows, self.labels = store.rows, store.labels
        if state["moments"]:
            self.moments = self._moments.merged(ClassMoments(*state["moments"])).tensors

    def _check_sizes(self, sizes: Tensor) -> None:
        if not torch.equal(sizes.cpu(), self.sizes):
            raise ValueError(
                "a state must be of the same num_classes, embedding_dim and keep (-1 is 'embeddings', 0 'moments'), "
                f"but has {sizes.tolist()}, and not {self.sizes.tolist()}."
            )

    def __getitem__(self, name: str) -> CompositionalMetric:
        """One of the metrics, or "overall", as a metric of its own: a tensor, nan where it is not
        defined. `BootStrapper`, `MetricTracker` and Lightning's `log` take such."""
        if name not in self.optima | {"overall": 100.0}:
            raise KeyError(f"{name} is none of {', '.join(self.optima)}, overall.")
        value = partial(_one_of, name)
        value.__name__ = name  # CompositionalMetric shows it
        return CompositionalMetric(value, self, None)

    # What torchmetrics does with states, where lists of tensors as large as these need care

    def _copy_state_dict(self) -> dict[str, Any]:
        # Of lists only: embeddings once laid down never change, and are the larger part of memory.
        return {k: [*v] if isinstance(v, list) else v for k, v in self.metric_state.items()}

    def _sync_dist(self, *_: Any, **__: Any) -> None:
        """Nothing is gathered whole: `compute` exchanges what it needs of it."""

    def _apply(self, fn: Callable, exclude_state: Any = ()) -> Metric:
        # Embeddings stay on the CPU, moments on the device where they began, in float64.
        return super()._apply(fn, tuple(self._defaults))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments: Any) -> None:
        self._check_sizes(state_dict.get(prefix + "sizes", self.sizes))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        # What was loaded stays as it is: a list of its own, and moments change in place.
        self.rows, self.labels = [*self.rows], [*self.labels]
        self.moments = [tensor.clone() for tensor in self.moments]

    @property
    def _float64_device(self) -> torch.device:
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @property
    def _group(self) -> dist.ProcessGroup | None:
        together = self._to_sync and self.distributed_available_fn()
        return (self.process_group or dist.group.WORLD) if together else None

    def compute(self, prototypes: Tensor | None = None) -> dict[str, float | dict[str, float]]:
        """The metrics by name, and "attained": percentages of their optima (`MetricInfo.attained`) with "overall", the
        *minimum* of them. Without prototypes (K, D) those metrics that need them are left out.

        Where classes have no samples, "absent_classes" lists them, and the others are measured.
        Then, and where no class has two samples, some metrics are not defined, and neither is
        "overall": they are not in the result (`undefined_metrics`). The same, with a warning, where
        all class means coincide. "attained_nonnegative" is `geometry.attained_nonnegative`. Of more
        than 4,096 classes the mutual information ratio is left out: ask `geometry.mutual_information_ratio` for it."""
        if prototypes is not None:  # before the long work
            self._check_prototypes(prototypes)
        kept, device, group = self._store, self._float64_device, self._group
        if self.keep == "embeddings":
            s = class_statistics.statistics_of_embeddings(kept, device, group)
        else:
            if isinstance(self.keep, int):
                kept = class_statistics.sample_of_all(kept, device, group)
            s = class_statistics.statistics_of_moments(self._moments, kept, group)
        formulas: dict[str, Callable[[], float]] = {
            info.name: partial(getattr(geometry, info.name), s) for info in METRICS if not info.needs_prototypes
        }
        if prototypes is not None:
            formulas |= self._against(prototypes.detach().to(s.means.device).double(), s, kept)
        undefined = undefined_metrics(s.counts.tolist(), self.num_classes)
        if len(s.classes) > 1 and not s.centred_means.any():
            warnings.warn(geometry.COINCIDING.format(len(s.classes)), stacklevel=2)
            undefined |= {"nc1_variability", "nc2_equinorm", "nc2_equiangular", "nc3_self_duality"}
            undefined.add("overall")
        infos = [info for info in METRICS if info.name in formulas.keys() - undefined]
        result: dict[str, Any] = {info.name: formulas[info.name]() for info in infos}
        attained = {i.name: i.attained(result[i.name], self.optima[i.name], s) for i in infos}
        if "overall" not in undefined:
            readable = [info.name for info in infos if info.min_classes <= self.num_classes]
            attained["overall"] = min(attained[name] for name in readable)
        result["attained"] = attained
        if limited := geometry.attained_nonnegative(attained, s.means, prototypes):
            result["attained_nonnegative"] = limited
        if absent := {*range(self.num_classes)} - {*s.classes.tolist()}:
            result["absent_classes"] = sorted(absent)
        if isinstance(self.keep, int):
            result["samples_per_class"] = self.keep
        return result

    def _against(self, w: Tensor, s: ClassStatistics, kept: EmbeddingStore) -> dict[str, Callable[[], float]]:
        """The formulas of the metrics that need the prototypes (K, D)."""
        own = w[s.classes]
        rows = cache(lambda: (F.normalize(w, dim=1), geometry.class_mean_directions(s)))
        formulas = {
            "prototype_effective_rank": partial(geometry.prototype_effective_rank, w),
            "instance_alignment": partial(geometry.instance_alignment, s, own),
            "class_alignment": partial(geometry.class_alignment, s, own),
            "mutual_information_ratio": lambda: geometry.mutual_information_ratio(*rows()),
            "entropy_difference_ratio": lambda: geometry.entropy_difference_ratio(*rows()),
            "nc3_self_duality": partial(geometry.nc3_self_duality, s, own),
        }
        if len(w) > geometry.MOST_DECOMPOSED:
            del formulas["mutual_information_ratio"]
        if self.keep != "moments":
            formulas["nc4_agreement"] = partial(self._agreement, kept, s, w)
        return formulas

    def _agreement(self, store: EmbeddingStore, s: ClassStatistics, w: Tensor) -> float:
        """The share for which `nc4_agreement` is true; of each class, that of those kept."""
        kept = store.counts.to(w.device)
        agreeing, agrees = torch.zeros_like(kept), geometry.nc4_agreement(s, w)
        for rows, labels in store.batches():
            agreeing += labels.to(w.device)[agrees(rows.to(w.device))].bincount(minlength=self.num_classes)
        return s.sample_mean(summed(agreeing, self._group).double() / summed(kept, self._group))

    def _check_prototypes(self, prototypes: Tensor) -> None:
        shape, zero_rows = (self.num_classes, self.embedding_dim), int((prototypes == 0).all(-1).sum())
        if prototypes.shape != shape or count_non_finite(prototypes) or zero_rows:
            raise ValueError(
                f"prototypes must be finite, non-zero rows of shape {shape}, got {tuple(prototypes.shape)} with "
                f"{zero_rows} zero rows and {count_non_finite(prototypes)} non-finite values."
            )


def _one_of(name: str, values: dict[str, Any]) -> Tensor:
    values = values["attained"] if name == "overall" else values
    return torch.tensor(values.get(name, math.nan), dtype=torch.float64)
