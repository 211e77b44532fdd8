"""A snapshot is exact, of all images or of the first of each class, and small."""

import pytest
import torch
import torch.nn.functional as F

from hf_protosphere.metrics import snapshot as snapshots
from hf_protosphere.metrics.snapshot import Snapshot, SnapshotCollector
from hf_protosphere.prototypes import class_means


def draw(num_images, num_classes, dim):
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(num_images, dim, generator=generator), dim=1)
    prototypes = F.normalize(torch.randn(num_classes, dim, generator=generator), dim=1)
    return embeddings, torch.arange(num_images) % num_classes, prototypes


def collect(embeddings, labels, prototypes, batch=7):
    collector = SnapshotCollector(prototypes)
    for start in range(0, len(labels), batch):
        collector.update(embeddings[start : start + batch], labels[start : start + batch])
    return collector.snapshot([f"class {c}" for c in range(len(prototypes))], "test")


def test_cosines_and_class_means_are_those_of_all_images():
    embeddings, labels, prototypes = draw(50, 4, 6)
    snapshot = collect(embeddings, labels, prototypes)
    assert torch.allclose(snapshot.class_means, class_means(embeddings, labels), atol=1e-6)
    for i in range(50):
        cosines = (prototypes @ embeddings[i]).tolist()
        own = cosines.pop(labels[i])
        assert snapshot.own_cosines[i].item() == pytest.approx(own, abs=1e-6)
        assert snapshot.nearest_other_cosines[i].item() == pytest.approx(max(cosines), abs=1e-6)
    assert torch.equal(snapshot.embeddings, embeddings)
    assert torch.equal(snapshot.labels, labels)


def test_the_first_images_of_each_class_are_kept(monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_PER_CLASS", 3)
    embeddings, labels, prototypes = draw(50, 4, 6)
    snapshot = collect(embeddings, labels, prototypes)
    assert torch.equal(snapshot.embeddings, embeddings[:12])
    assert len(snapshot.own_cosines) == 50
    monkeypatch.setattr(snapshots, "MAX_NUMBERS", 4 * 6 * 2)
    assert len(collect(embeddings, labels, prototypes).embeddings) == 8


def test_a_class_without_images_has_no_mean():
    embeddings, labels, prototypes = draw(50, 4, 6)
    snapshot = collect(embeddings[labels != 2], labels[labels != 2], prototypes)
    assert snapshot.class_means[2].abs().sum() == 0


def test_the_centre_is_the_mean_of_the_class_means_of_what_it_holds():
    embeddings, labels, prototypes = draw(50, 4, 6)
    snapshot = collect(embeddings[labels != 2], labels[labels != 2], prototypes)
    means = [embeddings[labels == c].mean(0) for c in (0, 1, 3)]  # classes weigh alike
    assert torch.allclose(snapshot.center, sum(means) / 3, atol=1e-6)


def test_prototypes_alone_stand_for_the_class_means():
    _, _, prototypes = draw(4, 4, 6)
    snapshot = Snapshot.of_prototypes(prototypes, list("abcd"))
    assert torch.equal(snapshot.class_means, prototypes)
    assert snapshot.embeddings.shape == (0, 6)
    assert len(snapshot.labels) == len(snapshot.own_cosines) == 0
