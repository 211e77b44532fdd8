"""The operators beneath the losses, against torch's own log-sum-exp and autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_protosphere import contrast
from hf_protosphere.contrast import (
    ContrastLogSumExp,
    PairwiseLogSumExp,
    contrast_vectors,
    resolve_group,
    rows_per_chunk,
)

TEMPERATURE = 0.3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def gradients(value, *leaves):
    weights = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype)
    finite = torch.where(value.isfinite(), value, 0.0)
    return torch.autograd.grad((finite.flatten() * weights).sum(), leaves)


def assert_same(got, expected, leaves):
    assert torch.allclose(got, expected, atol=1e-12)
    for ours, theirs in zip(gradients(got, *leaves), gradients(expected, *leaves)):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("exclude_own", [False, True])
@pytest.mark.parametrize("over_columns", [False, True])
@pytest.mark.parametrize("chunk_rows", [None, 1, 2, 9])
def test_log_sum_exp_of_either_side(chunk_rows, over_columns, exclude_own, normalize):
    rows, columns = draw(5, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    own_row = torch.tensor([0, 4, 4, -1, 2, 0, 1])
    keep = own_row >= 0
    lse, positives, _ = ContrastLogSumExp.apply(
        rows, columns, own_row, keep, TEMPERATURE, over_columns, exclude_own, chunk_rows, normalize
    )
    w, u = (F.normalize(x, dim=1) if normalize else x for x in (rows, columns))
    similarities = w @ u.T / TEMPERATURE
    own = F.one_hot(own_row.clamp(min=0), 5).T.bool() & keep
    left_out = own & exclude_own | (~keep & over_columns)
    expected = similarities.masked_fill(left_out, -math.inf).logsumexp(1 if over_columns else 0)
    expected = torch.cat([expected, (similarities * own).sum(0)])
    assert_same(torch.cat([lse, positives]), expected, (rows, columns))


@pytest.mark.parametrize("chunk_rows", [None, 1, 2, 4, 100])
def test_pairs_are_all_but_the_diagonal(chunk_rows):
    vectors = draw(9, 3).requires_grad_()
    keep = torch.arange(9) % 4 != 1
    got = PairwiseLogSumExp.apply(vectors, keep, TEMPERATURE, chunk_rows)
    pairs = keep[:, None] & keep & ~torch.eye(9, dtype=torch.bool)
    similarities = vectors @ vectors.T / TEMPERATURE
    expected = similarities.masked_fill(~pairs, -math.inf)
    assert torch.equal(got == -math.inf, ~keep)
    assert_same(got[keep], expected[keep].logsumexp(1), (vectors,))


def test_vectors_with_the_sums_and_counts_of_their_classes():
    vectors, labels = draw(8, 3), torch.tensor([7, -100, 7, 2, -5, 2, 7, 0])
    keep = labels != -100
    lse, sums, counts = contrast_vectors(vectors, labels, keep, TEMPERATURE, None, None)
    for i in range(8):
        members = [j for j in range(8) if labels[j] == labels[i] and keep[j]]
        assert counts[i] == len(members)
        assert torch.allclose(sums[i], sum((vectors[j] for j in members), torch.zeros(3)).double())
        others = [vectors[i] @ vectors[j] / TEMPERATURE for j in range(8) if j != i and keep[j]]
        assert not keep[i] or torch.allclose(lse[i], torch.stack(others).logsumexp(0))
    with pytest.raises(ValueError, match="chunk_size must be at least 1 or None, but got 0"):
        contrast_vectors(vectors, labels, keep, TEMPERATURE, 0, None)


def test_chunks_begin_where_memory_would_end():
    assert rows_per_chunk(None, 4096, 4096) is None
    assert rows_per_chunk(7, 4096, 4096) == 7
    rows = rows_per_chunk(None, 4096, 4097)
    assert rows * 4097 <= contrast.CHUNK_SIMILARITIES < (rows + 1) * 4097
    assert rows_per_chunk(None, 2, 2**30) == 1
    with pytest.raises(ValueError, match="chunk_size must be at least 1 or None, but got -1"):
        rows_per_chunk(-1, 2, 2)


def test_alone_there_is_no_group():
    assert resolve_group(None) is None
    assert resolve_group("local") is None
    with pytest.raises(ValueError, match="group must be a process group, 'local' or None"):
        resolve_group("global")
