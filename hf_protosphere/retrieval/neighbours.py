"""Retrieval on the unit sphere: exact nearest neighbours by cosine, and how good they are.

One order everywhere: by cosine, computed in float64 and rounded to float32, and among equal cosines by row number."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

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
            cosines = (block @ chunk.double().T).float()
            most, places = cosines.topk(min(k + 1, len(chunk)))
            near, tied = _keys(most, start + places), (most[:, k:] == most[:, k - 1 : k]).any(1)
            if tied.any():  # their rows say which are among the k
                near[tied] = _keys(cosines[tied], start + torch.arange(len(chunk)).to(places)).topk(k + 1).values
            keys = torch.cat([keys, near], 1).topk(min(k, keys.shape[1] + near.shape[1])).values
        rows = -keys & 0xFFFFFFFF
        found.append((_as_ordered((keys + rows) >> 32).int().view(torch.float32), rows))
    return Neighbours(*map(torch.cat, zip(*found)))


def _keys(cosines: Tensor, rows: Tensor) -> Tensor:
    """int64, greatest first: of equal cosines a sort takes any, and whole numbers have room for the row behind."""
    return (_as_ordered((cosines + 0.0).view(torch.int32).long()) << 32) - rows  # no −0


def _as_ordered(bits: Tensor) -> Tensor:
    """Whole numbers in the order of the floats whose bits they are; and back."""
    return bits.where(bits >= 0, bits ^ 0x7FFFFFFF)


def retrieval_metrics(
    queries: Tensor, query_labels: Tensor, embeddings: Tensor, labels: Tensor, *,
    ks: Sequence[int] = (1, 5, 10), leave_one_out: bool = False, num_queries: int | None = None,
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
        num_queries: measure so many of them, drawn by a fixed seed, exactly: in O(N·D) each.

    Returns:
        {"num_queries" (that count), "num_without_match" (that do not), "recall_at_1" and so on,
        "mean_average_precision", "mean_average_precision_at_r"}, in [0, 1].

    Raises:
        ValueError: no query has a match.
    """
    if leave_one_out and len(queries) != len(embeddings):
        raise ValueError(f"{len(queries)} queries cannot be the {len(embeddings)} embeddings themselves.")
    chosen = np.arange(len(queries))
    if num_queries is not None and num_queries < len(queries):
        chosen = np.sort(np.random.default_rng(0).choice(chosen, num_queries, replace=False))
    queries, query_labels = queries[chosen], query_labels[chosen]
    own, wanted = labels.cpu().numpy(), query_labels.cpu().numpy()
    sizes = Counter(own.tolist())
    numbers = np.array([sizes[label] - leave_one_out for label in wanted.tolist()])  # R
    if not (counted := int((numbers > 0).sum())):
        raise ValueError("no query has an image of its class to find.")
    found = _up_to_matches(queries, query_labels, embeddings, labels)
    totals, recalls = np.zeros(2), dict.fromkeys(sorted(ks), 0)
    bar = tqdm(found, "measuring", len(queries), leave=False, delay=5)
    for row, label, number, rows in zip(chosen, wanted, numbers, bar):
        ranks = 1 + np.flatnonzero(own[rows[rows != row] if leave_one_out else rows] == label)
        if len(ranks):
            precision = np.arange(1, len(ranks) + 1) / ranks  # P(i) where rank i holds the class
            totals += precision.sum() / number, precision[ranks <= number].sum() / number
            recalls = {k: hits + int(ranks[0] <= k) for k, hits in recalls.items()}
    average, at_r = (totals / counted).tolist()
    return {
        "num_queries": counted,
        "num_without_match": len(queries) - counted,
        **{f"recall_at_{k}": hits / counted for k, hits in recalls.items()},
        "mean_average_precision": average,
        "mean_average_precision_at_r": at_r,
    }


def _up_to_matches(queries: Tensor, query_labels: Tensor, embeddings: Tensor, labels: Tensor) -> Iterator[np.ndarray]:
    """For each query the rows, nearest first, that are as near as the farthest one of its class."""

    def ordered(cosines: Tensor, least: Tensor) -> np.ndarray:
        near = (cosines >= least).nonzero()[:, 0]  # of a class that lies close together few
        return -np.sort(_keys(cosines[near], near).numpy())[::-1] & 0xFFFFFFFF  # NumPy's sort is the faster one

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start, block in _blocks(queries, len(embeddings) // 4):  # many share what making chunks wide costs
            chunks = (chunk for _, chunk in _blocks(embeddings, max(block.shape)))
            cosines = torch.cat([(block.double() @ chunk.double().T).float() for chunk in chunks], 1)
            others = query_labels[start : start + len(block), None] != labels
            yield from pool.map(ordered, cosines.cpu(), cosines.masked_fill(others, 2).amin(1).cpu())


def _blocks(queries: Tensor, numbers_each: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, BLOCK_NUMBERS // max(1, numbers_each))
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size]
