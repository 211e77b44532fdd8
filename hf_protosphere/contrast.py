"""The operator beneath the losses: a log-sum-exp over one side of a matrix of cosines.

It keeps the matrix of similarities while that is small and walks it in chunks, recomputed in the
backward pass, where it is not; it reduces over processes by exchanging log-sum-exps. The losses in
`losses.py` are its only callers. Travels to the Hub beside them and imports nothing but torch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = Literal["local"] | dist.ProcessGroup | None

# Above this many similarities the matrix is walked in chunks and recomputed in the backward pass.
# 2**24 of them take 64 MiB in float32: below, keeping them saves a fourth matrix product.
MAX_SIMILARITIES = 2**24
# A chunk of 2**21 similarities takes 8 MiB in float32: it stays in a processor's last-level cache.
CHUNK_SIMILARITIES = 2**21


class ContrastLogSumExp(torch.autograd.Function):
    """Log-sum-exp over one side of rows·columns / t, and each column's similarity to its own row.

    forward(rows (R, D), columns (N, D), own_row (N,), keep (N,), ...) returns
    - lse: (R,) over the kept columns (`over_columns`), or (N,) over the rows;
    - positives: (N,), similarity of column j to row own_row[j], 0 where own_row[j] is −1;
    - the exponentials (R, N) when they are kept for the backward pass, else None.
    With `exclude_own` the pair (own_row[j], j) is left out of the log-sum-exp.

    Rows are walked `chunk_rows` at a time (all at once when None). Chunked, neither the (R, N)
    similarities nor a normalised copy of all rows ever exists: the backward pass recomputes them.
    """

    @staticmethod
    def forward(
        rows: Tensor,
        columns: Tensor,
        own_row: Tensor,
        keep: Tensor,
        temperature: float,
        over_columns: bool,
        exclude_own: bool,
        chunk_rows: int | None,
        normalize: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        dim = 1 if over_columns else 0
        with full_precision(rows):
            dtype = compute_dtype(rows, columns)
            scaled = _unit(columns, dtype, normalize)[0] / temperature  # (N, D)
            positives = scaled.new_zeros(len(columns))
            # Filled below; an empty batch, as on a process without images, leaves them as they are.
            parts, exponentials = [scaled.new_empty(0)], None
            over_rows = scaled.new_full((len(columns),), -math.inf)
            for start, stop in _chunks(len(rows), chunk_rows):
                unit_rows, _ = _unit(rows[start:stop], dtype, normalize)
                similarities, own = _similarities(
                    unit_rows, scaled, own_row - start, keep if over_columns else None, exclude_own
                )
                positives += own
                lse, exponentials = _logsumexp_(similarities, dim)
                if over_columns:
                    parts.append(lse)
                else:
                    over_rows = torch.logaddexp(over_rows, lse)
            lse = torch.cat(parts) if over_columns else over_rows
        return lse, positives, exponentials if chunk_rows is None else None

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        rows, columns, own_row, keep, *ctx.options = inputs
        lse, _, exponentials = output
        if exponentials is not None:
            ctx.mark_non_differentiable(exponentials)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, columns, own_row, keep, lse, exponentials)

    @staticmethod
    def backward(ctx, grad_lse: Tensor | None, grad_positives: Tensor | None, _: None):
        rows, columns, own_row, keep, lse, exponentials = ctx.saved_tensors
        temperature, over_columns, exclude_own, chunk_rows, normalize = ctx.options
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Without this, second derivatives would silently be zero.
            raise RuntimeError(
                "the losses of hf_protosphere can be differentiated once: create_graph=True and "
                "torch.func.grad are not supported."
            )
        with full_precision(rows):
            dtype = compute_dtype(rows, columns)
            grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
            unit_columns, column_norms = _unit(columns, dtype, normalize)
            scaled = unit_columns / temperature
            # exp(s − ∞) = 0 for the similarities (all −∞) of an anchor without contrast
            lse = torch.where(lse == -math.inf, math.inf, lse)
            grad_rows, grad_scaled = torch.empty_like(rows), torch.zeros_like(scaled)
            for start, stop in _chunks(len(rows), chunk_rows):
                chunk = slice(start, stop) if over_columns else slice(None)
                broadcast = (slice(None), None) if over_columns else (None, slice(None))
                unit_rows, row_norms = _unit(rows[start:stop], dtype, normalize)
                own = own_row - start
                if exponentials is not None:  # exp(s − max): what is missing is the sum
                    sums = exponentials.sum(1 if over_columns else 0)
                    factor = grad_lse / torch.where(sums == 0, 1.0, sums)
                    grads = exponentials * factor[broadcast]
                else:
                    grads, _ = _similarities(
                        unit_rows, scaled, own, keep if over_columns else None, exclude_own
                    )
                    grads.sub_(lse[chunk][broadcast]).exp_().mul_(grad_lse[chunk][broadcast])
                if grad_positives is not None:
                    index, inside = _own_index(own, len(unit_rows))
                    grads.scatter_add_(0, index, torch.where(inside, grad_positives, 0.0)[None])
                grad_scaled.addmm_(grads.T, unit_rows)
                grad_unit_rows = grads @ scaled
                grad_rows[start:stop] = _unit_backward(grad_unit_rows, unit_rows, row_norms)
            grad_columns = _unit_backward(grad_scaled / temperature, unit_columns, column_norms)
        return grad_rows, grad_columns.to(columns.dtype), *[None] * 7


class GroupLogSumExp(torch.autograd.Function):
    """The log-sum-exp over all processes, from each one's own: K numbers each way."""

    @staticmethod
    def forward(ctx, lse: Tensor, group: dist.ProcessGroup) -> Tensor:
        maximum = lse.clone()
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=group)
        maximum.masked_fill_(maximum == -math.inf, 0)
        total = (lse - maximum).exp()
        dist.all_reduce(total, group=group)
        group_lse = maximum + total.log()
        ctx.group = group
        ctx.save_for_backward(lse, group_lse)
        return group_lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        lse, group_lse = ctx.saved_tensors
        # The anchors of a class may sit on any process, the instances they contrast on all.
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        share = torch.where(lse == -math.inf, 0.0, (lse - group_lse).exp())
        return grad * share, None


class GatherBatches(torch.autograd.Function):
    """Concatenation over the processes of batches of any size, and where one's own begins."""

    @staticmethod
    def forward(ctx, batch: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, int]:
        world_size, rank = dist.get_world_size(group), dist.get_rank(group)
        size = torch.tensor([len(batch)], device=batch.device)
        sizes = [torch.empty_like(size) for _ in range(world_size)]
        dist.all_gather(sizes, size, group=group)
        sizes = [int(size) for size in sizes]
        padded = batch.new_zeros(max(sizes), *batch.shape[1:])
        padded[: len(batch)] = batch
        gathered = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(gathered, padded, group=group)
        ctx.group, ctx.offset, ctx.size = group, sum(sizes[:rank]), len(batch)
        return torch.cat([part[:n] for part, n in zip(gathered, sizes)]), ctx.offset

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: None):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad[ctx.offset : ctx.offset + ctx.size], None


def _similarities(
    unit_rows: Tensor, scaled: Tensor, own_row: Tensor, keep: Tensor | None, exclude_own: bool
) -> tuple[Tensor, Tensor]:
    """(R, N) similarities with −∞ where a pair takes no part, and (N,) each column's own one."""
    similarities = unit_rows @ scaled.T
    index, inside = _own_index(own_row, len(unit_rows))
    own = similarities.gather(0, index)  # (1, N)
    if exclude_own:
        similarities.scatter_(0, index, torch.where(inside, -math.inf, own))
    if keep is not None and not (readable(keep) and keep.all()):
        similarities.masked_fill_(~keep, -math.inf)
    return similarities, torch.where(inside, own, 0.0)[0]


def _own_index(own_row: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Index (1, N) into the rows at hand, and (N,) whether the own row is among them."""
    return own_row.clamp(0, num_rows - 1)[None], (own_row >= 0) & (own_row < num_rows)


def _logsumexp_(similarities: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exp along `dim`, and exp(similarities − maximum), which replaces `similarities`."""
    if similarities.shape[dim] == 0:
        return similarities.new_full(similarities.sum(dim).shape, -math.inf), similarities
    maximum = similarities.amax(dim, keepdim=True)
    maximum.masked_fill_(maximum == -math.inf, 0)
    exponentials = similarities.sub_(maximum).exp_()
    return maximum.squeeze(dim) + exponentials.sum(dim).log(), exponentials


def _unit(vectors: Tensor, dtype: torch.dtype, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """Rows divided by their norms (a zero row stays zero), and the norms."""
    vectors = vectors.to(dtype)
    if not normalize:
        return vectors, None
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    norms.masked_fill_(norms == 0, 1)
    return vectors / norms, norms


def _unit_backward(grad: Tensor, unit: Tensor, norms: Tensor | None) -> Tensor:
    if norms is None:
        return grad
    radial = (grad * unit).sum(-1, keepdim=True)
    return torch.addcmul(grad, unit, radial, value=-1).div_(norms)


def readable(tensor: Tensor) -> bool:
    """Whether a look at the values costs nothing: no device to wait for, no graph to break."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def full_precision(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _chunks(num_rows: int, chunk_rows: int | None) -> list[tuple[int, int]]:
    step = chunk_rows or max(num_rows, 1)
    return [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def rows_per_chunk(chunk_size: int | None, num_rows: int, num_columns: int) -> int | None:
    if chunk_size is not None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 or None, but got {chunk_size}.")
        return chunk_size
    if num_rows * num_columns <= MAX_SIMILARITIES:
        return None
    return max(1, CHUNK_SIMILARITIES // num_columns)


def resolve_group(group: Group) -> dist.ProcessGroup | None:
    """The processes to reduce over, or None when this one is alone."""
    if isinstance(group, str):
        if group != "local":
            raise ValueError(f"group must be a process group, 'local' or None, but got {group!r}.")
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None
