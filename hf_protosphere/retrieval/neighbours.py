"""Retrieval on the unit sphere: exact nearest neighbours by cosine, and how good they are.

One order everywhere, whatever finds it: by cosine, computed in float64 and rounded to float32, and
among equal cosines by row number. So faiss and torch give the same neighbours, to the last one."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BLOCK_NUMBERS = 2**22  # similarities that are in memory at once
SPARE = 32  # candidates beyond k, among which rounding may have mixed up the order
# How far a float32 product of unit vectors may be from the exact one: of torch's and faiss's, up to
# 2,048 dimensions and also where all vectors are close together, the worst measured was 8e-7.
TOLERANCE = 2e-6


@dataclass(frozen=True)
class Neighbours:
    """Rows of an index for each query, nearest first."""

    cosines: Tensor  # (Q, k) float32
    rows: Tensor  # (Q, k) int64


def nearest(
    queries: Tensor, embeddings: Tensor, k: int, backend: Literal["faiss", "torch"] | None = None
) -> Neighbours:
    """The k embeddings of greatest cosine to each query, exactly.

    float32 products, by faiss or torch, say who comes into question; float64 decides. Where they
    cannot say, because more than `SPARE` embeddings are within `TOLERANCE` of the k-th (copies of
    one image, or a fully collapsed class), float64 sees all of them.

    Args:
        queries: (Q, D), unit rows.
        embeddings: (N, D), unit rows.
        k: at least 1; where there are only N < k, all N.
        backend: of the float32 products; by default faiss where it is installed and the embeddings lie on the CPU.

    Raises:
        ValueError: sizes that do not fit, or nothing to search in.

    Example:
        >>> axes = torch.eye(3)
        >>> nearest(torch.tensor([[0.8, 0.6, 0.0]]), axes, k=2).rows
        tensor([[0, 1]])
    """
    if queries.dim() != 2 or embeddings.dim() != 2 or queries.shape[1] != embeddings.shape[1]:
        raise ValueError(
            "queries and embeddings must be (Q, D) and (N, D), but got "
            f"{tuple(queries.shape)} and {tuple(embeddings.shape)}."
        )
    if k < 1 or not len(embeddings):
        raise ValueError(f"k must be at least 1 of some embeddings, got {k} of {len(embeddings)}.")
    k = min(k, len(embeddings))
    queries, embeddings = queries.detach().float(), embeddings.detach().float()
    if backend is None and embeddings.device.type == "cpu" and importlib.util.find_spec("faiss"):
        backend = "faiss"
    count = min(len(embeddings), k + SPARE)
    cosines, rows = [queries.new_empty(0, k)], [queries.new_empty(0, k, dtype=torch.int64)]
    for block, values, candidates in _candidates(queries, embeddings, count, backend):
        candidates = candidates.sort(dim=1).values  # of equal cosines the lowest row is first
        kept = _cosines(block, embeddings, candidates)  # (B, count)
        kept, order = (x[:, :k] for x in kept.sort(dim=1, descending=True, stable=True))
        candidates = candidates.gather(1, order)
        if count < len(embeddings):
            unsure = values[:, -1] > kept[:, -1] - 2 * TOLERANCE
            if unsure.any():
                kept[unsure], candidates[unsure] = _exhaustive(block[unsure], embeddings, k)
        cosines.append(kept)
        rows.append(candidates)
    return Neighbours(torch.cat(cosines), torch.cat(rows))


def retrieval_metrics(
    queries: Tensor, query_labels: Tensor, embeddings: Tensor, labels: Tensor, *,
    ks: Sequence[int] = (1, 5, 10), leave_one_out: bool = False,
) -> dict[str, float | int]:  # fmt: skip
    """How well the nearest neighbours of labelled queries have their class.

    For a query with R embeddings of its class among the N, by cosine, and P(i) their share of the first i:

    - recall@k: 1 when its class is among the first k, else 0;
    - average precision: the mean of P(i) over the R ranks i that hold its class;
    - average precision at R: the sum of P(i) over those of them with i <= R, divided by R
      (Musgrave et al., A Metric Learning Reality Check, 2020).

    Each is averaged over the queries. Those of a class without embeddings are counted and left out.

    Args:
        queries, query_labels: (Q, D) unit rows, (Q,) int64.
        embeddings, labels: (N, D) unit rows, (N,) int64.
        ks: of recall@k.
        leave_one_out: queries and embeddings are the same, and no query finds itself.

    Returns:
        {"num_queries" (that count), "num_without_match" (that do not), "recall_at_1" and so on,
        "mean_average_precision", "mean_average_precision_at_r"}, in [0, 1].

    Raises:
        ValueError: no query has a match.
    """
    if leave_one_out and len(queries) != len(embeddings):
        raise ValueError(f"{len(queries)} queries cannot be the {len(embeddings)} embeddings themselves.")
    totals = dict.fromkeys(("mean_average_precision", "mean_average_precision_at_r"), 0.0)
    recalls, counted = dict.fromkeys(sorted(ks), 0), 0
    ranks = torch.arange(1, len(embeddings) + 1, device=queries.device, dtype=torch.float64)
    for start, block in _blocks(queries, len(embeddings)):
        cosines = _all_cosines(block, embeddings)  # (B, N)
        relevant = query_labels[start : start + len(block), None] == labels  # (B, N)
        if leave_one_out:
            own = torch.arange(len(block), device=block.device)
            cosines[own, start + own] = -torch.inf
            relevant[own, start + own] = False
        relevant = relevant.gather(1, cosines.sort(dim=1, descending=True, stable=True).indices)
        relevant = relevant[relevant.any(1)]
        found = relevant.cumsum(1, dtype=torch.int32)
        number = found[:, -1:]  # R
        precision = found / ranks * relevant  # P(i) where rank i holds the class
        at_r = precision * (ranks <= number)
        counted += len(relevant)
        for k in recalls:
            recalls[k] += int((found[:, min(k, len(embeddings)) - 1] > 0).sum())
        totals["mean_average_precision"] += (precision.sum(1) / number[:, 0]).sum().item()
        totals["mean_average_precision_at_r"] += (at_r.sum(1) / number[:, 0]).sum().item()
    if not counted:
        raise ValueError("no query has an image of its class to find.")
    return {
        "num_queries": counted,
        "num_without_match": len(queries) - counted,
        **{f"recall_at_{k}": hits / counted for k, hits in recalls.items()},
        **{name: total / counted for name, total in totals.items()},
    }


def _candidates(
    queries: Tensor, embeddings: Tensor, count: int, backend: str | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of queries, each with the float32 products of its nearest `count` embeddings, and their rows."""
    if backend != "faiss":
        for _, block in _blocks(queries, len(embeddings)):
            yield block, *(block @ embeddings.T).topk(count)
        return
    import faiss

    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings.contiguous().numpy())
    for _, block in _blocks(queries, count * embeddings.shape[1]):  # what `_cosines` gathers
        yield block, *map(torch.from_numpy, index.search(block.contiguous().numpy(), count))


def _blocks(queries: Tensor, numbers_each: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, BLOCK_NUMBERS // max(1, numbers_each))
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size]


def _cosines(queries: Tensor, embeddings: Tensor, rows: Tensor) -> Tensor:
    """(B, m) of each query to its own rows (B, m)."""
    # Query by query: gathered at once, candidates would take more memory than the index.
    return torch.stack([(embeddings[own].double() @ query.double()).float() for query, own in zip(queries, rows)])


def _all_cosines(queries: Tensor, embeddings: Tensor) -> Tensor:
    """(B, N) float32."""
    wide = queries.double()
    chunks = embeddings.split(max(1, BLOCK_NUMBERS // embeddings.shape[1]))
    return torch.cat([(wide @ chunk.double().T).float() for chunk in chunks], dim=1)


def _exhaustive(queries: Tensor, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
    found = []
    for _, block in _blocks(queries, len(embeddings)):
        cosines = _all_cosines(block, embeddings)
        # Not topk, which takes any of those that are equal.
        values, rows = cosines.sort(dim=1, descending=True, stable=True)
        found.append((values[:, :k], rows[:, :k]))
    return tuple(map(torch.cat, zip(*found)))
