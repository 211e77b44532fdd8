"""From embeddings, or their moments, to what the formulas of neural collapse need of each class.

A range of classes at a time, in float64 and in bounded memory: no K×D×D tensor and no float64 copy of all
embeddings exists. Over processes each one decomposes its share of the classes."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors
from tqdm.auto import tqdm

from .accumulators import BLOCK_BYTES, ClassMoments, EmbeddingStore, places, ranks

# A deviation below this share of the vectors' norm, both root mean squares, is what sums leave of equal vectors.
ROUNDING = 1000 * torch.finfo(torch.float64).eps
Group = dist.ProcessGroup | None


@dataclass(frozen=True)
class ClassStatistics:
    """All that the formulas (but NC4) need to know of the embeddings, in float64.

    Its K classes are those that have samples."""

    classes: Tensor  # (K,) int64, their labels, ascending
    counts: Tensor  # (K,) n_c, every one ≥ 1
    means: Tensor  # (K, D) μ_c
    variances: Tensor  # (K,) var_c = mean_i ‖h_i − μ_c‖²
    eigenvalues: Tensor  # (K, D) of each class covariance, zeros included
    centred_means: Tensor  # (K, D) μ_c − μ_G, all zero if the class means coincide
    between_variances: Tensor  # (R,) the non-zero eigenvalues of Σ_B, R ≤ min(K − 1, D)
    within_variances: Tensor  # (R,) mean square of h_i − μ_yi along the same eigenvectors

    def sample_mean(self, values: Tensor) -> float:
        """Mean over the samples of a value per class, (K,)."""
        return (self.counts @ values / self.counts.sum()).item()

    @property
    def scale(self) -> float:
        """Root mean square of ‖h_i‖, against which rounding is judged."""
        return math.sqrt(self.sample_mean(self.variances + self.means.square().sum(1)))


def class_statistics(embeddings: Tensor, labels: Tensor, num_classes: int) -> ClassStatistics:
    """Of embeddings (N, D) and integer labels (N,) at hand as tensors."""
    check_batch(embeddings, labels, num_classes, embeddings.shape[-1])
    store = EmbeddingStore(num_classes, embeddings.shape[1])
    store.append(embeddings, labels)
    return statistics_of_embeddings(store, torch.device("cpu"))


def statistics_of_embeddings(store: EmbeddingStore, device: torch.device, group: Group = None) -> ClassStatistics:
    """From all embeddings of all processes of the group, computed on `device`."""
    by_process = _gathered(store.counts.to(device), group)  # (P, K)
    counts, classes = _present(by_process.sum(0))
    sums = torch.zeros(len(counts), store.dim, dtype=torch.float64, device=device)
    for rows, labels in store.batches():
        sums.index_add_(0, labels.to(device), rows.to(device).double())
    means = summed(sums, group) / counts[:, None].clamp(min=1)
    between, directions = principal_directions(centre(means[classes])[1])  # (R,), (R, D)

    def of_each(rows: Tensor) -> tuple[Tensor, ...]:
        mean, residual = centre(rows)  # (B, D), (B, n, D)
        along = (residual @ directions.T).square().sum((0, 1)) / counts.sum()
        return mean, residual.square().sum(2).mean(1), covariance_eigenvalues(residual), along

    # Each process fills in its classes; the means again, as they were summed in a long row.
    means, eigenvalues = torch.zeros_like(means), torch.zeros_like(means)
    variances, within = torch.zeros_like(means[:, 0]), torch.zeros_like(between)
    for c, found in _shared_classes(store, by_process, device, group, of_each):
        means[c], variances[c], eigenvalues[c], along = found
        within += along
    for tensor in (means, variances, eigenvalues, within):
        summed(tensor, group)
    of_classes = (tensor[classes] for tensor in (counts, means, variances, eigenvalues))
    return ClassStatistics(classes, *of_classes, centre(means[classes])[1], between, within)


def statistics_of_moments(
    moments: ClassMoments, sample: EmbeddingStore | None = None, group: Group = None
) -> ClassStatistics:
    """From second moments per class; from pooled ones and, for the eigenvalues only, a sample."""
    device = moments.counts.device
    by_process = _gathered(moments.counts, group)
    counts, classes = _present(by_process.sum(0))
    if group:  # those of all processes, around the origins of the first that has seen each class
        has_origin = (by_process > 0).int().argmax(0) == dist.get_rank(group)  # (K,)
        moments = moments.moved(summed(torch.where(has_origin[:, None], moments.origins, 0.0), group))
        for tensor in moments.additive:
            summed(tensor, group)
    offsets = moments.sums / counts[:, None].clamp(min=1)  # (K, D) μ_c − origin
    means = moments.origins + offsets
    variances = moments.squares / counts.clamp(min=1) - offsets.square().sum(1)
    rounding = ROUNDING**2 * (variances + means.square().sum(1))
    variances = torch.where(variances <= rounding, 0.0, variances)

    eigenvalues, scatter = torch.zeros_like(means), moments.second  # (D, D) once it is pooled
    if moments.per_class:
        scatter = moments.second.sum(0)
        for c in variances.nonzero().flatten().tolist():
            covariance = moments.second[c] / counts[c] - torch.outer(offsets[c], offsets[c])
            eigenvalues[c] = torch.linalg.eigvalsh(covariance).clamp(min=0)
    else:
        sizes = _gathered(sample.counts.to(device), group)
        for c, values in _shared_classes(sample, sizes, device, group, lambda x: covariance_eigenvalues(centre(x)[1])):
            eigenvalues[c] = values
        summed(eigenvalues, group)
    centred_means = centre(means[classes])[1]
    between, directions = principal_directions(centred_means)
    scatter = scatter - (offsets * counts[:, None]).T @ offsets
    within = ((directions @ scatter) * directions).sum(1).clamp(min=0) / counts.sum()
    within = within * (variances > 0).any()
    of_classes = (tensor[classes] for tensor in (counts, means, variances, eigenvalues))
    return ClassStatistics(classes, *of_classes, centred_means, between, within)


def _shared_classes(
    store: EmbeddingStore, sizes: Tensor, device: torch.device, group: Group, compute: Callable[[Tensor], Any]
) -> Iterator[tuple[Tensor, Any]]:
    """This process's share of the classes, some of equal size together: labels (B,), and what is computed of their
    rows (B, n, D) of all, float64; `sizes` (P, K) of each. On the CPU threads take classes of their own, as small
    matrices do not keep several busy; those that are over help each."""
    rank, sizes = dist.get_rank(group) if group else 0, sizes.cpu()
    num_processes, counts = len(sizes), sizes.sum(0)
    before = counts.cumsum(0) - counts
    ends = (4 * store.dim * before // BLOCK_BYTES).unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    ranges = [slice(*ends) for ends in zip([0, *ends], ends)]
    rounds, threads = range(0, len(ranges), num_processes), torch.get_num_threads() if device.type == "cpu" else 1
    for first in rounds if rank > 0 else tqdm(rounds, "class covariances", leave=False, delay=5):
        mine = None
        # All exchange before anyone computes, or each would wait for the one before.
        for owner, classes in enumerate(ranges[first : first + num_processes]):
            here = sizes[:, classes]
            if not here.any():
                continue
            rows = store.of_classes(classes).to(device)
            rows = _gather_rows(rows.double(), here.sum(1).tolist(), owner, group) if group else rows
            mine = (classes, here, rows) if owner == rank else mine
        if mine is None:
            continue
        classes, here, rows = mine
        labels, parts = torch.arange(len(counts))[classes], []
        order = labels.repeat(num_processes).repeat_interleave(here.flatten()).argsort(stable=True)
        of_rows = counts[classes].repeat_interleave(counts[classes])
        for n in of_rows.unique().tolist():
            equal = labels[counts[classes] == n], rows[order[of_rows == n].to(device)].unflatten(0, (-1, n))
            # What an allocator keeps: fresh memory costs as much as a pass over it.
            size = min(-(-len(equal[0]) // threads), 1 + BLOCK_BYTES // 4 // (8 * n * store.dim))
            parts += zip(*(x.to(device).split(size) for x in equal))
        each = max(1, torch.get_num_threads() // len(parts))
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            yield from zip((c for c, _ in parts), pool.map(lambda part: compute(part[1].double()), parts))


def _gather_rows(rows: Tensor, sizes: list[int], owner: int, group: dist.ProcessGroup) -> Tensor | None:
    """The rows of all processes, on the owner alone."""
    padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows)))
    is_owner = dist.get_rank(group) == owner
    parts = [torch.empty_like(padded) for _ in sizes] if is_owner else None
    dist.gather(padded, parts, group=group, group_dst=owner)
    return torch.cat([part[:n] for part, n in zip(parts, sizes)]) if is_owner else None


def sample_of_all(sample: EmbeddingStore, device: torch.device, group: Group) -> EmbeddingStore:
    """What one process that saw the images of all would keep, as far as it is here."""
    sample.settled()
    if not group:
        return sample
    rows, labels = next(zip(sample.rows, sample.labels), (torch.empty(0, sample.dim), torch.empty(0).long()))
    index = labels, places(labels)
    here = torch.full((sample.num_classes, sample.size), torch.iinfo(torch.int64).max)
    here[index] = ranks(rows)
    everywhere = _gathered(here.to(device), group).transpose(0, 1).flatten(1)  # (K, P · size)
    lowest = everywhere.argsort(dim=1, stable=True)[:, : sample.size]
    chosen = torch.zeros_like(everywhere, dtype=torch.bool).scatter_(1, lowest, True)
    mine = chosen.unflatten(1, (-1, sample.size))[:, dist.get_rank(group)].cpu()[index]
    return EmbeddingStore(sample.num_classes, sample.dim, [rows[mine]], [labels[mine]], size=sample.size)


def _gathered(counts: Tensor, group: Group) -> Tensor:
    return torch.stack(gather_all_tensors(counts, group) if group else [counts])


def summed(tensor: Tensor, group: Group) -> Tensor:
    """In place."""
    if group:
        dist.all_reduce(tensor, group=group)
    return tensor


def _present(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The counts (K,) in float64, and the labels of the classes that have samples."""
    if not counts.any():
        raise ValueError("No embeddings yet: call update(embeddings, labels) before compute().")
    return counts.double(), counts.nonzero().flatten()


def centre(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Means (..., D) of the rows (..., n, D) and what is left of these, exactly zero if it is rounding."""
    mean = rows.mean(-2, keepdim=True)
    residual = rows - mean
    equal = torch.linalg.matrix_norm(residual) <= ROUNDING * torch.linalg.matrix_norm(rows)
    return mean.squeeze(-2), residual.masked_fill_(equal[..., None, None], 0)


def covariance_eigenvalues(residual: Tensor) -> Tensor:
    """All D eigenvalues of the covariances of centred rows (..., n, D), from the smaller Gram matrices."""
    n, dim = residual.shape[-2:]
    rows = residual if n < dim else residual.mT
    gram = rows.new_zeros(*rows.shape[:-1], rows.shape[-2])
    for start in range(0, rows.shape[-2], 256):  # of which the lower triangle is read
        gram[..., start:, start : start + 256] = rows[..., start:, :] @ rows[..., start : start + 256, :].mT
    values = torch.linalg.eigvalsh(gram / n).clamp(min=0)  # (..., min(n, D))
    return F.pad(values, (0, dim - values.shape[-1]))


def principal_directions(residual: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (R,) of the covariance of centred rows (n, D) above D · 2.2e-16 of the largest,
    the cut of `torch.linalg.pinv(hermitian=True)`, and their eigenvectors as rows (R, D)."""
    square = torch.linalg.qr(residual, mode="r").R if len(residual) > residual.shape[1] else residual
    _, singular_values, directions = torch.linalg.svd(square, full_matrices=False)
    values = singular_values.square() / len(residual)
    kept = values > residual.shape[1] * torch.finfo(values.dtype).eps * values[0]
    return values[kept], directions[kept]


def check_batch(embeddings: Tensor, labels: Tensor, num_classes: int, dim: int) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be floats (M, {dim}), got {embeddings.dtype} {tuple(embeddings.shape)}.")
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels must be integers ({len(embeddings)},), got {labels.dtype} {tuple(labels.shape)}.")
    if count := count_non_finite(embeddings):
        raise ValueError(f"embeddings hold {count} non-finite values of {embeddings.numel()}: did the model overflow?")
    if outside := labels[(labels < 0) | (labels >= num_classes)].unique().tolist():
        shown = ", ".join(map(str, outside[:20])) + (f" and {len(outside) - 20} more" if outside[20:] else "")
        raise ValueError(f"labels must be in [0, {num_classes}), got {shown}: raise num_classes or map the labels.")


def count_non_finite(tensor: Tensor) -> int:
    return 0 if tensor.sum().isfinite() else int((~tensor.isfinite()).sum())  # eight times faster
