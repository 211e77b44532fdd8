"""`NeuralCollapse`: every figure of neural collapse over batches, beside its optimum.

The formulas are in `geometry.py`; here they are accumulated, named, and put on one scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .geometry import (
    ClassStatistics,
    check_batch,
    class_alignment,
    class_mean_gram,
    class_statistics,
    count_non_finite,
    entropy_difference_ratio,
    instance_alignment,
    inter_class_effective_rank,
    intra_class_effective_rank,
    mutual_information_ratio,
    nc1_cdnv,
    nc1_variability,
    nc2_equiangular,
    nc2_equinorm,
    nc3_self_duality,
    nc4_agreement,
    prototype_effective_rank,
    prototype_gram,
    simplex_etf_mutual_information_ratio,
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
    """What tables, plots and cards need to know of one figure of `NeuralCollapse.compute()`."""

    name: str
    title: str
    reference: str
    needs_prototypes: bool
    zero_at: float | Callable[[ClassStatistics], float] = math.inf  # the value that attains 0 %
    optimum: Callable[[int, int], float] = _zero  # of num_classes and embedding_dim
    min_classes: int = 2  # with fewer the figure is not readable and stays out of "overall"

    @property
    def higher_is_better(self) -> bool:
        return self.optimum is not _zero

    def attained(self, value: float, statistics: ClassStatistics) -> float:
        """Percentage of the optimum, clamped to [0, 100]: value / optimum where higher is better,
        else 1 − value / zero_at, or 1 / (1 + value) where there is no upper end."""
        zero_at = self.zero_at(statistics) if callable(self.zero_at) else self.zero_at
        if self.higher_is_better:
            share = value / self.optimum(*statistics.means.shape)
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
        optimum=lambda num_classes, _: simplex_etf_mutual_information_ratio(num_classes),
    ),
    MetricInfo("entropy_difference_ratio", "Entropy difference", _SONG, True, 1.0, min_classes=3),
    MetricInfo("nc1_variability", "NC1 variability", _PAPYAN, False),
    MetricInfo("nc1_cdnv", "NC1 CDNV", "Galanti et al. 2022", False),
    MetricInfo("nc2_equinorm", "NC2 equinorm", _PAPYAN, False, 1.0),
    MetricInfo("nc2_equiangular", "NC2 equiangular", _PAPYAN, False, 1.0),
    MetricInfo("nc3_self_duality", "NC3 self-duality", _PAPYAN, True, 2.0),
    MetricInfo("nc4_agreement", "NC4 agreement", _PAPYAN, True, optimum=lambda k, d: 1.0),
)


class NeuralCollapse(Metric):
    """All figures of `METRICS` over batches of embeddings (M, D) and labels (M,).

    Accumulate the whole data set with `update`, best with balanced classes and unit embeddings;
    then `compute(prototypes)`, as often as you like. Embeddings are kept (half precision as
    float32) and gathered over processes, each of which must have updated once, if with M = 0.

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
    higher_is_better = None  # differs per figure, see METRICS
    full_state_update = False

    def __init__(self, num_classes: int, embedding_dim: int, **kwargs: Any) -> None:
        if num_classes < 2 or embedding_dim < 1:
            raise ValueError(
                "num_classes must be at least 2 and embedding_dim at least 1, "
                f"got num_classes={num_classes} and embedding_dim={embedding_dim}."
            )
        # torchmetrics would answer other prototypes with the cached values of the first ones
        super().__init__(compute_with_cache=False, **kwargs)
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        check_batch(embeddings, labels, self.num_classes, self.embedding_dim)
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        self.embeddings.append(embeddings.detach().to(dtype))
        self.labels.append(labels.detach().long())

    def compute(self, prototypes: Tensor | None = None) -> dict[str, float | dict[str, float]]:
        """The figures by name, and "attained": percentages of their optima (`MetricInfo.attained`)
        with "overall", the *minimum* of them. Without prototypes (K, D) those figures that need
        them are left out."""
        if len(self.embeddings) == 0:  # a list, or a tensor once gathered
            raise ValueError("No embeddings yet: call update(embeddings, labels) before compute().")
        embeddings, labels = dim_zero_cat(self.embeddings), dim_zero_cat(self.labels)
        if embeddings.device.type == "mps":  # which has no float64
            embeddings, labels = embeddings.cpu(), labels.cpu()
        s = class_statistics(embeddings, labels, self.num_classes)
        values = {
            "intra_class_effective_rank": intra_class_effective_rank(s),
            "inter_class_effective_rank": inter_class_effective_rank(s),
            "nc1_variability": nc1_variability(s),
            "nc1_cdnv": nc1_cdnv(s),
            "nc2_equinorm": nc2_equinorm(s),
            "nc2_equiangular": nc2_equiangular(s),
        }
        if prototypes is not None:
            shape = (self.num_classes, self.embedding_dim)
            zero_rows = int((prototypes == 0).all(-1).sum())
            if prototypes.shape != shape or count_non_finite(prototypes) or zero_rows:
                raise ValueError(
                    f"prototypes must be finite, non-zero rows of shape {shape}, one per class, "
                    f"got shape {tuple(prototypes.shape)}, {zero_rows} zero rows and "
                    f"{count_non_finite(prototypes)} non-finite values."
                )
            w = prototypes.detach().to(embeddings.device).double()
            grams = prototype_gram(w), class_mean_gram(s)
            values |= {
                "prototype_effective_rank": prototype_effective_rank(w),
                "instance_alignment": instance_alignment(s, w),
                "class_alignment": class_alignment(s, w),
                "mutual_information_ratio": mutual_information_ratio(*grams),
                "entropy_difference_ratio": entropy_difference_ratio(*grams),
                "nc3_self_duality": nc3_self_duality(s, w),
                "nc4_agreement": nc4_agreement(embeddings, s, w),
            }
        infos = [info for info in METRICS if info.name in values]
        attained = {info.name: info.attained(values[info.name], s) for info in infos}
        readable = [info.name for info in infos if info.min_classes <= self.num_classes]
        attained["overall"] = min(attained[name] for name in readable)
        return {info.name: values[info.name] for info in infos} | {"attained": attained}
