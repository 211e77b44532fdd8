"""Open-set recognition: angles, thresholds, and the answer of a model."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from PIL import Image

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError
from hf_protosphere.metrics.snapshot import Snapshot, SnapshotCollector
from hf_protosphere.open_set.threshold import (
    OpenSetClassifier,
    angles_to_prototypes,
    default_threshold,
)
from hf_protosphere.runs.snapshots import SNAPSHOT, save_snapshot

NAMES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}


def save_checkpoint(folder, with_snapshot=True, **config):
    torch.manual_seed(0)
    config = {"backbone": "test_resnet", "image_size": 32, "id2label": NAMES} | config
    model = ProtoSphereForImageClassification(ProtoSphereConfig(**config)).eval()
    model.save_pretrained(folder)
    build_image_processor(model.config).save_pretrained(folder)
    if with_snapshot:
        generator = torch.Generator().manual_seed(1)
        labels = torch.arange(40) % 4
        near = model.prototypes[labels] + 0.05 * torch.randn(40, 96, generator=generator)
        collector = SnapshotCollector(model.prototypes)
        collector.update(F.normalize(near, dim=1), labels)
        save_snapshot(collector.snapshot(list(NAMES.values()), "test"), folder / SNAPSHOT)
    return model


def noise(seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_angles_are_exact_where_the_cosine_is_flat():
    degrees = torch.tensor([0.0, 0.01, 30.0, 90.0, 179.99, 180.0], dtype=torch.float64)
    radians = degrees.deg2rad()
    circle = torch.stack([radians.cos(), radians.sin()], 1)
    for scale in (1.0, 7.0):
        angles = angles_to_prototypes(scale * circle[0], scale * circle)
        assert torch.allclose(angles, degrees, atol=1e-5)


def test_the_default_threshold_leaves_95_percent_of_the_images_known():
    angles = torch.linspace(1, 60, 200, dtype=torch.float64).deg2rad()
    images = torch.stack([angles.cos(), angles.sin()], 1).float()
    collector = SnapshotCollector(torch.eye(2))
    collector.update(images, torch.zeros(200, dtype=torch.int64))  # those above 45° are nearer to 1
    threshold = default_threshold(collector.snapshot(["a", "b"], "validation"))
    nearest = torch.minimum(angles.rad2deg(), 90 - angles.rad2deg())
    assert (nearest <= threshold.degrees).double().mean() == pytest.approx(0.95)
    assert threshold.origin == "95% of the 200 validation images are nearer to a prototype"


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_without_images_the_threshold_is_half_the_angle_of_the_simplex(num_classes):
    prototypes = F.normalize(torch.randn(num_classes, 12), dim=1)
    threshold = default_threshold(Snapshot.of_prototypes(prototypes, ["x"] * num_classes))
    assert math.cos(math.radians(2 * threshold.degrees)) == pytest.approx(-1 / (num_classes - 1))
    assert "at neural collapse" in threshold.origin


def test_the_answer_is_that_of_the_model_and_known_within_the_threshold(tmp_path):
    model = save_checkpoint(tmp_path)
    image = noise()
    classify = OpenSetClassifier.load(str(tmp_path), unknown_angle=180)
    answer = classify(image)
    with torch.no_grad():
        output = model(pixels_of([image], classify.processor))
    scores = output.logits[0].softmax(-1)
    cosines = (output.embeddings @ model.prototypes.T)[0]
    for c, name in NAMES.items():
        assert answer.scores[name] == pytest.approx(scores[c].item(), abs=1e-6)
        assert math.cos(math.radians(answer.angles[name])) == pytest.approx(cosines[c].item())
    assert list(answer.angles.values()) == sorted(answer.angles.values())
    assert list(answer.scores) == list(answer.angles)
    assert answer.label == NAMES[int(cosines.argmax())]
    assert torch.equal(answer.embedding, output.embeddings[0])

    nearest = answer.angles[answer.label]
    assert OpenSetClassifier.load(str(tmp_path), nearest + 0.01)(image).label == answer.label
    assert OpenSetClassifier.load(str(tmp_path), nearest - 0.01)(image).label is None


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_any_mode(tmp_path, mode):
    save_checkpoint(tmp_path, num_channels=1)
    assert len(OpenSetClassifier.load(str(tmp_path))(noise(mode=mode)).angles) == 4


def test_the_snapshot_beside_the_model_sets_the_threshold(tmp_path):
    save_checkpoint(tmp_path / "with")
    save_checkpoint(tmp_path / "without", with_snapshot=False)
    classify = OpenSetClassifier.load(str(tmp_path / "with"))
    assert "95% of the 40 test images" in classify.threshold.origin
    assert len(classify.snapshot.embeddings) == 40
    classify = OpenSetClassifier.load(str(tmp_path / "without"))
    assert "no snapshot.safetensors" in classify.threshold.origin
    assert classify.snapshot.class_names == list(NAMES.values())


def test_a_model_of_the_hub_brings_its_snapshot(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--user--pets"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    save_checkpoint(repo / "snapshots" / ("0" * 40))
    assert "40 test images" in OpenSetClassifier.load("user/pets").threshold.origin
    (repo / "snapshots" / ("0" * 40) / SNAPSHOT).unlink()
    assert "no snapshot.safetensors" in OpenSetClassifier.load("user/pets").threshold.origin


def test_what_has_no_prototypes_or_those_of_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "linear", with_snapshot=False, objective="cross_entropy")
    with pytest.raises(ArgumentError, match=r"--model .*linear was trained with cross_entropy"):
        OpenSetClassifier.load(str(tmp_path / "linear"))
    model = save_checkpoint(tmp_path / "other")
    model.set_prototypes(-model.prototypes)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ArgumentError, match=r"snapshot.safetensors is of other prototypes"):
        OpenSetClassifier.load(str(tmp_path / "other"))
    with pytest.raises(ArgumentError, match=r"there is no such folder"):
        OpenSetClassifier.load(str(tmp_path / "nothing"))


def test_a_calibrated_threshold_comes_before_the_snapshot(tmp_path):
    model = save_checkpoint(tmp_path, rejection_threshold=0.5, false_rejection_rate=0.05)
    classify = OpenSetClassifier.load(str(tmp_path))
    assert classify.threshold.degrees == pytest.approx(60)
    assert "calibrated to reject at most 0.05 of the known images" in classify.threshold.origin
    assert OpenSetClassifier.load(str(tmp_path), 20).threshold.origin == "as asked for"
    for seed in range(5):
        with torch.no_grad():
            output = model(pixels_of([noise(seed)], classify.processor))
        assert (classify(noise(seed)).label is None) == output.is_unknown.item()


def test_another_score_has_no_angle(tmp_path):
    model = save_checkpoint(tmp_path, rejection_threshold=2.0, rejection_score="energy")
    classify = OpenSetClassifier.load(str(tmp_path))
    assert classify.threshold.degrees is None
    assert classify.threshold.origin == "the configuration's rejection_threshold, of its energy"
    with torch.no_grad():
        energies = model(pixels_of([*map(noise, range(5))], classify.processor)).logits.logsumexp(-1)
    classify.model.config.rejection_threshold = energies.median().item() - 1e-4
    labels = [classify(noise(seed)).label for seed in range(5)]
    assert [label is None for label in labels] == (energies < energies.median()).tolist()
    assert OpenSetClassifier.load(str(tmp_path), 20).threshold.degrees == 20


def test_the_answer_has_the_classes_of_the_set(tmp_path):
    save_checkpoint(tmp_path / "without")
    assert OpenSetClassifier.load(str(tmp_path / "without"))(noise()).prediction_set is None
    save_checkpoint(tmp_path / "with", set_score="aps", set_coverage=0.9, set_thresholds=[0.5])
    answer = OpenSetClassifier.load(str(tmp_path / "with"))(noise())
    expected, mass = [], 0.0
    for name, score in answer.scores.items():  # the most likely first
        if mass <= 0.5:
            expected.append(name)
        mass += score
    assert answer.prediction_set == expected
    assert 1 < len(expected) < 4
