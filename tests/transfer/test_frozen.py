"""Classifiers on a frozen network: right by independent means, and the same as a saved model."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.inference.features import embedded
from hf_protosphere.prototypes import class_means
from hf_protosphere.transfer.frozen import KNN_TEMPERATURE, as_model, fit

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
        backbone="test_resnet", image_size=32, num_labels=2, projection="mlp", projection_dim=16
    )
    return ProtoSphereForImageClassification(config).eval()


@pytest.mark.parametrize("mode", ["prototypes", "linear_probe", "normalized_linear_probe"])
def test_the_model_classifies_as_the_classifier_does(network, mode, tmp_path):
    (_, train), (pixels, test) = images_of(network, 1), images_of(network, 2)
    classifier = fit(mode, train, test, network, 4, temperature=0.2, epochs=5)
    model = as_model(mode, classifier, network, NAMES, 0.2)
    model.save_pretrained(tmp_path)
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        output = model(pixels)
    torch.testing.assert_close(output.logits, classifier.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.embeddings, classifier.embeddings)
    assert model.config.label2id == {name: i for i, name in enumerate(NAMES)}
    features = network.protosphere.backbone.num_features
    expected = {"prototypes": 0, "linear_probe": 4 * features + 4}
    assert classifier.parameters == expected.get(mode, 4 * features)


def test_prototypes_are_class_means(network):
    (_, train), (_, test) = images_of(network, 1), images_of(network, 2)
    classifier = fit("prototypes", train, test, network, 4, temperature=0.2)
    means = class_means(embedded(network, train)[0], train.labels, 4)
    torch.testing.assert_close(classifier.logits, embedded(network, test)[0] @ means.T / 0.2)
    assert (
        as_model("prototypes", classifier, network, NAMES, 0.2).config.prototypes == "class_means"
    )


@pytest.mark.parametrize("neighbors", [1, 5, 1000])
def test_knn_is_scikit_learns(network, neighbors):
    (_, train), (_, test) = images_of(network, 1), images_of(network, 2)
    classifier = fit("knn", train, test, network, 4, neighbors=neighbors)
    reference = KNeighborsClassifier(
        min(neighbors, 40), metric="cosine", algorithm="brute",
        weights=lambda distances: torch.exp(-torch.tensor(distances) / KNN_TEMPERATURE).numpy(),
    ).fit(embedded(network, train)[0].numpy(), train.labels.numpy())  # fmt: skip
    expected = torch.tensor(reference.predict_proba(embedded(network, test)[0].numpy()))
    torch.testing.assert_close(classifier.logits.exp().double(), expected, atol=1e-4, rtol=1e-3)
    assert as_model("knn", classifier, network, NAMES, 0.2) is None


def test_the_normalised_probe_has_unit_prototypes(network):
    (_, train), (_, test) = images_of(network, 1), images_of(network, 2)
    classifier = fit("normalized_linear_probe", train, test, network, 4, epochs=2)
    torch.testing.assert_close(classifier.prototypes.norm(dim=1), torch.ones(4))
    cosines = F.normalize(test.versions[0], dim=1) @ classifier.prototypes.T
    torch.testing.assert_close(classifier.logits, cosines / 0.1, atol=1e-4, rtol=1e-4)
