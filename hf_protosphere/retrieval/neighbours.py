"""Retrieval on the unit sphere: exact nearest neighbours by cosine, and how good they are.

One order everywhere: by cosine, computed in float64 and rounded to float32, and among equal cosines by row number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_NUMBERS, QUERIES = 2**22, 2**12  # similarities, and queries, that are in memory at once


@dataclass(frozen=True)
class Neighbours:
    """Rows of an index for each query, nearest first."""

    cosines: Tensor  # (Q, k) float32
    rows: Tensor  # (Q, k) int64


def nearest(queries: Tensor, embeddings: Tensor, k: int) -> Neighbours:
    """The k embeddings of greatest cosine to each query, exactly.

    Args:
        queries, embeddings: (Q, D) and (N, D), unit rows.
        k: at least 1; where there are only N < k, all N.

    Raises:
        ValueError: sizes that do not fit, or nothing to search in.

    Example:
        >>> axes = torch.eye(3)
        >>> nearest(torch.tensor([[0.8, 0.6, 0.0]]), axes, k=2).rows
        tensor([[0, 1]])
    """
    asked, stored = tuple(queries.shape), tuple(embeddings.shape)
    if len(asked) != 2 or len(stored) != 2 or asked[1] != stored[1]:
        raise ValueError(f"queries and embeddings must be (Q, D) and (N, D), but got {asked} and {stored}.")
    if k < 1 or not len(embeddings):
        raise ValueError(f"k must be at least 1 of some embeddings, got {k} of {len(embeddings)}.")
    found = []
    for block in queries.detach().double().split(QUERIES):
        keys = torch.empty(len(block), 0, dtype=torch.int64, device=block.device)
        for start, chunk in _blocks(embeddings.detach(), max(block.shape)):
            cosines = (block @ chunk.double().T).float() + 0.0  # no −0
            # Of equal cosines topk takes any: whole numbers in their order have room for the row behind.
            rows = torch.arange(start, start + len(chunk), device=block.device)
            keys = torch.cat([keys, (_as_ordered(cosines.view(torch.int32).long()) << 32) - rows], 1)
            keys = keys.topk(min(k, keys.shape[1])).values
        rows = -keys & 0xFFFFFFFF
        found.append((_as_ordered((keys + rows) >> 32).int().view(torch.float32), rows))
    return Neighbours(*map(torch.cat, zip(*found)))


def _as_ordered(bits: Tensor) -> Tensor:
    """Whole numbers in the order of the floats whose bits they are; and back."""
    return bits.where(bits >= 0, bits ^ 0x7FFFFFFF)


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


def _blocks(queries: Tensor, numbers_each: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, BLOCK_NUMBERS // max(1, numbers_each))
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size]


def _all_cosines(queries: Tensor, embeddings: Tensor) -> Tensor:
    """(B, N) float32."""
    wide = queries.double()
    chunks = embeddings.split(max(1, BLOCK_NUMBERS // embeddings.shape[1]))
    return torch.cat([(wide @ chunk.double().T).float() for chunk in chunks], dim=1)
