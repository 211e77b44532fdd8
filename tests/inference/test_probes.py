"""Linear probes: scikit-learn's own optimum, their strength chosen by what was held out; in one table."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.inference import probes
from hf_protosphere.inference.probes import STRENGTHS, fit_probe, held_out_pairs


def accuracy(probe, split):
    return (probe(split.versions[0]).argmax(1) == split.labels).double().mean().item()


def clusters(seed, noise=1.5, count=400):
    """Five classes in features of very different scale."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5).repeat(count // 5)
    features = centres[labels] + noise * torch.randn(count, 16, generator=generator)
    return FeatureSplit(features * 10.0 ** torch.linspace(-2, 2, 16) + 3, labels)


def reference(train, strength):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-8))
    return model.fit(train.versions[0].double().numpy(), train.labels.numpy())


def test_the_optimum_is_scikit_learns_and_its_strength_the_best_on_validation_images():
    known, validation, test = clusters(1), clusters(2), clusters(3)
    probe, reached = fit_probe("linear", known, 5, validation=validation)
    scores = [reference(known, c).score(validation.versions[0].numpy(), validation.labels.numpy()) for c in STRENGTHS]
    assert reached == pytest.approx(max(scores)) == accuracy(probe, validation)
    best = reference(known, STRENGTHS[scores.index(max(scores))])
    expected = torch.from_numpy(best.predict_proba(test.versions[0].numpy()))
    torch.testing.assert_close(probe(test.versions[0]).softmax(1).double(), expected, atol=1e-3, rtol=1e-2)


def test_without_validation_images_by_cross_validation(monkeypatch):
    known, test = clusters(1, count=100), clusters(3)
    pairs = held_out_pairs(known)
    assert [len(held) for _, held in pairs] == [20] * 5
    assert all(held.labels.bincount().tolist() == [4] * 5 for _, held in pairs)
    probe, reached = fit_probe("linear", known, 5)
    assert reached == pytest.approx(accuracy(probe, test), abs=0.12)
    monkeypatch.setattr(probes, "MANY", 50)
    ((fit_on, held),) = held_out_pairs(known)
    assert (len(fit_on), len(held)) == (90, 10)
    # One image a class: nothing can be held out, and the usual strength is taken.
    few = clusters(1, count=5)
    probe, reached = fit_probe("linear", few, 5)
    assert reached is None
    logits = torch.from_numpy(reference(few, probes.USUAL).predict_proba(test.versions[0].numpy()))
    torch.testing.assert_close(probe(test.versions[0]).softmax(1).double(), logits, atol=1e-3, rtol=1e-2)


def test_all_versions_of_an_image_are_trained_on():
    first, second = clusters(1), clusters(4)
    both = FeatureSplit(torch.stack([first.versions[0], second.versions[0]]), first.labels)
    together = FeatureSplit(torch.cat([first.versions[0], second.versions[0]]), first.labels.repeat(2))
    fitted = [fit_probe("linear", split, 5, validation=clusters(2))[0] for split in (both, together)]
    torch.testing.assert_close(fitted[0].weight, fitted[1].weight, rtol=1e-2, atol=1e-3)


def test_one_against_all_is_a_logistic_regression_of_each_class(monkeypatch):
    monkeypatch.setattr(probes, "STRENGTHS", (1.0,))
    known, test = clusters(1), clusters(2)
    members = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]).float()
    probe, reached = fit_probe("linear", known, 3, members=members)
    assert reached is None
    for c in range(3):
        of_class = FeatureSplit(known.versions, members[known.labels, c].long())
        expected = torch.from_numpy(reference(of_class, 1.0).predict_proba(test.versions[0].numpy())[:, 1])
        found = probe(test.versions[0])[:, c].sigmoid().double()
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)


def test_only_the_linear_probe_sees_norms():
    rays = FeatureSplit(torch.tensor([[1.0, 0.0], [3.0, 0.0]]).repeat(50, 1), torch.arange(2).repeat(50))
    assert accuracy(fit_probe("linear", rays, 2)[0], rays) == 1
    assert accuracy(fit_probe("normalized_linear", rays, 2)[0], rays) == 0.5


def test_the_normalised_probe_has_the_least_loss_of_its_kind():
    known = FeatureSplit(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4).repeat(50))
    probe, reached = fit_probe("normalized_linear", known, 4, temperature=0.2)
    assert reached is None
    assert probe.temperature == 0.2
    loss = F.cross_entropy(probe(known.versions[0]), known.labels)
    loss.backward()
    assert probe.weight.grad.abs().max() < 1e-4 * loss
