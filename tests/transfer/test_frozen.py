"""Classifiers on a frozen network: right by independent means, and the same as a saved model."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.inference.features import embedded
from hf_protosphere.inference.probes import Probe
from hf_protosphere.prototypes import class_means
from hf_protosphere.training.adaptation import count_trained_parameters
from hf_protosphere.transfer.frozen import KNN_TEMPERATURE, as_model, knn, of_class_means

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


@pytest.mark.parametrize("mode", ["prototypes", "linear_probe", "normalized_linear_probe"])
def test_the_model_classifies_as_the_classifier_does(network, mode, tmp_path):
    (_, train), (pixels, test) = images_of(network, 1), images_of(network, 2)
    if mode == "prototypes":
        probe, space = of_class_means(network, train, 4), embedded(network, test)[0]
    else:
        probe, space = Probe(mode.removesuffix("_probe"), 96, 4, temperature=0.3), test.versions[0]
    model = as_model(mode, probe, network, NAMES)
    model.save_pretrained(tmp_path)
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        output = model(pixels)
        torch.testing.assert_close(output.logits, probe(space), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.embeddings, F.normalize(space, dim=1))
    assert model.config.label2id == {name: i for i, name in enumerate(NAMES)}
    assert model.config.softmax_temperature == (0.2 if mode == "prototypes" else 0.3)
    parameters = {"prototypes": 0, "linear_probe": 4 * 96 + 4}
    assert count_trained_parameters(probe) == parameters.get(mode, 4 * 96)


def test_prototypes_are_class_means(network):
    (_, train), (_, test) = images_of(network, 1), images_of(network, 2)
    probe = of_class_means(network, train, 4)
    means = class_means(embedded(network, train)[0], train.labels, 4)
    embeddings, _ = embedded(network, test)
    torch.testing.assert_close(probe(embeddings), embeddings @ means.T / 0.2)
    assert as_model("prototypes", probe, network, NAMES).config.prototypes == "class_means"


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
