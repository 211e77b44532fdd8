"""The simplex ETF, exact class means, and how known images look."""

import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import orthogonal_procrustes
from scipy.special import logsumexp, softmax

from hf_protosphere.configuration_protosphere import FITTED_SCORES, REJECTION_SCORES
from hf_protosphere.prototypes import (
    chosen_margin,
    class_means,
    known_score,
    nonnegative_limit,
    simplex_etf,
    turned,
)


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (2, 7), (10, 9), (10, 64), (257, 256)])
def test_simplex_etf_has_equal_angles(num_classes, dim):
    etf = simplex_etf(num_classes, dim).double()
    assert etf.shape == (num_classes, dim)
    expected = torch.full((num_classes, num_classes), -1 / (num_classes - 1)).double()
    expected.fill_diagonal_(1)
    assert torch.allclose(etf @ etf.T, expected, atol=1e-6)
    assert etf.sum(0).abs().max() < 1e-5


def test_simplex_etf_orientation_follows_the_generator():
    def draw(seed):
        return simplex_etf(4, 8, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.allclose(draw(1), draw(2))


def test_simplex_etf_says_what_to_do_when_there_are_too_few_dimensions():
    with pytest.raises(ValueError, match=r"12 classes needs at least 11 dim.*have 10.*project"):
        simplex_etf(12, 10)
    with pytest.raises(ValueError, match="num_classes=1"):
        simplex_etf(1, 10)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_the_limit_is_the_distance_of_a_simplex_from_the_frame_it_is_made_of(num_classes):
    frame = torch.eye(num_classes, dtype=torch.float64)
    simplex = torch.nn.functional.normalize(frame - frame.mean(0), dim=1)
    distances = (frame - simplex).square().sum(1)
    limit = torch.full_like(distances, nonnegative_limit(num_classes))
    torch.testing.assert_close(distances, limit, rtol=1e-12, atol=0)


def test_class_means_of_tensors_and_of_batches_are_the_plain_means():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(101, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (101,), generator=generator)
    expected = torch.stack([embeddings[labels == c].mean(0) for c in range(4)])
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(class_means(embeddings, labels, 4), expected, atol=1e-14)
    batches = ((embeddings[i : i + 7], labels[i : i + 7]) for i in range(0, 101, 7))
    assert torch.allclose(class_means(batches, num_classes=4), expected, atol=1e-14)


def test_class_means_sum_in_float64():
    # In float32 the sum of 2**14 ones after 2**24 stays 2**24.
    embeddings = torch.tensor([[2.0**24, 0.0]] + [[1.0, 1.0]] * 2**14)
    labels = torch.tensor([0] * len(embeddings))
    mean = class_means(embeddings, labels, 1)[0]
    ratio = 2**14 / (2**24 + 2**14)
    assert mean[1] / mean[0] == pytest.approx(ratio, rel=1e-6)
    assert mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("embeddings", "labels", "num_classes", "message"),
    [
        (torch.ones(2, 3), torch.tensor([0, 2]), 4, "no samples of class 1, 3"),
        (torch.ones(2, 3), torch.tensor([0, 5]), 4, r"\[0, 4\), but got 5"),
        (torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]), 1, "class 0 is zero"),
        (torch.ones(2, 3), torch.tensor([0]), 1, "expected embeddings"),
        (torch.ones(2, 3), None, 1, "needs the labels"),
        (iter([]), None, 2, "no batches"),
        (iter([]), None, None, "needs num_classes"),
    ],
)
def test_class_means_errors(embeddings, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        class_means(embeddings, labels, num_classes)


def test_the_scores_of_known_images_are_those_of_numpy():
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(50, 8, generator=generator), dim=1)
    prototypes = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    outputs = embeddings, embeddings @ prototypes.T / 0.2, prototypes
    x, logits, w = (values.double().numpy() for values in outputs)
    expected = {
        "cosine": (x @ w.T).max(1), "max_softmax": softmax(logits, axis=1).max(1), "energy": logsumexp(logits, axis=1)
    }  # fmt: skip
    assert {*expected} == {*REJECTION_SCORES} - {*FITTED_SCORES}  # those: tests/open_set/test_scores.py
    for name, values in expected.items():
        found = known_score(name, *outputs).double().numpy()
        assert found == pytest.approx(values, rel=1e-5)
        low, high = REJECTION_SCORES[name]
        assert ((low <= found) & (found <= high)).all()


def test_a_spare_vertex_turns_as_far_as_procrustes_lets_it():
    generator = torch.Generator().manual_seed(0)
    vertices = simplex_etf(9, 12, generator).double()
    old, spare = vertices[:5], vertices[5:]
    means = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    placed = turned(spare[1], old, means)
    torch.testing.assert_close(placed @ old.T, torch.full((3, 5), -1 / 8, dtype=torch.float64))
    torch.testing.assert_close(turned(spare[3], old, means), placed)  # they exchange places
    outside = torch.linalg.svd(old)[2][5:]  # (7, D), an orthonormal basis of all that is orthogonal to the prototypes
    for mean, found in zip(means, placed):
        rotation, _ = orthogonal_procrustes((outside @ spare[1])[None], (outside @ mean)[None])
        within = spare[1] - spare[1] @ outside.T @ outside
        expected = within + torch.from_numpy((outside @ spare[1])[None].numpy() @ rotation)[0] @ outside
        torch.testing.assert_close(found, expected)
    last = simplex_etf(4, 12).double()  # a single spare vertex is spanned by the others: it cannot turn
    torch.testing.assert_close(turned(last[3], last[:3], means), last[3].expand(3, -1))


def test_the_margin_is_the_best_of_all_that_there_are():
    generator = torch.Generator().manual_seed(1)
    gains, losses = (torch.randn(n, dtype=torch.float64, generator=generator) / 2 for n in (7, 40))
    labels = torch.tensor([0, 1, 3]).repeat(14)[:40]
    losses[::9] = torch.inf
    tried = {}
    for margin in (m / 100 for m in range(101)):
        shares = [(losses[labels == c] <= margin).double().mean() for c in (0, 1, 3)]
        tried[margin] = torch.stack([*shares, (gains > margin).double().mean()]).mean().item()
    margin, accuracy = chosen_margin(gains, losses, labels)
    assert accuracy == pytest.approx(max(tried.values()))
    best = [m for m, share in tried.items() if share > accuracy - 1e-9]
    assert margin == min(best)
    assert chosen_margin(gains.abs() + 0.01, -losses.abs(), labels * 0)[0] == 0  # where nothing is to be won
