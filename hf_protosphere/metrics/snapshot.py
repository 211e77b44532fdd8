"""A snapshot of a classifier's geometry: some embeddings, all class means, all prototypes.

Everything that pictures of the sphere need. `runs.snapshots` keeps it in a file."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .accumulators import places

# Numbers in the embeddings kept, over all classes: 8 MB in float32. At most so many per class.
MAX_NUMBERS, MAX_PER_CLASS = 2_000_000, 200


@dataclass(frozen=True)
class Snapshot:
    """Where the images of one split fall on the sphere. All vectors are rows of unit norm."""

    embeddings: Tensor  # (n, D) of the first images of each class
    labels: Tensor  # (n,) int64
    class_means: Tensor  # (K, D) of all images; a row of zeros for a class without any
    prototypes: Tensor  # (K, D)
    own_cosines: Tensor  # (N,) of every image to the prototype of its class
    nearest_other_cosines: Tensor  # (N,) to the nearest prototype of another class
    class_names: list[str]
    split: str

    @classmethod
    def of_prototypes(cls, prototypes: Tensor, class_names: list[str]) -> "Snapshot":
        """Without images: prototypes (K, D), unit rows, stand for the class means too."""
        prototypes = prototypes.detach().float().cpu()
        none, cosines = torch.empty(0, dtype=torch.int64), torch.empty(0)
        return cls(prototypes[:0], none, prototypes, prototypes, cosines, cosines, class_names, "")

    def check(self) -> None:
        """Refuse tensors that do not fit each other or the classes, or are not finite."""
        classes, dim = self.prototypes.shape
        n, count = len(self.labels), len(self.own_cosines)
        shapes = {
            "embeddings": (n, dim), "labels": (n,), "class_means": (classes, dim),
            "own_cosines": (count,), "nearest_other_cosines": (count,),
        }  # fmt: skip
        found = {name: (*getattr(self, name).shape,) for name in shapes}
        if found != shapes:
            raise ValueError(f"it holds {found}, and should hold {shapes}.")
        for name, tensor in vars(self).items():
            floats = isinstance(tensor, Tensor) and name != "labels"
            if floats and not (tensor.dtype == torch.float32 and tensor.isfinite().all()):
                raise ValueError(f"its {name} are no finite numbers in float32.")
        if self.labels.dtype != torch.int64 or not ((self.labels >= 0) & (self.labels < classes)).all():
            raise ValueError(f"its labels are none of {classes} classes.")
        if [*map(type, self.class_names)] != [str] * classes:
            raise ValueError(f"it must name {classes} classes, but holds {self.class_names!r:.40}.")

    @property
    def center(self) -> Tensor:
        """(D,) the mean of the embeddings that it holds, each class as much as another."""
        sums = torch.zeros_like(self.class_means).index_add_(0, self.labels, self.embeddings)
        counts = self.labels.bincount(minlength=len(sums))
        return (sums[counts > 0] / counts[counts > 0, None]).mean(0)

    @property
    def known(self) -> tuple[Tensor, Tensor]:
        """(n, D) and (n,): the embeddings that it holds with their labels, and the means of classes without any."""
        alone = (self.labels.bincount(minlength=len(self.class_means)) == 0) & self.class_means.any(1)
        return torch.cat([self.embeddings, self.class_means[alone]]), torch.cat([self.labels, alone.nonzero()[:, 0]])


class SnapshotCollector:
    """Takes a snapshot from batches, beside prototypes (K, D), unit rows.

    Example:
        >>> collector = SnapshotCollector(torch.eye(2))
        >>> collector.update(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([1, 0]))
        >>> collector.snapshot(["cat", "dog"], "test").own_cosines
        tensor([0.8000, 1.0000])
    """

    def __init__(self, prototypes: Tensor) -> None:
        self.prototypes = prototypes.detach().float()
        num_classes, dim = prototypes.shape
        per_class = MAX_NUMBERS // (num_classes * dim)
        self.room = torch.full((num_classes,), min(max(per_class, 2), MAX_PER_CLASS))
        self.sums = torch.zeros_like(self.prototypes, dtype=torch.float64)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._cosines: list[Tensor] = []

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Embeddings (M, D), unit rows, and labels (M,) in [0, K)."""
        embeddings = embeddings.detach().float()
        self.sums.index_add_(0, labels, embeddings.double())
        own = (embeddings * self.prototypes[labels]).sum(1)
        for part, of_part, y in zip(*(x.split(2**24 // len(self.room) + 1) for x in (embeddings, own, labels))):
            others = (part @ self.prototypes.T).scatter_(1, y[:, None], -torch.inf).amax(1)  # of (M, K)
            self._cosines.append(torch.stack([of_part, others], 1).cpu())
        if self.room.any():
            embeddings, labels = embeddings.cpu(), labels.cpu()
            order = labels.argsort(stable=True)
            fits = torch.empty_like(labels).scatter_(0, order, places(labels[order])) < self.room[labels]
            self._kept.append((embeddings[fits], labels[fits]))
            self.room -= labels[fits].bincount(minlength=len(self.room))

    def snapshot(self, class_names: list[str], split: str) -> Snapshot:
        embeddings, labels = (torch.cat(parts) for parts in zip(*self._kept))
        own, others = torch.cat(self._cosines).unbind(1)
        means = F.normalize(self.sums, dim=1).float().cpu()
        return Snapshot(embeddings, labels, means, self.prototypes.cpu(), own, others, list(class_names), split)
