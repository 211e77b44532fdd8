"""Every score is what another library, or a loop, makes of its paper's formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from hf_protosphere.open_set import scores as module
from hf_protosphere.open_set.confidence import conformal_threshold
from hf_protosphere.open_set.detection import detection_metrics
from hf_protosphere.open_set.scores import (
    FITTED,
    SCORES,
    Outputs,
    fit_scores,
    halves,
    knn,
    mahalanobis,
    neco,
    score_by,
    vim,
)
from hf_protosphere.prototypes import known_score, simplex_etf

NUM_CLASSES, DIM = 5, 12


def outputs(count, noise=0.4, seed=0, turned=False):
    """Of images around the vertices of a simplex, or in directions that none of them has."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = F.normalize(simplex_etf(NUM_CLASSES, DIM, torch.Generator().manual_seed(1)), dim=1)
    labels = torch.arange(count) % NUM_CLASSES
    spread = noise / DIM**0.5 * torch.randn(count, DIM, generator=generator)
    centres = torch.randn(count, DIM, generator=generator) if turned else prototypes[labels]
    embeddings = F.normalize(centres + spread, dim=1)
    embeddings, prototypes = embeddings.double(), prototypes.double()
    return Outputs(embeddings, embeddings @ prototypes.T / 0.2, labels), prototypes


@pytest.fixture
def data():
    known, new = outputs(90)[0], outputs(20, seed=1)[0]
    numbers = [x.numpy() for x in (known.embeddings, known.logits, new.embeddings, new.logits)]
    return known, new, numbers


def score_of(fit, known, new):
    return known_score(fit.__name__, new.embeddings, new.logits, outputs(1)[1], *fit(known)).numpy()


def test_mahalanobis_is_the_distance_to_the_nearest_mean_under_one_covariance(data):
    known, new, (x, _, others, _) = data
    labels = known.labels.numpy() * 2  # the classes between have no images
    known = Outputs(known.embeddings, known.logits, torch.tensor(labels))
    means = {c: x[labels == c].mean(0) for c in {*labels}}
    residuals = np.stack([row - means[c] for row, c in zip(x, labels)])
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    expected = [-min((row - mean) @ precision @ (row - mean) for mean in means.values()) for row in others]
    assert score_of(mahalanobis, known, new) == pytest.approx(np.array(expected), rel=1e-6)


@pytest.mark.parametrize(("count", "k"), [(90, 10), (20, 4), (3, 1)])  # never more than a class has
def test_knn_is_the_distance_to_that_neighbour(data, count, k):
    known, new, (x, _, others, _) = data
    distances, _ = NearestNeighbors(n_neighbors=k).fit(x[:count]).kneighbors(others)
    assert score_of(knn, known[:count], new) == pytest.approx(-distances[:, -1], abs=1e-6)


def test_vim_is_a_virtual_logit_beside_the_energy(data):
    """Wang et al. 2022, section 4: p of the virtual logit is one more softmax; their score falls with it."""
    known, new, (x, logits, others, new_logits) = data
    vectors = np.linalg.svd(x)[2].T[:, DIM // 2 :]  # beyond the principal space
    scale = logits.max(1).mean() / np.linalg.norm(x @ vectors, axis=1).mean()
    virtual = scale * np.linalg.norm(others @ vectors, axis=1)
    found = score_of(vim, known, new)
    assert found == pytest.approx(logsumexp(new_logits, axis=1) - virtual)
    probability = np.exp(virtual - logsumexp(np.c_[new_logits, virtual], axis=1))
    assert 1 / (1 + np.exp(found)) == pytest.approx(probability)  # one is a function of the other


def test_neco_is_the_share_in_the_principal_components(data):
    known, new, (x, _, others, _) = data
    components = PCA(NUM_CLASSES - 1).fit(x)
    inside = np.linalg.norm(components.transform(others), axis=1)
    assert score_of(neco, known, new) == pytest.approx(inside / np.linalg.norm(others - x.mean(0), axis=1))


def test_the_scores_of_the_model_are_those_that_it_keeps(data):
    known, new, _ = data
    prototypes = outputs(1)[1]
    scores = fit_scores(prototypes, known)
    assert [*scores] == [*SCORES]
    assert [*fit_scores(prototypes)] == [name for name in SCORES if name not in FITTED]
    for name in fit_scores(prototypes):
        expected = known_score(name, new.embeddings, new.logits, prototypes)
        assert torch.equal(scores[name](new), expected)


@pytest.mark.parametrize("name", SCORES)
def test_what_is_far_from_all_classes_looks_less_known(name):
    (known, prototypes), (new, _), (far, _) = outputs(200), outputs(100, seed=1), outputs(100, seed=2, turned=True)
    score = fit_scores(prototypes, known)[name]
    metrics = detection_metrics(score(new), score(far))
    assert metrics["auroc"] > 0.95


@pytest.mark.parametrize("name", SCORES)
def test_collapsed_classes_have_finite_scores(name):
    known, prototypes = outputs(50, noise=0.0)
    score = fit_scores(prototypes, known)[name]
    assert score(known).isfinite().all()
    one_each = fit_scores(prototypes, known[:NUM_CLASSES])[name]
    assert one_each(known).isfinite().all()


def test_scores_are_in_float64_of_a_part_of_the_images_at_a_time(monkeypatch):
    known, prototypes = outputs(90)
    scores = fit_scores(prototypes, known)
    whole = {name: score(known) for name, score in scores.items()}
    monkeypatch.setattr(module, "PART", 7)
    single = Outputs(known.embeddings.float(), known.logits.float(), known.labels)
    for name, score in scores.items():
        assert torch.allclose(score(known), whole[name], atol=1e-12)
        assert score(single).dtype == torch.float64
    far = Outputs(known.embeddings.float(), torch.tensor([[30.0, 0.0], [40.0, 0.0]]), known.labels[:2])
    first, second = fit_scores(prototypes)["max_softmax"](Outputs(far.embeddings[:2], far.logits, far.labels)).tolist()
    assert first < second  # in float32 both are 1


@pytest.mark.parametrize("name", FITTED)
def test_half_of_the_images_promises_as_much(name):
    """Over draws, what is fitted to one half and judged by the other rejects no more new images than was promised."""
    images, prototypes = outputs(600, noise=1.0)
    rejected = []
    for seed in range(150):
        order = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
        first, judged = halves(images[order[:158]])
        score = score_by(name, prototypes, FITTED[name](first))
        threshold = -conformal_threshold(-score(judged), 0.9)  # the 72nd of 79: 8 of 80 below, on average
        rejected.append((score(images[order[158:]]) < threshold).double().mean().item())
    assert np.mean(rejected) == pytest.approx(0.1, abs=4 * np.std(rejected) / 150**0.5)
