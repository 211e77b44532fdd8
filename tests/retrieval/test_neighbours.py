"""Exact search and its metrics, against loops and pytorch-metric-learning."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_protosphere.retrieval import neighbours as retrieval
from hf_protosphere.retrieval.neighbours import nearest, retrieval_metrics


def sphere(count, dim=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=1)


def clustered(count, classes=6, spread=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, 24, generator=generator) * spread
    return F.normalize(sphere(classes)[labels] + noise, dim=1), labels


def ranking(query, embeddings):
    """Rows, nearest first, by Python's own sort."""
    cosines = (embeddings.double() @ query.double()).float().tolist()
    return sorted(range(len(cosines)), key=lambda row: (-cosines[row], row))


def naive_metrics(queries, query_labels, embeddings, labels, ks, leave_one_out):
    values = []
    for i, query in enumerate(queries):
        ranked = [r for r in ranking(query, embeddings) if not (leave_one_out and r == i)]
        hits = [labels[r].item() == query_labels[i].item() for r in ranked]
        number = sum(hits)
        if number:
            precisions = [sum(hits[: j + 1]) / (j + 1) * hit for j, hit in enumerate(hits)]
            recalls = [float(any(hits[:k])) for k in ks]
            values.append([*recalls, sum(precisions) / number, sum(precisions[:number]) / number])
    return torch.tensor(values, dtype=torch.float64).mean(0).tolist(), len(values)


@pytest.mark.parametrize(("count", "k"), [(1, 1), (7, 3), (300, 10), (300, 300)])
def test_neighbours_are_those_of_a_sort(count, k, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_NUMBERS", 2000)  # several blocks of embeddings
    monkeypatch.setattr(retrieval, "QUERIES", 7)
    embeddings, queries = sphere(count), sphere(20, seed=1)
    found = nearest(queries, embeddings, k)
    expected = [ranking(query, embeddings)[:k] for query in queries]
    assert found.rows.tolist() == expected
    cosines = (queries.double() @ embeddings.double().T).gather(1, found.rows).float()
    assert torch.equal(found.cosines, cosines)


@pytest.mark.parametrize("copies", [5, 100])
def test_among_equal_cosines_the_lower_row_comes_first(copies):
    embeddings = sphere(50).repeat(copies, 1)
    found = nearest(sphere(50)[:4], embeddings, 3)
    assert found.rows.tolist() == [[i, i + 50, i + 100] for i in range(4)]


def test_float64_decides_in_a_collapsed_class():
    # Cosines differ by less than float32 products can tell.
    center = sphere(1)
    embeddings = F.normalize(center + 2e-4 * sphere(400, seed=2), dim=1)
    found = nearest(center, embeddings, 20)
    assert found.rows[0].tolist() == ranking(center[0], embeddings)[:20]


def test_opposite_and_orthogonal_embeddings_come_in_order():
    embeddings = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-0.6, 0.8]])
    found = nearest(torch.tensor([[1.0, 0.0], [1.0, -0.0]]), embeddings, 5)
    assert found.rows.tolist() == [[3, 1, 2, 4, 0]] * 2  # 0 and -0 are equal
    assert found.cosines[0].tolist() == pytest.approx([1, 0, 0, -0.6, -1])


def test_k_beyond_the_number_of_embeddings_gives_all():
    assert nearest(sphere(2), sphere(5), 50).rows.shape == (2, 5)
    assert nearest(sphere(0), sphere(5), 2).rows.shape == (0, 2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must be \(Q, D\) and \(N, D\)"):
        nearest(sphere(2), sphere(5, dim=3), 1)
    with pytest.raises(ValueError, match=r"k must be at least 1"):
        nearest(sphere(2), sphere(5), 0)
    with pytest.raises(ValueError, match=r"got 1 of 0"):
        nearest(sphere(2), sphere(0), 1)
    embeddings, labels = clustered(5)
    with pytest.raises(ValueError, match=r"4 queries cannot be the 5"):
        retrieval_metrics(embeddings[:4], labels[:4], embeddings, labels, leave_one_out=True)
    with pytest.raises(ValueError, match=r"no query has an image of its class"):
        retrieval_metrics(embeddings, labels + 9, embeddings, labels)


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("block", [1, 2**22])
def test_metrics_are_those_of_loops(leave_one_out, block, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_NUMBERS", block)
    embeddings, labels = clustered(60)
    embeddings[30:40] = embeddings[20:30]  # ties
    labels[-1] = 77  # nobody else's
    queries, query_labels = (embeddings, labels) if leave_one_out else clustered(25, seed=3)
    ks = (1, 4, 500)
    given = (queries, query_labels, embeddings, labels)
    found = retrieval_metrics(*given, ks=ks, leave_one_out=leave_one_out)
    expected, counted = naive_metrics(*given, ks, leave_one_out)
    names = ["recall_at_1", "recall_at_4", "recall_at_500"]
    names += ["mean_average_precision", "mean_average_precision_at_r"]
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-12)
    assert 0.2 < expected[0] < 1  # neither trivial
    assert found["num_queries"] == counted
    assert found["num_without_match"] == len(queries) - counted


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_metrics_are_those_of_pytorch_metric_learning(leave_one_out):
    pytest.importorskip("faiss")
    calculators = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    embeddings, labels = clustered(200)
    queries, query_labels = (embeddings, labels) if leave_one_out else clustered(50, seed=3)
    names = ("precision_at_1", "mean_average_precision", "mean_average_precision_at_r")
    calculator = calculators.AccuracyCalculator(include=names, k=200 - leave_one_out)
    theirs = calculator.get_accuracy(queries, query_labels, embeddings, labels, ref_includes_query=leave_one_out)
    ours = retrieval_metrics(queries, query_labels, embeddings, labels, leave_one_out=leave_one_out)
    assert ours["recall_at_1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    for name in names[1:]:
        # Theirs orders by distances in float32: neighbours that are nearly as far change places.
        assert ours[name] == pytest.approx(theirs[name], abs=1e-5)


def test_a_sample_of_the_queries_is_measured_exactly():
    embeddings, labels = clustered(600, classes=40, spread=0.3)
    given = embeddings, labels, embeddings, labels
    found = retrieval_metrics(*given, leave_one_out=True, num_queries=200)
    rows = torch.from_numpy(np.sort(np.random.default_rng(0).choice(600, 200, replace=False)))
    precisions = []
    for row in rows.tolist():
        order = (embeddings @ embeddings[row]).argsort(descending=True)
        hits = labels[order[order != row]] == labels[row]
        ranks = 1 + hits.nonzero()[:, 0]
        precisions.append((torch.arange(1, len(ranks) + 1) / ranks).mean().item())
    assert found["num_queries"] == 200
    assert found["mean_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert retrieval_metrics(*given, leave_one_out=True, num_queries=600) == retrieval_metrics(
        *given, leave_one_out=True
    )


def test_a_collapsed_model_retrieves_perfectly():
    labels = torch.arange(30) % 3
    found = retrieval_metrics(torch.eye(3)[labels], labels, torch.eye(3)[labels], labels, ks=[1], leave_one_out=True)
    assert found == {
        "num_queries": 30, "num_without_match": 0, "recall_at_1": 1.0,
        "mean_average_precision": 1.0, "mean_average_precision_at_r": 1.0,
    }  # fmt: skip
