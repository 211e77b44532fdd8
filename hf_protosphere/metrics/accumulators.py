"""What `NeuralCollapse` remembers of the embeddings it is fed: all of them, some, or their moments.

Each has `append(embeddings (M, D), labels (M,))` and `counts` (K,). Nothing here knows a formula.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

# Embeddings are sorted by class and laid down in blocks of this size: large enough that a class
# is a few hundred contiguous reads at ImageNet's size, small enough to be negligible in memory.
BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class _Block:
    """Rows (n, D) sorted by class, in memory or at `offset` in a file."""

    ends: list[int]  # K + 1: first row of each class, and n
    dtype: torch.dtype
    rows: Tensor | None
    offset: int


class EmbeddingStore:
    """Every embedding, by class: in memory up to `memory_limit` bytes, in a file beyond them.

    Embeddings keep the dtype they come in, so half precision takes half the room. They live on the
    CPU. The file is temporary and has no name: it vanishes with the process, however that ends.

    Args:
        directory: of the file; None is the system's folder for temporary files.
    """

    def __init__(
        self, num_classes: int, dim: int, memory_limit: int, directory: str | None = None
    ) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self.dim, self.memory_limit, self.directory = dim, memory_limit, directory
        self.bytes_in_memory = self.bytes_on_disk = 0
        self._blocks: list[_Block] = []
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._pending_bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, embeddings: Tensor, labels: Tensor) -> None:
        # A copy: the caller may use the same buffer again.
        rows, labels = embeddings.detach().to("cpu", copy=True), labels.detach().cpu().long()
        if self._pending and self._pending[0][0].dtype != rows.dtype:
            self._seal()
        self.counts += labels.bincount(minlength=len(self.counts))
        self._pending.append((rows, labels))
        self._pending_bytes += rows.nbytes
        if self._pending_bytes >= BLOCK_BYTES:
            self._seal()

    def rows(self, label: int) -> Tensor:
        """(n_c, D) all embeddings of a class."""
        self._seal()
        parts = []
        for block in self._blocks:
            start, stop = block.ends[label : label + 2]
            if start < stop:
                parts.append(self._read(block, start, stop))
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything, block by block, as (rows, labels)."""
        self._seal()
        classes = torch.arange(len(self.counts))
        for block in self._blocks:
            labels = classes.repeat_interleave(torch.tensor(block.ends).diff())
            yield self._read(block, 0, len(labels)), labels

    def __str__(self) -> str:
        self._seal()
        places = f"{_mebibytes(self.bytes_in_memory)} in memory"
        if self.bytes_on_disk:
            places += f", {_mebibytes(self.bytes_on_disk)} in a temporary file"
        return f"all {self.counts.sum():,} embeddings: {places}"

    def merge(self, other: EmbeddingStore) -> None:
        for rows, labels in other.batches():
            self.append(rows, labels)

    def _seal(self) -> None:
        if not self._pending:
            return
        rows, labels = (torch.cat(parts) for parts in zip(*self._pending))
        self._pending, self._pending_bytes = [], 0
        rows = rows[labels.argsort(stable=True)]
        ends = [0, *labels.bincount(minlength=len(self.counts)).cumsum(0).tolist()]
        if self.bytes_in_memory + rows.nbytes <= self.memory_limit:
            self.bytes_in_memory += rows.nbytes
            self._blocks.append(_Block(ends, rows.dtype, rows, 0))
        else:
            offset = self.bytes_on_disk
            self._write(rows)
            self._blocks.append(_Block(ends, rows.dtype, None, offset))

    def _write(self, rows: Tensor) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.directory, buffering=0)  # noqa: SIM115
        data = memoryview(rows.view(torch.uint8).numpy()).cast("B")
        try:
            self._file.seek(self.bytes_on_disk)
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f"no space left for the embeddings beyond memory_limit={self.memory_limit} bytes "
                f"in {self.directory or tempfile.gettempdir()}, after {self.bytes_on_disk} bytes. "
                "Give a directory with more room, a higher memory_limit, embeddings in half "
                "precision, or keep='moments' or a number per class.",
            ) from error
        self.bytes_on_disk += rows.nbytes

    def _read(self, block: _Block, start: int, stop: int) -> Tensor:
        if block.rows is not None:
            return block.rows[start:stop]
        row_bytes = self.dim * block.dtype.itemsize
        self._file.seek(block.offset + start * row_bytes)
        data = bytearray((stop - start) * row_bytes)
        view, read = memoryview(data), 0
        while read < len(data):
            read += self._file.readinto(view[read:])
        return torch.frombuffer(data, dtype=block.dtype).view(-1, self.dim)


class EmbeddingSample:
    """At most `size` embeddings of every class: a uniform sample, whatever comes in what order."""

    def __init__(self, num_classes: int, dim: int, size: int) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64)  # of what was seen
        self.dim, self.size = dim, size
        self._generator = torch.Generator().manual_seed(0)
        no_rows, no_labels = torch.empty(0, dim), torch.empty(0, dtype=torch.int64)
        self._kept = [(no_rows, no_labels, torch.empty(0, dtype=torch.float64))]  # and random ranks
        self._num_kept = 0

    def append(self, embeddings: Tensor, labels: Tensor) -> None:
        rows, labels = embeddings.detach().to("cpu", copy=True), labels.detach().cpu().long()
        self.counts += labels.bincount(minlength=len(self.counts))
        ranks = torch.rand(len(labels), generator=self._generator, dtype=torch.float64)
        self._kept.append((rows, labels, ranks))
        self._num_kept += len(labels)
        if self._num_kept > 2 * self.size * len(self.counts):
            self._prune()

    def rows(self, label: int) -> Tensor:
        """(≤ size, D) the sample of a class, in random order."""
        ((rows, labels),) = self.batches()
        return rows[labels == label]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples as (rows, labels), all in one."""
        if len(self._kept) > 1:
            self._prune()
        yield self._kept[0][:2]

    def __str__(self) -> str:
        ((rows, _),) = self.batches()
        return (
            f"{len(rows):,} of {self.counts.sum():,} embeddings, at most {self.size} of each "
            f"class: {_mebibytes(rows.nbytes)} in memory"
        )

    def merge(self, other: EmbeddingSample) -> None:
        self.counts += other.counts
        self._kept += other._kept
        self._prune()

    def _prune(self) -> None:
        """Keep the embeddings of the lowest ranks: those would be kept in any order of batches."""
        rows, labels, ranks = (torch.cat(parts) for parts in zip(*self._kept))
        by_rank = ranks.argsort()
        order = by_rank[labels[by_rank].argsort(stable=True)]  # by class, then by rank
        present = labels.bincount(minlength=len(self.counts))
        starts = present.cumsum(0) - present
        place_in_class = torch.arange(len(order)) - starts.repeat_interleave(present)
        kept = order[place_in_class < self.size]
        self._kept, self._num_kept = [(rows[kept], labels[kept], ranks[kept])], len(kept)


class ClassMoments:
    """Counts, sums and second moments: additive, in memory that does not grow.

    Everything is centred on the first embedding of its class, so that nothing cancels close to
    collapse, or far from the origin. float64.

    Args:
        per_class: (K, D, D) second moments, one per class; otherwise their sum (D, D), pooled.
    """

    def __init__(self, num_classes: int, dim: int, per_class: bool, device: torch.device) -> None:
        options = {"dtype": torch.float64, "device": device}
        self.per_class = per_class
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.origins = torch.zeros(num_classes, dim, **options)
        self.sums = torch.zeros(num_classes, dim, **options)  # of h − origin
        self.squares = torch.zeros(num_classes, **options)  # of ‖h − origin‖
        shape = (num_classes, dim, dim) if per_class else (dim, dim)
        self.second = torch.zeros(shape, **options)  # of (h − origin)(h − origin)ᵀ

    def append(self, embeddings: Tensor, labels: Tensor) -> None:
        labels = labels.detach().to(self.counts.device).long()
        rows = embeddings.detach().to(self.counts.device).double()
        num_classes = len(self.counts)
        first = labels.new_full((num_classes,), len(labels)).scatter_reduce(
            0, labels, torch.arange(len(labels), device=labels.device), "amin"
        )
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

    def moved(self, origins: Tensor) -> ClassMoments:
        """The same moments around other origins (K, D)."""
        moved = ClassMoments(*self.origins.shape, self.per_class, self.counts.device)
        counts = self.counts.double()
        offset = torch.where(self.counts[:, None] > 0, self.origins - origins, 0.0)  # (K, D)
        moved.counts, moved.origins = self.counts.clone(), origins.clone()
        moved.sums = self.sums + counts[:, None] * offset
        moved.squares = (
            self.squares + 2 * (self.sums * offset).sum(1) + counts * offset.square().sum(1)
        )
        # S δᵀ + δ Sᵀ + n δ δᵀ = (S + n δ) δᵀ + δ Sᵀ, in every class
        if self.per_class:
            moved.second = self.second + moved.sums[:, :, None] * offset[:, None]
            moved.second += offset[:, :, None] * self.sums[:, None]
        else:
            moved.second = self.second + moved.sums.T @ offset + offset.T @ self.sums
        return moved

    def merge(self, other: ClassMoments) -> None:
        unseen = (self.counts == 0)[:, None]
        self.origins = torch.where(unseen, other.origins.to(self.origins.device), self.origins)
        for mine, theirs in zip(self.tensors(), other.moved(self.origins).tensors()):
            mine += theirs.to(mine.device)

    def __str__(self) -> str:
        kind = "second moments of each class" if self.per_class else "pooled second moments"
        return f"{kind}: {_mebibytes(sum(tensor.nbytes for tensor in self.tensors()))}"

    def tensors(self) -> tuple[Tensor, ...]:
        """What adds up over moments with the same origins."""
        return self.counts, self.sums, self.squares, self.second


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
