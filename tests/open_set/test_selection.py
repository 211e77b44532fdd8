"""The comparison of scores leaves out what it says, and the choice follows from it."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hf_protosphere.open_set.scores import FITTED, SCORES, Outputs, fit_scores
from hf_protosphere.open_set.selection import best_score, compare_scores
from tests.open_set.test_scores import NUM_CLASSES, outputs


def auroc(score, known, unknown):
    scores = np.concatenate([score(x.embeddings, x.logits).double().numpy() for x in (known, unknown)])
    return roc_auc_score(np.repeat([1, 0], [len(known.labels), len(unknown.labels)]), scores)


def test_unknown_images_are_compared_with_the_half_that_was_not_fitted_on():
    (known, prototypes), (unknown, _) = outputs(81, noise=1.5), outputs(40, seed=2, turned=True)
    found = compare_scores(known, prototypes, unknown)
    assert [*found] == [*SCORES]
    even, odd = known[::2], known[1::2]
    for name in SCORES:
        halves = [
            auroc(fit_scores(prototypes, fitted)[name], measured, unknown)
            for fitted, measured in ((even, odd), (odd, even))
        ]
        assert found[name]["auroc"] == pytest.approx(np.mean(halves))
        assert found[name]["fpr95"] <= 1


def test_classes_that_are_left_out_are_nowhere():
    known, prototypes = outputs(100, noise=1.5)
    found = compare_scores(known, prototypes)
    expected = dict.fromkeys(SCORES, 0.0)
    for c in range(NUM_CLASSES):  # as many groups as classes
        others = [other for other in range(NUM_CLASSES) if other != c]
        own, rest = known.labels == c, known.labels != c
        inside = Outputs(known.embeddings[rest], known.logits[rest][:, others], known.labels[rest])
        outside = Outputs(known.embeddings[own], known.logits[own][:, others], known.labels[own])
        for half in (0, 1):
            for name, score in fit_scores(prototypes[others], inside[half::2]).items():
                expected[name] += auroc(score, inside[1 - half :: 2], outside) / (2 * NUM_CLASSES)
    assert {name: row["auroc"] for name, row in found.items()} == pytest.approx(expected)


def test_many_classes_are_left_out_in_groups():
    known, _ = outputs(96)
    prototypes = torch.randn(12, 12)
    logits = torch.randn(96, 12)
    assert [*compare_scores(Outputs(known.embeddings, logits, torch.arange(96) % 12), prototypes)] == [*SCORES]


def test_where_nothing_can_be_left_out_the_cosine_stays():
    known, prototypes = outputs(30)
    same = Outputs(known.embeddings, known.logits, torch.zeros(30, dtype=torch.int64))
    assert compare_scores(same, prototypes) == {}
    assert best_score({}) == "cosine"


@pytest.mark.parametrize(("energy", "chosen"), [(0.9, "cosine"), (0.909, "cosine"), (0.92, "energy")])
def test_another_score_has_to_be_clearly_better(energy, chosen):
    compared = {name: {"auroc": 0.99} for name in FITTED}  # which no checkpoint holds
    compared |= {"cosine": {"auroc": 0.9}, "max_softmax": {"auroc": 0.8}, "energy": {"auroc": energy}}
    assert best_score(compared) == chosen
