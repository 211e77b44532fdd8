"""Classifiers on a frozen network: right by independent means, and the same as a saved model."""

import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import fractional_matrix_power
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import KNeighborsClassifier

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.inference.features import embedded
from hf_protosphere.inference.probes import Probe
from hf_protosphere.prototypes import class_means
from hf_protosphere.transfer.frozen import KNN_TEMPERATURE, knn, of_class_means, of_probe, whitenings

NAMES = ["a", "b", "c", "d"]


def images_of(model, seed, count=40):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat(count // 4)
    pixels = torch.randn(count, 3, 32, 32, generator=generator)
    pixels[:, 0] += labels[:, None, None] - 1.5  # something to learn
    with torch.no_grad():
        output = model.protosphere(pixels)
    return pixels, FeatureSplit(output.pooler_output, labels)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, num_labels=2, projection="mlp", projection_dim=16,
        softmax_temperature=0.2,
    )  # fmt: skip
    return ProtoSphereForImageClassification(config).eval()


@pytest.mark.parametrize("kind", ["linear", "normalized_linear"])
def test_the_model_of_a_probe_classifies_as_it_does(network, kind, tmp_path):
    pixels, test = images_of(network, 2)
    probe = Probe(kind, 96, 4, temperature=0.3)
    of_probe(probe, network, NAMES).save_pretrained(tmp_path)
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        output = model(pixels)
        torch.testing.assert_close(output.logits, probe(test.versions[0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.embeddings, F.normalize(test.versions[0]))
    assert model.config.label2id == {name: i for i, name in enumerate(NAMES)}
    assert model.config.softmax_temperature == 0.3


def test_whitening_is_a_power_of_ledoit_and_wolfs_covariance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat(8)
    mixing = torch.randn(12, 12, generator=generator)
    features = torch.randn(5, 12, generator=generator)[labels] + torch.randn(40, 12, generator=generator) @ mixing
    maps = whitenings(features, labels)
    means = torch.stack([features[labels == c].mean(0) for c in range(5)])
    covariance = LedoitWolf(assume_centered=True).fit((features - means[labels]).double().numpy()).covariance_
    assert list(maps) == [0.25, 0.5]
    for power, made in maps.items():
        expected = (features - features.mean(0)).double() @ torch.from_numpy(
            fractional_matrix_power(covariance, -power)
        )
        torch.testing.assert_close(made(features).double(), expected, rtol=1e-4, atol=1e-4)
    # One image a class says nothing of the covariance: the map is a multiple of the identity.
    (made, *_) = whitenings(features[:5], labels[:5]).values()
    torch.testing.assert_close(made.weight, made.weight[0, 0] * torch.eye(12))


def of_stretched_features(count, seed, network):
    """Classes that differ in one direction, among noise that is twenty times as large in eight others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat(count // 4)
    features = torch.randn(count, 96, generator=generator)
    features[:, 8:16] *= 20
    features[:, :4] += 4 * F.one_hot(labels, 4)
    return FeatureSplit(features, labels)


def test_class_means_are_those_after_whitening_where_held_out_images_say_so(network, tmp_path):
    train, test = (of_stretched_features(400, seed, network) for seed in (1, 2))
    for validation in (None, of_stretched_features(200, 3, network)):
        model, reached = of_class_means(network, train, NAMES, validation)
        embeddings, logits = embedded(model, test)
        accuracy = (logits.argmax(1) == test.labels).double().mean().item()
        plain = F.normalize(test.versions[0]) @ class_means(train.versions[0], train.labels, 4).T
        assert accuracy > 0.85 > 0.75 > (plain.argmax(1) == test.labels).double().mean()
        assert reached == pytest.approx(accuracy, abs=0.08)
        expected = class_means(embedded(model, train)[0], train.labels, 4)
        torch.testing.assert_close(model.prototypes.detach(), expected)
        assert (model.config.projection, model.config.projection_dim) == ("linear", 96)
    model.save_pretrained(tmp_path)
    loaded = ProtoSphereForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(embedded(loaded, test)[0], embeddings)


def test_class_means_of_embeddings_where_whitening_wins_nothing(network):
    (_, train), (_, test) = images_of(network, 1, 4), images_of(network, 2)
    model, reached = of_class_means(network, train, NAMES)  # one image a class: nothing can be held out
    assert reached is None
    means = class_means(embedded(network, train)[0], train.labels, 4)
    embeddings, logits = embedded(model, test)
    torch.testing.assert_close(embeddings, embedded(network, test)[0])
    torch.testing.assert_close(logits, embeddings @ means.T / 0.2)
    assert (model.config.prototypes, model.config.projection) == ("class_means", "mlp")


@pytest.mark.parametrize("neighbors", [1, 5, 1000])
def test_knn_is_scikit_learns(network, neighbors):
    (_, train), (_, test) = images_of(network, 1), images_of(network, 2)
    known, embeddings = embedded(network, train)[0], embedded(network, test)[0]
    logits = knn(known, train.labels, embeddings, 4, neighbors)
    reference = KNeighborsClassifier(
        min(neighbors, 40), metric="cosine", algorithm="brute",
        weights=lambda distances: torch.exp(-torch.tensor(distances) / KNN_TEMPERATURE).numpy(),
    ).fit(known.numpy(), train.labels.numpy())  # fmt: skip
    expected = torch.tensor(reference.predict_proba(embeddings.numpy()))
    torch.testing.assert_close(logits.exp().double(), expected, atol=1e-4, rtol=1e-3)
