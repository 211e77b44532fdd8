"""Thresholds keep their promise, temperatures are the likelihood's, errors those of a loop."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from hf_protosphere.configuration_protosphere import SET_SCORES
from hf_protosphere.open_set.confidence import (
    conformal_threshold,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from hf_protosphere.pipeline_protosphere import nonconformity

DRAWS = 1000


def rejection_threshold(scores, rate):
    """As `calibrate` has it: of scores that are smaller for what fits less."""
    return -conformal_threshold(-scores, 1 - rate)


def noisy(num_images=400, num_classes=5, scale=3.0, seed=0):
    """Logits (M, K) whose softmax is about right at a temperature of `scale`, and labels (M,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator)
    labels = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]
    return scale * logits, labels


def test_the_calibration_error_is_that_of_a_loop_over_bins():
    logits, labels = noisy()
    scores = softmax(logits.double().numpy(), axis=1)
    confidence, right = scores.max(1), scores.argmax(1) == labels.numpy()
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    bins = reliability(logits, labels)
    assert bins.counts.sum() == len(labels)
    assert bins.expected_calibration_error == pytest.approx(error, abs=1e-12)
    assert error > 0.1


def test_a_confidence_on_the_border_belongs_to_the_bin_below():
    # Of two equal logits the confidence is 1/2 to the last bit: bins are (b/B, (b + 1)/B].
    bins = reliability(torch.zeros(3, 2), torch.tensor([0, 1, 0]), num_bins=2)
    assert bins.counts.tolist() == [3, 0]
    assert bins.accuracy.tolist() == [2 / 3, 0]
    assert bins.confidence.tolist() == [0.5, 0]
    assert bins.expected_calibration_error == pytest.approx(1 / 6)
    sure = reliability(torch.tensor([[100.0, 0.0]]), torch.tensor([0]), num_bins=2)
    assert sure.counts.tolist() == [0, 1]  # and 1 belongs to the last


def test_the_likelihood_is_that_of_a_loop():
    logits, labels = noisy(num_images=30)
    for temperature in (0.5, 1.0, 4.0):
        rows = (logits.double() / temperature).numpy()
        own = [-np.log(softmax(row)[label]) for row, label in zip(rows, labels.tolist())]
        found = negative_log_likelihood(logits, labels, temperature)
        assert found == pytest.approx(np.mean(own), rel=1e-12)


def test_certainty_that_is_right_has_no_error_and_wrong_all_of_it():
    logits = 1000 * torch.eye(3)
    assert reliability(logits, torch.arange(3)).expected_calibration_error == 0
    assert reliability(logits, torch.tensor([1, 2, 0])).expected_calibration_error == 1


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 30.0])
def test_the_temperature_is_the_optimum_of_the_likelihood(scale):
    logits, labels = noisy(scale=scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.2)
    # For two classes temperature scaling is logistic regression on the difference, without bias.
    two, of_two = noisy(num_classes=2, scale=scale, seed=1)
    margin = (two[:, 1] - two[:, 0]).double().numpy()[:, None] / scale
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(margin, of_two).coef_
    assert fit_temperature(two, of_two) == pytest.approx(scale / slope.item(), rel=1e-4)
    for factor in (0.99, 1.01):
        assert negative_log_likelihood(logits, labels, temperature) < negative_log_likelihood(
            logits, labels, factor * temperature
        )


def test_no_temperature_is_best_when_all_is_right_or_no_better_than_chance():
    logits, _ = noisy()
    assert fit_temperature(logits, logits.argmax(-1)) is None
    assert fit_temperature(logits, logits.argmin(-1)) is None


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("n", [99, 100, 137])
def test_at_most_the_promised_share_is_rejected(rate, n):
    cosines = torch.rand(n, generator=torch.Generator().manual_seed(n)) * 2 - 1
    threshold = rejection_threshold(cosines, rate)
    rejected = (cosines < threshold).sum().item()
    assert rejected == math.floor(rate * (n + 1) + 1e-9) - 1
    assert rejected <= rate * n
    # Nor do the images that set it fall below it when their cosine is rounded otherwise.
    assert (cosines - 5e-8 < threshold).sum() <= rate * (n + 1)


def test_new_images_are_rejected_as_seldom_as_promised():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 60, generator=generator).double()
    thresholds = torch.tensor([rejection_threshold(cosines[:59], 0.1) for cosines in draws])
    rejected = (draws[:, 59] < thresholds).double().mean().item()
    assert rejected == pytest.approx(6 / 60, abs=0.02)  # three standard errors


def test_too_few_images_for_a_rate_are_an_error():
    assert rejection_threshold(torch.linspace(-1, 1, 19), 0.05) == -1
    with pytest.raises(ValueError, match=r"to keep 0.95 of the images takes at least 19, but there are 18"):
        rejection_threshold(torch.rand(18), 0.05)


def images(shape, num_classes=6, noise=1.5, seed=0):
    """Logits (*shape, K) that know something of the labels (*shape,); later classes are harder."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, shape, generator=generator)
    logits = 4 * torch.nn.functional.one_hot(labels, num_classes).double()
    harder = 1 + labels[..., None] / num_classes
    return logits + noise * harder * torch.randn(logits.shape, generator=generator).double(), labels


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [99, 100, 137])
def test_the_threshold_of_sets_is_that_order_statistic(coverage, n):
    scores = torch.rand(n, generator=torch.Generator().manual_seed(n)).double()
    k = int(np.ceil(round(coverage * (n + 1), 9)))
    threshold = conformal_threshold(scores, coverage)
    assert 0 <= threshold - scores.sort().values[k - 1] <= 1.01e-6
    assert (scores <= threshold).sum() == k


def test_too_few_images_for_a_coverage_are_an_error():
    assert conformal_threshold(torch.linspace(0, 1, 9), 0.9) == 1
    with pytest.raises(ValueError, match=r"to keep 0.9 of the images takes at least 9, but there are 8"):
        conformal_threshold(torch.rand(8), 0.9)


@pytest.mark.parametrize("kind", SET_SCORES)
@pytest.mark.parametrize(("n", "coverage"), [(100, 0.9), (57, 0.8)])
def test_the_coverage_over_draws_is_what_was_promised(kind, n, coverage):
    """A new image beside n others is covered with a probability of k/(n + 1) exactly, where scores are distinct;
    those of APS and RAPS are 0 for all that are right, so that theirs is at least that."""
    logits, labels = images((DRAWS, n + 1))
    scores = nonconformity(logits.flatten(0, 1), kind).view(DRAWS, n + 1, -1)
    own = scores.gather(2, labels[..., None])[..., 0]  # (DRAWS, n + 1)
    thresholds = torch.tensor([conformal_threshold(row[:n], coverage) for row in own])
    covered = int((own[:, n] <= thresholds).sum())
    share = np.ceil(round(coverage * (n + 1), 9)) / (n + 1)
    assert coverage <= share <= coverage + 1 / (n + 1)
    low, high = binom.ppf([0.0005, 0.9995], DRAWS, share)
    assert low <= covered
    if kind == "lac":
        assert covered <= high
    sizes = (scores[:, n] <= thresholds[:, None]).sum(1)
    assert kind == "lac" or sizes.min() >= 1
    assert sizes.double().mean() < 4  # of 6 classes: not by taking them all


@pytest.mark.parametrize("kind", SET_SCORES)
def test_class_by_class_the_coverage_is_that_of_each(kind):
    n, coverage, num_classes = 240, 0.8, 4
    logits, labels = images((DRAWS, n), num_classes, noise=2.5)
    own = nonconformity(logits.flatten(0, 1), kind).view(DRAWS, n, -1).gather(2, labels[..., None])[..., 0]
    for c in range(num_classes):
        covered, expected = [], []
        for scores, of_class in zip(own, labels == c):
            *calibration, new = scores[of_class]  # the last is a new image of the class
            threshold = conformal_threshold(torch.stack(calibration), coverage)
            covered.append(new <= threshold)
            expected.append(np.ceil(round(coverage * (len(calibration) + 1), 9)) / (len(calibration) + 1))
        share, deviation = np.mean(expected), np.sqrt(coverage * (1 - coverage) / DRAWS)
        assert np.mean(covered) >= share - 3.3 * deviation
        if kind == "lac":
            assert np.mean(covered) <= share + 3.3 * deviation
