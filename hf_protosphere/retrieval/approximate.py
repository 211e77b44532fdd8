"""Approximate nearest neighbours by faiss, where every pair of a query and an image is too much."""

from typing import Any

from torch import Tensor

BLOCK = 2**16  # embeddings that are handed over at once
TRAINING = 39  # embeddings for each cell that its centre is fitted to: what faiss asks for at least
PROBED = 8  # times as many embeddings as are asked for are looked at


def inverted_file(embeddings: Tensor, k: int) -> Any:
    """A `faiss.IndexIVFFlat` of inner products, with 4·√N cells (Sivic and Zisserman, Video Google, 2003) of which a
    search looks at the nearest ones, until they hold 8 times k embeddings.

    Args:
        embeddings: (N, D) float32, unit rows.
        k: how many neighbours will be asked for.

    Returns:
        The index: `index.search(queries, k)` gives (Q, k) cosines and rows, NumPy arrays, rows of -1 where the cells
        held fewer. It has a copy of the embeddings in memory.
    """
    import faiss

    count, dim = embeddings.shape
    cells = max(1, min(round(4 * count**0.5), count // TRAINING))
    index = faiss.index_factory(dim, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = TRAINING
    index.cp.min_points_per_centroid = 1
    index.train(embeddings.numpy())  # draws TRAINING * cells of them
    for block in embeddings.split(BLOCK):
        index.add(block.numpy())
    index.nprobe = min(cells, max(16, -(-PROBED * k * cells // count)))
    return index
