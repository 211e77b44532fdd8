"""What `NeuralCollapse` remembers of the embeddings it is fed: all of them, some, or their moments.

All is in lists of tensors, the states of the metric: torchmetrics saves, copies and resets them.
The classes here are how to read these lists and to add to them. Nothing here knows a formula."""

import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

# Of the blocks, sorted by class: one class is a few hundred contiguous reads at ImageNet's size.
BLOCK_BYTES = 2**26


class EmbeddingStore:
    """Embeddings in blocks: all of them or at most `size` of each class.

    They keep the dtype they come in, so half precision takes half the room, and live on the CPU.
    Of all of them, blocks beyond `memory_limit` bytes are in a temporary file without a name, which
    vanishes with the process, however that ends; a block that still grows is in memory.

    Args:
        rows, labels: of each block (n, D) and (n,), sorted by class. They are not changed.
        size: keep a uniform sample. It is chosen by the values of the embeddings alone (`ranks`):
            the same one in batches of any size, in any order, over any number of processes.
        directory: of the file; None is the system's folder for temporary files.
    """

    def __init__(
        self, num_classes: int, dim: int, rows: "Sequence[Tensor | OnDisk]" = (), labels: Sequence[Tensor] = (), *,
        size: int | None = None, memory_limit: float = math.inf, directory: str | None = None,
    ) -> None:  # fmt: skip
        self.num_classes, self.dim, self.size = num_classes, dim, size
        self.memory_limit, self.directory = memory_limit, directory
        self.rows, self.labels = [*rows], [*labels]

    def append(self, embeddings: Tensor, labels: Tensor) -> None:
        """Embeddings (M, D) and labels (M,), on any device."""
        if len(labels) == 0:
            return
        labels = labels.detach().cpu().long()
        order = labels.argsort(stable=True)
        # Indexing copies: the caller may use the same buffer again.
        self._add(embeddings.detach().cpu()[order], labels[order])

    def merge(self, other: "EmbeddingStore") -> None:
        for rows, labels in zip(other.rows, other.labels):
            self._add(rows, labels)

    def _add(self, rows: "Tensor | OnDisk", labels: Tensor) -> None:
        self.rows.append(rows)
        self.labels.append(labels)
        # As one carries when counting: a block joins the one before it when it has grown as large.
        while len(self.rows) > 1 and self._may_join(*self.rows[-2:]):
            self._join(2)
        in_memory = [i for i, block in enumerate(self.rows) if isinstance(block, Tensor)]
        excess = sum(self.rows[i].nbytes for i in in_memory) - self.memory_limit
        for i in in_memory:
            if excess > 0 and self.rows[i].nbytes > BLOCK_BYTES / 2:  # one that grows no more
                excess -= self.rows[i].nbytes
                self.rows[i] = self._written(self.rows[i])

    def _may_join(self, before: "Tensor | OnDisk", last: "Tensor | OnDisk") -> bool:
        if isinstance(before, OnDisk) or 2 * len(last) <= len(before):
            return False
        return self.size is not None or (before.dtype == last.dtype and before.nbytes + last.nbytes <= BLOCK_BYTES)

    def _join(self, num: int) -> None:
        """The last blocks become one, of a sample those with the lowest ranks in each class."""
        rows, labels = torch.cat(self.rows[-num:]), torch.cat(self.labels[-num:])
        order = torch.arange(len(labels)) if self.size is None else ranks(rows).argsort()
        order = order[labels[order].argsort(stable=True)]
        if self.size is not None:
            order = order[places(labels[order]) < self.size]
        self.rows[-num:], self.labels[-num:] = [rows[order]], [labels[order]]

    def _written(self, rows: Tensor) -> "OnDisk":
        files = (block.file for block in self.rows if isinstance(block, OnDisk))
        try:
            # It closes with the last block in it.
            new = partial(tempfile.TemporaryFile, dir=self.directory, buffering=0)
            return OnDisk(next(files, None) or new(), rows)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f"no space left for the embeddings beyond memory_limit={self.memory_limit} bytes in "
                f"{self.directory or tempfile.gettempdir()}: give another directory, a higher limit, or another keep.",
            ) from error

    @property
    def counts(self) -> Tensor:
        """(K,) of those kept."""
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        return sum((labels.bincount(minlength=len(counts)) for labels in self.labels), counts)

    def of_classes(self, classes: slice) -> Tensor:
        """(n, D) of the classes from `start` to before `stop`, by class, in the order in which they came, or of their
        ranks."""
        bounds = torch.tensor([classes.start, classes.stop])
        ends = [torch.searchsorted(y, bounds).tolist() for y in self.labels]
        parts = [(x[a:b], y[a:b]) for x, y, (a, b) in zip(self.rows, self.labels, ends) if a < b]
        if not parts:
            return torch.empty(0, self.dim)
        rows, labels = (torch.cat(blocks) for blocks in zip(*parts))
        return rows[labels.argsort(stable=True)]

    def settled(self) -> "EmbeddingStore":
        """Ready to be read: of a sample, no more than `size` of each class."""
        if self.size is not None and self.rows:
            self._join(len(self.rows))
        return self

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything as (rows, labels), in pieces that an allocator keeps for the next one."""
        size = 1 + BLOCK_BYTES // (32 * self.dim)
        for block, labels in zip(self.rows, self.labels):
            for start in range(0, len(block), size):
                yield block[start : start + size], labels[start : start + size]


class OnDisk:
    """Rows (n, D) at the end of a file, which are read by slices. Its copies are in memory."""

    def __init__(self, file: IO[bytes], rows: Tensor) -> None:
        self.file, self.offset = file, file.seek(0, os.SEEK_END)
        self.shape, self.dtype, self.nbytes = rows.shape, rows.dtype, rows.nbytes
        data = memoryview(rows.view(torch.uint8).numpy()).cast("B")
        while data:
            data = data[file.write(data) :]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        row_bytes = self.nbytes // len(self)
        self.file.seek(self.offset + start * row_bytes)
        data = np.fromfile(self.file, np.uint8, (stop - start) * row_bytes)
        return torch.from_numpy(data).view(stop - start, row_bytes).view(self.dtype)

    def to(self, device: Any) -> "OnDisk":  # torchmetrics, to "compute_on_cpu"
        return self

    def __reduce__(self) -> tuple:  # as pickle and deepcopy see it
        return Tensor.contiguous, (self[:],)

    @classmethod
    def __torch_function__(cls, function: Callable, _: Any, args: tuple, kwargs: Any = None) -> Any:
        # torchmetrics compares the states of metrics in a collection by torch.allclose
        return function(*(a[:] if isinstance(a, cls) else a for a in args), **(kwargs or {}))


def ranks(rows: Tensor) -> Tensor:
    """(n,) int64, as good as random, of the values of each of the rows (n, D) and nothing else."""
    bits = rows.double().view(torch.int64)
    factors = torch.randint(-(2**62), 2**62, rows.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 + 1
    mixed = (bits * factors).sum(1) + factors[0]  # zeros too are anywhere
    for shift in (32, 29, 32):
        mixed = (mixed ^ (mixed >> shift)) * 0x2545F4914F6CDD1D
    return mixed


def places(labels: Tensor) -> Tensor:
    """(n,) how many of the same class come before, of labels sorted by class."""
    counts = labels.bincount()
    return torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)


@dataclass
class ClassMoments:
    """Counts, sums and second moments: additive, in memory that does not grow.

    Centred on the first embedding of each class, so that nothing cancels near collapse. float64."""

    counts: Tensor  # (K,) int64
    origins: Tensor  # (K, D)
    sums: Tensor  # (K, D) of h − origin
    squares: Tensor  # (K,) of ‖h − origin‖²
    second: Tensor  # (K, D, D) of (h − origin)(h − origin)ᵀ, or (D, D) their sum, pooled

    @classmethod
    def none(cls, num_classes: int, dim: int, per_class: bool, device: torch.device) -> "ClassMoments":
        k, d = [num_classes], [dim]
        counts = torch.zeros(k, dtype=torch.int64, device=device)
        shapes = k + d, k + d, k, (k if per_class else []) + d + d
        return cls(counts, *(torch.zeros(s, dtype=torch.float64, device=device) for s in shapes))

    @property
    def per_class(self) -> bool:
        return self.second.ndim == 3

    def append(self, embeddings: Tensor, labels: Tensor) -> None:
        """In place."""
        labels = labels.detach().to(self.counts.device).long()
        rows = embeddings.detach().to(self.counts.device).double()
        num_classes = len(self.counts)
        order = torch.arange(len(labels), device=labels.device)
        first = labels.new_full((num_classes,), len(labels)).scatter_reduce(0, labels, order, "amin")
        new = ((self.counts == 0) & (first < len(labels))).nonzero().flatten()
        self.origins[new] = rows[first[new]]
        residual = rows - self.origins[labels]
        self.counts += labels.bincount(minlength=num_classes)
        self.sums.index_add_(0, labels, residual)
        self.squares.index_add_(0, labels, residual.square().sum(1))
        if not self.per_class:
            self.second.addmm_(residual.T, residual)
            return
        for c in labels.unique().tolist():
            members = residual[labels == c]
            self.second[c].addmm_(members.T, members)

    def moved(self, origins: Tensor) -> "ClassMoments":
        """The same moments around other origins (K, D)."""
        counts = self.counts.double()
        offset = torch.where(self.counts[:, None] > 0, self.origins - origins, 0.0)  # (K, D)
        sums = self.sums + counts[:, None] * offset
        squares = self.squares + 2 * (self.sums * offset).sum(1) + counts * offset.square().sum(1)
        # S δᵀ + δ Sᵀ + n δ δᵀ = (S + n δ) δᵀ + δ Sᵀ, in every class
        if self.per_class:
            second = self.second + sums[:, :, None] * offset[:, None]
            second += offset[:, :, None] * self.sums[:, None]
        else:
            second = self.second + sums.T @ offset + offset.T @ self.sums
        return ClassMoments(self.counts.clone(), origins.clone(), sums, squares, second)

    def merged(self, other: "ClassMoments") -> "ClassMoments":
        """Of both; neither is changed."""
        theirs = [tensor.to(self.counts.device) for tensor in other.tensors]
        both = ClassMoments(*theirs).moved(torch.where((self.counts == 0)[:, None], theirs[1], self.origins))
        for mine, tensor in zip(self.additive, both.additive):
            tensor += mine
        return both

    @property
    def tensors(self) -> list[Tensor]:
        return [self.counts, self.origins, self.sums, self.squares, self.second]

    @property
    def additive(self) -> list[Tensor]:
        """What adds up over moments with the same origins."""
        return [self.counts, self.sums, self.squares, self.second]
