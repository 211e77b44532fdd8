"""Copies, outliers and wrong labels that were put there are found; formulas are those of their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import average_precision_score

from hf_protosphere.inspection import scores
from hf_protosphere.retrieval.neighbours import Neighbours


def clusters(per_class=30, classes=4, dim=16, seed=0, spread=0.6):
    """Unit features of classes that overlap a little, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centres = torch.randn(classes, dim, generator=generator)
    return F.normalize(
        1 + centres[labels] + spread * torch.randn(len(labels), dim, generator=generator), dim=1
    ), labels


def test_whitening_is_that_of_the_definition():
    features, _ = clusters()
    centred = features.double() - features.double().mean(0)
    covariance = centred.T @ centred / len(features)
    ridge = covariance + covariance.trace() / 16 * torch.eye(16)
    expected = F.normalize(centred @ torch.linalg.cholesky(torch.linalg.inv(ridge)), dim=1)
    found = scores.whitened(features).double()  # up to a rotation
    assert torch.allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    assert not scores.whitened(torch.ones(3, 4)).isnan().any()


def test_no_image_is_its_own_neighbour_whatever_copies_there_are():
    points = torch.cat([torch.eye(3)[:1].repeat(5, 1), torch.eye(3)])
    found = scores.neighbours_of(points, 2)
    assert found.rows.shape == found.cosines.shape == (8, 2)
    assert (found.rows != torch.arange(8)[:, None]).all()
    assert (found.cosines[:6] == 1).all()
    assert scores.neighbours_of(points[-2:], 50).rows.tolist() == [[1], [0]]


def test_copies_of_copies_are_one_group():
    cosines = torch.tensor([[0.9, 0.2], [0.9, 0.8], [0.8, 0.1], [0.2, 0.1]])
    rows = torch.tensor([[1, 3], [0, 2], [1, 3], [0, 2]])
    assert scores.near_duplicates(Neighbours(cosines, rows), 0.8).tolist() == [0, 0, 0, 3]
    assert scores.near_duplicates(Neighbours(cosines, rows), 0.85).tolist() == [0, 0, 2, 3]


def test_an_image_far_from_all_others_is_the_outlier():
    features, _ = clusters()
    features[7] = -features.mean(0)
    features = F.normalize(features, dim=1)
    found = scores.outlier_scores(scores.neighbours_of(scores.whitened(features), 20))
    assert found.argmax() == 7
    exact = (1 - (points := scores.whitened(features)) @ points.T).sort(dim=1).values[:, 10]
    assert torch.allclose(found, exact, atol=1e-5)


def test_folds_are_even_in_every_class_and_keep_copies_together():
    labels = torch.arange(4).repeat(25)
    fold = scores.folds_of(labels, torch.arange(100), seed=1)
    assert np.array_equal(torch.bincount(4 * fold + labels), [5] * 20)
    assert not torch.equal(fold, scores.folds_of(labels, torch.arange(100), seed=2))
    firsts = torch.arange(100)
    firsts[[40, 41, 90]] = 3
    assert scores.folds_of(labels, firsts)[[3, 40, 41, 90]].unique().numel() == 1


def test_class_means_are_those_of_other_folds():
    features, labels = clusters(spread=2.0)
    fold = scores.folds_of(labels, torch.arange(120))
    found = scores.class_mean_shares(features, labels, 4, fold)
    assert torch.allclose(found.sum(1), torch.ones(120).double())
    known = (fold != 2).numpy()
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5).fit(
        features[known].numpy(), labels[known].numpy()
    )
    logits = expected.decision_function(features[~known].numpy())
    logs = found[~known].log().numpy()
    # The same but for a temperature, one for all.
    ratio = (logits - logits[:, :1])[:, 1:] / (logs - logs[:, :1])[:, 1:]
    assert ratio == pytest.approx(ratio[0, 0], rel=1e-4)
    temperature = ratio[0, 0]

    def loss(t):
        return F.cross_entropy(found.log() * temperature / t, labels).item()

    assert loss(temperature) < min(loss(0.8 * temperature), loss(1.25 * temperature))


def test_who_has_none_of_its_class_elsewhere_is_not_judged():
    features, labels = clusters(per_class=6, classes=3)
    labels[17] = 3  # the only one of its class
    fold = scores.folds_of(labels, torch.arange(18))
    means = scores.class_mean_shares(features, labels, 4, fold)
    votes = scores.neighbour_shares(scores.neighbours_of(features, 3), labels, 4, torch.arange(18))
    wrong, suggested = scores.label_scores(means, votes, labels)
    assert not means[17].any()
    assert (wrong[17], suggested[17]) == (0, -1)
    assert (means[:17].sum(1) > 0.99).all()
    alone = torch.zeros(18, dtype=torch.int64)  # and of one class nothing can be said
    assert not scores.class_mean_shares(features, alone, 1, fold).any()


def test_neighbours_vote_by_nearness_and_copies_do_not():
    cosines, rows = (
        torch.tensor([[0.9, 0.6, 0.3]]).repeat(4, 1),
        torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]),
    )
    labels, firsts = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 2, 3])
    found = scores.neighbour_shares(Neighbours(cosines, rows), labels, 2, firsts)
    weights = np.exp(np.array([0.9, 0.6, 0.3]) / 0.3)
    # Of four images of two classes two vote; of them not the first image's copy.
    assert found[0].tolist() == [0, 1]
    assert found[2].tolist() == [1, 0]
    assert found[3].tolist() == [1, 0]
    shares = scores.neighbour_shares(Neighbours(cosines, rows), torch.tensor([0, 0, 1, 1]), 2, torch.arange(4))
    assert shares[0].tolist() == pytest.approx([weights[0] / weights[:2].sum(), weights[1] / weights[:2].sum()])


def test_scores_are_one_less_the_mean_and_both_must_agree():
    means = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.2, 0.8]])
    votes = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.6, 0.4], [0.0, 0.0]])
    wrong, suggested = scores.label_scores(means, votes, torch.tensor([0, 0, 0, 0]))
    assert wrong.tolist() == pytest.approx([0.2, 0.7, 0.6, 0.9])
    assert suggested.tolist() == [-1, 1, -1, -1]


def test_labels_that_were_changed_come_first():
    features, labels = clusters(per_class=60)
    wrong = torch.randperm(240, generator=torch.Generator().manual_seed(0))[:12]
    given = labels.clone()
    given[wrong] = (given[wrong] + 1) % 4
    found = scores.neighbours_of(scores.whitened(features), scores.VOTERS)
    firsts = torch.arange(240)
    means = scores.class_mean_shares(features, given, 4, scores.folds_of(given, firsts))
    score, suggested = scores.label_scores(means, scores.neighbour_shares(found, given, 4, firsts), given)
    truth = torch.zeros(240).index_fill_(0, wrong, 1)
    assert average_precision_score(truth, score) > 0.95
    assert (suggested[wrong] == labels[wrong]).float().mean() > 0.9
    assert ((score >= 0) & (score <= 1)).all()
