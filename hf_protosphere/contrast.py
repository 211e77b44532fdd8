"""The operator beneath the losses: a log-sum-exp over one side of a matrix of cosines.

It keeps the matrix of similarities while that is small and walks it in chunks, recomputed in the
backward pass, where it is not; it reduces over processes by exchanging log-sum-exps. The losses in
`losses.py` are its only callers. Travels to the Hub beside them and imports nothing but torch."""

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = Literal["local"] | dist.ProcessGroup | None

# Above this many similarities the matrix is walked in chunks and recomputed in the backward pass. Keeping them was
# 1.05 to 1.4 times as fast at every size, so only memory sets the limit: 2**24 take 64 MiB, and their gradients too.
MAX_SIMILARITIES = 2**24
# 8 MiB in float32 stay in a processor's last-level cache: half costs 5 to 25 % more time, twice gains at most 5 %.
CHUNK_SIMILARITIES = 2**21
# Rows of a block of pairs: more leave less of the symmetric half out, fewer make thin products; 256 to 512 are best.
PAIR_ROWS = 512


class ContrastLogSumExp(torch.autograd.Function):
    """Log-sum-exp over one side of rows·columns / t, and each column's similarity to its own row.

    forward(rows (R, D), columns (N, D), own_row (N,), keep (N,), ...) returns
    - lse: (R,) over the kept columns (`over_columns`), or (N,) over the rows;
    - positives: (N,), similarity of column j to row own_row[j], 0 where own_row[j] is −1;
    - the exponentials (R, N) when they are kept for the backward pass, else None.
    With `exclude_own` the pair (own_row[j], j) is left out of the log-sum-exp.

    Rows are walked `chunk_rows` at a time (all at once when None). Chunked, neither the (R, N)
    similarities nor a normalised copy of all rows ever exists: the backward pass recomputes them."""

    @staticmethod
    def forward(
        rows: Tensor, columns: Tensor, own_row: Tensor, keep: Tensor, temperature: float,
        over_columns: bool, exclude_own: bool, chunk_rows: int | None, normalize: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        dim = 1 if over_columns else 0
        with full_precision(rows):
            dtype = compute_dtype(rows, columns)
            columns = columns.to(dtype)
            column_scale = _inverse_norms(columns) if normalize else None
            positives = columns.new_zeros(len(columns))
            # Filled in place: small results kept between chunks would scatter the large buffers over the heap.
            lse = columns.new_full((len(rows if over_columns else columns),), -math.inf)
            exponentials = None
            for start, stop in _chunks(len(rows), chunk_rows):
                scaled_rows = _scaled(rows[start:stop].to(dtype), temperature, normalize)
                similarities, own = _similarities(
                    scaled_rows, columns, column_scale, own_row - start, keep if over_columns else None, exclude_own
                )
                positives += own
                chunk_lse, exponentials = _logsumexp_(similarities, dim)
                if over_columns:
                    lse[start:stop] = chunk_lse
                else:
                    torch.logaddexp(lse, chunk_lse, out=lse)
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
        refuse_second_derivatives()
        with full_precision(rows):
            dtype = compute_dtype(rows, columns)
            grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
            column_dtype, columns = columns.dtype, columns.to(dtype)
            column_scale = _inverse_norms(columns) if normalize else None
            # exp(s − ∞) = 0 for the similarities (all −∞) of an anchor without contrast
            lse = torch.where(lse == -math.inf, math.inf, lse)
            grad_rows, grad_columns = torch.empty_like(rows), None
            for start, stop in _chunks(len(rows), chunk_rows):
                chunk = slice(start, stop) if over_columns else slice(None)
                broadcast = (slice(None), None) if over_columns else (None, slice(None))
                chunk_of_rows = rows[start:stop].to(dtype)
                scaled_rows = _scaled(chunk_of_rows, temperature, normalize)
                own = own_row - start
                if exponentials is not None:  # exp(s − max): what is missing is the sum
                    sums = exponentials.sum(1 if over_columns else 0)
                    factor = grad_lse / torch.where(sums == 0, 1.0, sums)
                    grads = exponentials * factor[broadcast]
                else:
                    grads, _ = _similarities(
                        scaled_rows, columns, column_scale, own, keep if over_columns else None, exclude_own,
                    )  # fmt: skip
                    grads.sub_(lse[chunk][broadcast]).exp_().mul_(grad_lse[chunk][broadcast])
                if grad_positives is not None:
                    index, inside = _own_index(own, len(scaled_rows))
                    grads.scatter_add_(0, index, torch.where(inside, grad_positives, 0.0)[None])
                if column_scale is not None:
                    grads.mul_(column_scale)
                # Not zeros to add to: in one chunk that would cost another pass over (N, D).
                if grad_columns is None:
                    grad_columns = grads.T @ scaled_rows
                else:
                    grad_columns.addmm_(grads.T, scaled_rows)
                grad_rows[start:stop] = _scaled_backward(grads @ columns, chunk_of_rows, temperature, normalize)
            if grad_columns is None:
                grad_columns = torch.zeros_like(columns)
            if column_scale is not None:
                _remove_radial_(grad_columns, columns, column_scale)
        return grad_rows, grad_columns.to(column_dtype), *[None] * 7


class PairwiseLogSumExp(torch.autograd.Function):
    """(N,) log-sum-exp over the other vectors of each one's similarities x_i·x_j / t.

    What `ContrastLogSumExp` gives for rows = columns, in half the work: each pair is computed once,
    in blocks of `chunk_rows` rows against the rows from there on, and serves both its members.
    Vectors with `keep` False take no part, neither as anchors (−∞) nor as contrast."""

    @staticmethod
    def forward(vectors: Tensor, keep: Tensor, temperature: float, chunk_rows: int | None) -> Tensor:
        with full_precision(vectors):
            lse = vectors.new_full((len(vectors),), -math.inf)
            for start, stop in _blocks(len(vectors), chunk_rows):
                similarities = _pairs(vectors, keep, temperature, start, stop)
                later, _ = _logsumexp_(similarities[:, stop - start :].clone(), 0)
                own, _ = _logsumexp_(similarities, 1)
                lse[start:] = torch.logaddexp(lse[start:], torch.cat([own, later]))
        return lse

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        vectors, keep, *ctx.options = inputs
        ctx.save_for_backward(vectors, keep, output)

    @staticmethod
    def backward(ctx, grad_lse: Tensor):
        vectors, keep, lse = ctx.saved_tensors
        temperature, chunk_rows = ctx.options
        refuse_second_derivatives()
        with full_precision(vectors):
            lse = torch.where(lse == -math.inf, math.inf, lse)
            grad = torch.zeros_like(vectors)
            for start, stop in _blocks(len(vectors), chunk_rows):
                similarities = _pairs(vectors, keep, temperature, start, stop)
                # A pair counts in the sums of both its members.
                rows = slice(start, stop)
                grads = (similarities - lse[rows, None]).exp_().mul_(grad_lse[rows, None])
                grads += similarities.sub_(lse[start:]).exp_().mul_(grad_lse[start:])
                grad[rows].addmm_(grads, vectors[start:])
                grad[stop:].addmm_(grads[:, stop - start :].T, vectors[rows])
        return grad.div_(temperature), None, None, None


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
        return grad * torch.where(lse == -math.inf, 0.0, (lse - group_lse).exp()), None


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
        ctx.group, ctx.sizes, ctx.size = group, sizes, len(batch)
        return torch.cat([part[:n] for part, n in zip(gathered, sizes)]), sum(sizes[:rank])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: None):
        # Each process's own part of the sum: half of what the whole would be to send.
        padded = grad.new_zeros(len(ctx.sizes), max(ctx.sizes), *grad.shape[1:])
        for to, part in zip(padded, grad.split(ctx.sizes)):
            to[: len(part)] = part
        own = torch.empty_like(padded[0])
        dist.reduce_scatter_tensor(own, padded.flatten(0, 1), group=ctx.group)
        return own[: ctx.size], None


def _similarities(
    scaled_rows: Tensor, columns: Tensor, column_scale: Tensor | None, own_row: Tensor,
    keep: Tensor | None, exclude_own: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(R, N) similarities with −∞ where a pair takes no part, and (N,) each column's own one."""
    similarities = scaled_rows @ columns.T
    if column_scale is not None:
        similarities.mul_(column_scale)
    index, inside = _own_index(own_row, len(scaled_rows))
    own = similarities.gather(0, index)  # (1, N)
    if exclude_own:
        similarities.scatter_(0, index, torch.where(inside, -math.inf, own))
    if keep is not None and not (readable(keep) and keep.all()):
        similarities.masked_fill_(~keep, -math.inf)
    return similarities, torch.where(inside, own, 0.0)[0]


def _pairs(vectors: Tensor, keep: Tensor, temperature: float, start: int, stop: int) -> Tensor:
    """Similarities of the vectors start to stop with those from start on; −∞ where none counts."""
    similarities = (vectors[start:stop] / temperature) @ vectors[start:].T
    similarities.diagonal().fill_(-math.inf)  # the vector with itself
    if not (readable(keep) and keep.all()):
        similarities.masked_fill_(~(keep[start:stop, None] & keep[start:]), -math.inf)
    return similarities


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


def _inverse_norms(vectors: Tensor) -> Tensor:
    """(N,) one over the L2 norms; 1 for a zero vector, which so stays zero."""
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    return norms.masked_fill_(norms == 0, 1).reciprocal_()


def _scaled(vectors: Tensor, temperature: float, normalize: bool) -> Tensor:
    if not normalize:
        return vectors / temperature
    return vectors * (_inverse_norms(vectors) / temperature)[:, None]


def _scaled_backward(grad: Tensor, vectors: Tensor, temperature: float, normalize: bool) -> Tensor:
    if not normalize:
        return grad.div_(temperature)
    inverse_norms = _inverse_norms(vectors)
    grad.mul_((inverse_norms / temperature)[:, None])
    return _remove_radial_(grad, vectors, inverse_norms)


def _remove_radial_(grad: Tensor, vectors: Tensor, inverse_norms: Tensor) -> Tensor:
    """Take out of `grad` what points along `vectors`: moving there changes no unit vector."""
    radial = torch.linalg.vecdot(grad, vectors) * inverse_norms.square()
    return grad.addcmul_(vectors, radial[:, None], value=-1)


def refuse_second_derivatives() -> None:
    """Called in a backward pass: without it, second derivatives would silently be zero."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the losses can be differentiated once: no create_graph=True, no torch.func.grad.")


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


def _blocks(num_vectors: int, chunk_rows: int | None) -> list[tuple[int, int]]:
    fitting = max(1, 2 * CHUNK_SIMILARITIES // max(num_vectors, 1))
    return _chunks(num_vectors, chunk_rows or min(PAIR_ROWS, fitting))


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


def gathered(
    vectors: Tensor, labels: Tensor, keep: Tensor, processes: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Vectors (N, D), labels (N,) and which to keep (N,) of all processes; where the own begin."""
    if processes is None:
        return vectors, labels, keep, 0
    everyone, offset = GatherBatches.apply(vectors, processes)
    both, _ = GatherBatches.apply(torch.stack([labels, keep.long()], 1), processes)
    return everyone, both[:, 0], both[:, 1].bool(), offset


def contrast_vectors(
    vectors: Tensor, labels: Tensor, keep: Tensor, temperature: float, chunk_size: int | None,
    processes: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Each vector (N, D) among the kept ones of all processes: (N,) the log-sum-exp of its
    similarities x_i·x_j / t with the others, (N, D) the sum and (N,) the number of its class."""
    everyone, all_labels, all_keep, offset = gathered(vectors, labels, keep, processes)
    rows = rows_per_chunk(chunk_size, len(vectors), len(everyone))
    if processes is None:
        lse = PairwiseLogSumExp.apply(vectors, keep, temperature, chunk_size)
    else:
        place = torch.arange(len(everyone), device=vectors.device) - offset
        own_row = torch.where(place < len(vectors), place.clamp_min(-1), -1)
        lse, _, _ = ContrastLogSumExp.apply(vectors, everyone, own_row, all_keep, temperature, True, True, rows, False)
    # The place among the sorted labels tells a class: below the batch size, found without a synchronisation.
    class_of = torch.searchsorted(all_labels.sort().values, all_labels)  # (N_all,)
    sums = torch.zeros_like(everyone).index_add(0, class_of, everyone * all_keep[:, None])
    counts = torch.zeros_like(everyone[:, 0]).index_add(0, class_of, all_keep.to(everyone.dtype))
    own = class_of[offset : offset + len(vectors)]
    return lse, sums.index_select(0, own), counts.index_select(0, own)


def group_sum(share: Tensor, processes: dist.ProcessGroup) -> Tensor:
    """The sum of the processes' shares, on each. Gradients are averaged later: hence own ones times their number."""
    total = share.detach().clone()
    dist.all_reduce(total, group=processes)
    share = share * dist.get_world_size(processes)
    return share + (total - share.detach())
