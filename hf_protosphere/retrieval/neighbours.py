"""Retrieval on the unit sphere: exact nearest neighbours by cosine, and how good they are.

One order everywhere: by cosine, computed in float64 and rounded to float32, and among equal cosines by row number."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .approximate import inverted_file

BLOCK_NUMBERS, QUERIES = 2**22, 2**12  # similarities, and queries, that are in memory at once
BLOCK_COSINES = 2**24  # of whole rows: their queries share what it costs to make all embeddings wide
SAMPLE = 256  # queries that an approximate search is compared with an exact one on


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
            rows = torch.arange(start, start + len(chunk), device=block.device)
            keys = torch.cat([keys, _keys(_cosines(block, chunk), rows)], 1)
            keys = keys.topk(min(k, keys.shape[1])).values
        rows = -keys & 0xFFFFFFFF
        found.append((_as_ordered((keys + rows) >> 32).int().view(torch.float32), rows))
    return Neighbours(*map(torch.cat, zip(*found)))


def _cosines(queries: Tensor, embeddings: Tensor) -> Tensor:
    """(B, M) float32, computed in float64, which the queries are in."""
    return (queries @ embeddings.double().T).float() + 0.0  # no −0


def _keys(cosines: Tensor, rows: Tensor) -> Tensor:
    """int64 in the order of this file, greatest first: whole numbers in the order of the cosines have room for the row
    behind, where a sort or topk takes any of equal cosines."""
    return (_as_ordered(cosines.view(torch.int32).long()) << 32) - rows


def _as_ordered(bits: Tensor) -> Tensor:
    """Whole numbers in the order of the floats whose bits they are; and back."""
    return bits.where(bits >= 0, bits ^ 0x7FFFFFFF)


def retrieval_metrics(
    queries: Tensor, query_labels: Tensor, embeddings: Tensor, labels: Tensor, *,
    ks: Sequence[int] = (1, 5, 10), leave_one_out: bool = False, approximate: bool = False,
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
        approximate: of the nearest that `inverted_file` finds, as many as the largest k or R: O(Q·(√N + R)·D), where
            exact ranks take O(Q·N·(D + log N)).

    Returns:
        {"num_queries" (that count), "num_without_match" (that do not), "recall_at_1" and so on,
        "mean_average_precision", "mean_average_precision_at_r"}, in [0, 1]. Of an approximate search the last but
        one, which needs the ranks of all, is left out, and "recall_of_search" is the share of the exact neighbours
        that it finds, of 256 of the queries.

    Raises:
        ValueError: no query has a match.
    """
    if leave_one_out and len(queries) != len(embeddings):
        raise ValueError(f"{len(queries)} queries cannot be the {len(embeddings)} embeddings themselves.")
    order = labels.argsort(stable=True)
    ends = (torch.searchsorted(labels[order], query_labels.contiguous(), right=right) for right in (False, True))
    first, last = (end.cpu().numpy() for end in ends)
    numbers = last - first - leave_one_out  # R of each query
    if not (counted := int((numbers > 0).sum())):
        raise ValueError("no query has an image of its class to find.")
    more = {}
    if approximate:
        width = min(max(*ks, int(numbers.max())) + leave_one_out, len(embeddings))
        index = inverted_file(embeddings, width)
        sample = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        asked = queries[sample]
        pairs = zip(nearest(asked, embeddings, width).rows.numpy(), index.search(asked.numpy(), width)[1])
        shares = [len(np.intersect1d(*pair)) / width for pair in pairs]
        more = {"num_searched": width, "recall_of_search": sum(shares) / len(shares)}
        ranks = _found_ranks(index, width, queries, query_labels, labels, leave_one_out)
    else:
        members = order.cpu()
        ranks = _all_ranks(queries, embeddings, [members[i:j] for i, j in zip(first, last)], leave_one_out)
    average, at_r, recalls = 0.0, 0.0, dict.fromkeys(sorted(ks), 0)
    for found, number in tqdm(zip(ranks, numbers), "measuring", len(queries), leave=False, delay=5):
        if len(found):
            precision = np.arange(1, len(found) + 1) / found  # P(i) where rank i holds the class
            average += precision.sum() / number
            at_r += precision[found <= number].sum() / number
            for k in recalls:
                recalls[k] += int(found[0] <= k)
    average_of_all = {} if approximate else {"mean_average_precision": float(average) / counted}
    return {
        "num_queries": counted,
        "num_without_match": len(queries) - counted,
        **{f"recall_at_{k}": hits / counted for k, hits in recalls.items()},
        **average_of_all,
        "mean_average_precision_at_r": float(at_r) / counted,
        **more,
    }


def _all_ranks(
    queries: Tensor, embeddings: Tensor, matches: Sequence[Tensor], leave_one_out: bool
) -> Iterator[np.ndarray]:
    """For each query the ranks of its matches, rows of embeddings, among all: from 1 on, ascending."""

    def ranks(cosines: Tensor, query: int) -> np.ndarray:
        own = matches[query]
        own = own[own != query] if leave_one_out else own
        if not len(own):
            return own
        # Of a class that lies close together these are few; no others need an order.
        near = (cosines >= cosines[own].min()).nonzero()[:, 0]
        near = near[near != query] if leave_one_out else near
        keys = np.sort(_keys(cosines[near], near).numpy())  # NumPy's sort is the faster one
        return len(keys) - np.searchsorted(keys, np.sort(_keys(cosines[own], own).numpy()))[::-1]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start, block in _blocks(queries, len(embeddings) // (BLOCK_COSINES // BLOCK_NUMBERS)):
            chunks = _blocks(embeddings, max(block.shape))
            cosines = torch.cat([_cosines(block.double(), chunk) for _, chunk in chunks], 1).cpu()
            yield from pool.map(ranks, cosines, range(start, start + len(block)))


def _found_ranks(
    index: Any, width: int, queries: Tensor, query_labels: Tensor, labels: Tensor, leave_one_out: bool
) -> Iterator[np.ndarray]:
    """For each query the ranks of its class among the `width` nearest that an index of faiss finds."""
    wanted, own = query_labels.numpy(), labels.numpy()
    for start, block in _blocks(queries, width):
        for query, rows in enumerate(index.search(block.numpy(), width)[1], start):
            rows = rows[(rows >= 0) & ((rows != query) | (not leave_one_out))]
            yield 1 + np.flatnonzero(own[rows] == wanted[query])


def _blocks(queries: Tensor, numbers_each: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, BLOCK_NUMBERS // max(1, numbers_each))
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size]
