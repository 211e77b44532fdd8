"""The covariance within classes is scikit-learn's of the residuals, and never singular."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from hf_protosphere.inference.covariance import covariance_within_classes


@pytest.mark.parametrize("count", [60, 10])  # with fewer images than features, too
def test_it_is_ledoit_and_wolfs_of_the_residuals(count):
    generator = torch.Generator().manual_seed(0)
    labels = 2 * (torch.arange(count) % 4)  # the classes between have no images
    features = torch.randn(count, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    means, variances, axes = covariance_within_classes(features, labels)
    expected = np.stack([features[labels == c].double().mean(0) for c in (0, 2, 4, 6)])
    assert means.numpy() == pytest.approx(expected)
    residuals = features.double().numpy() - expected[labels // 2]
    covariance = LedoitWolf(assume_centered=True).fit(residuals).covariance_
    assert ((axes * variances) @ axes.T).numpy() == pytest.approx(covariance)


def test_one_image_a_class_has_the_same_small_variance_everywhere():
    _, variances, axes = covariance_within_classes(torch.randn(5, 12), torch.arange(5))
    assert (variances == variances[0]).all()
    assert variances[0] > 0
    torch.testing.assert_close(axes @ axes.T, torch.eye(12).double())
