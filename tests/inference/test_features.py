"""Features of a frozen network: right, kept under what they depend on, and trained on as images."""

import dataclasses
import logging
import os
import time

import datasets
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.dataset import ImageDataset, load_image_dataset
from hf_protosphere.data.transforms import EvaluationImages, build_image_processor
from hf_protosphere.inference import features as features_module
from hf_protosphere.inference.features import (
    embedded,
    on_features,
    with_backbone,
    with_features,
)

FLIPPED = BatchOptions(batch_size=8, horizontal_flip=True, augmentation="crop")


@pytest.fixture
def network():
    torch.manual_seed(0)
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, num_labels=3, projection="linear", projection_dim=8
    )
    return ProtoSphereForImageClassification(config).train()


@pytest.fixture(scope="module")
def images(digits_folder):
    loaded = load_image_dataset(str(digits_folder), validation_fraction=0)
    return loaded.with_train(loaded.splits["train"].select(range(0, 120, 2)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / "protosphere"


def test_a_model_on_features_is_the_model_behind_its_backbone(network, tmp_path):
    network.eval()
    pixels, labels = torch.randn(6, 2, 3, 32, 32), torch.tensor([0, 1, 2, 2, 1, 0])
    head = on_features(network)
    with torch.no_grad():
        features = network.protosphere(pixels).pooler_output
        assert features.shape == (6, 2, 96)
        whole, behind = network(pixels, labels), head(features[..., None, None], labels)
    assert torch.equal(behind.logits, whole.logits)
    assert behind.loss == whole.loss
    assert [*network.protosphere.backbone.children()]  # it has kept its own
    # What is trained is shared; what is saved is whole.
    with torch.no_grad():
        head.head.weight.mul_(2)
    assert torch.equal(head.head.weight, network.head.weight)
    with_backbone(head, network.protosphere.backbone).save_pretrained(tmp_path)
    again = ProtoSphereForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in network.state_dict().items())


def test_features_are_what_the_network_makes_of_each_version(network, images, cache):
    made = with_features(images, network, Accelerator(), FLIPPED, 4)
    train, test = made.splits["train"], made.splits["test"]
    assert network.training
    assert train.versions.shape == (4, 60, 96)
    assert test.versions.shape == (1, 45, 96)
    assert made.class_counts("train") == images.class_counts("train")
    assert made.num_channels == images.num_channels == 1
    network.eval()
    shown = EvaluationImages(images.splits["train"], build_image_processor(network.config))
    pixels = torch.stack([item["pixel_values"] for item in shown.__getitems__([0, 59])])
    with torch.no_grad():
        for version, seen in enumerate((pixels, pixels.flip(-1))):
            expected = network.protosphere(seen)
            found = train.versions[version, [0, 59]]
            torch.testing.assert_close(found, expected.pooler_output, atol=1e-5, rtol=1e-5)
        embeddings, logits = embedded(network, train)
    plain = network.protosphere.projection(train.versions[0])
    torch.testing.assert_close(embeddings, F.normalize(plain, dim=1))
    assert logits.shape == (60, 3)
    assert not torch.allclose(train.versions[2], train.versions[3])  # augmented, each anew


def test_features_are_found_again_under_all_that_they_depend_on(network, images, cache, monkeypatch, capsys):
    passes, infer = [], features_module.inferred
    monkeypatch.setattr(
        features_module, "inferred", lambda *a: passes.append(a[3].removeprefix("features of the ")) or infer(*a)
    )

    def made(count, **options):
        passes.clear()
        how = dataclasses.replace(FLIPPED, **options)
        found = with_features(images, network, Accelerator(), how, 3).splits["train"].versions
        assert len(passes) == count, passes
        return found

    first = made(4)  # three versions and the test images
    assert "96 features of 60 train images x 3, 45 test images" in capsys.readouterr().err
    took = with_features(images, network, Accelerator(), FLIPPED, 3).splits["train"].seconds
    assert took == with_features(images, network, Accelerator(), FLIPPED, 3).splits["train"].seconds
    assert took > 0
    assert torch.equal(made(0), first)
    files = {path.suffix for path in cache.iterdir()}
    assert files == {".npz"}
    made(0, num_workers=2, batch_size=3)
    made(1, augmentation="resized_crop")
    made(1, augmentation="resized_crop", crop_scale=0.3)
    for last in ({"blur": 0.3}, {"blur": 0.6}, {"rand_augment": 9}, {"random_erasing": 0.2}):
        made(1, **last)
    made(1, seed=1)
    made(2, horizontal_flip=False)  # then the second one, too, is augmented
    made(4, cache_images=False)
    with torch.no_grad():
        next(network.protosphere.backbone.parameters()).mul_(2)
    assert not torch.equal(made(4), first)
    network.protosphere.projection[0].weight.data.mul_(2)
    made(0)


def test_an_image_is_known_in_every_split(network, images, cache, monkeypatch):
    seen, infer = [], features_module.inferred
    monkeypatch.setattr(
        features_module,
        "inferred",
        lambda models, loader, *a: seen.append(len(loader.dataset)) or infer(models, loader, *a),
    )

    def made(**splits):
        seen.clear()
        found = with_features(ImageDataset(splits, []), network, Accelerator(), BatchOptions(batch_size=8))
        return [split.versions[0] for split in found.splits.values()]

    train, test = images.splits["train"], images.splits["test"]
    both = datasets.concatenate_datasets([test, train.select(range(50))])
    (first,) = made(joined=both)
    assert seen == [95]
    found = made(one=train.select(range(59, -1, -1)), test=test.select([7, 3]))
    assert seen == [10]  # those that were not among the first
    expected = dataclasses.replace(BatchOptions(batch_size=64), cache_images=False)
    expected = with_features(ImageDataset({"train": train}, []), network, Accelerator(), expected).splits["train"]
    torch.testing.assert_close(found[0].flip(0), expected.versions[0])
    assert torch.equal(found[1], first[[7, 3]])
    made(validation=both, other=train)
    assert not seen


def test_features_that_were_not_used_for_long_make_room(network, images, cache, monkeypatch):
    def made(*rows):
        part = images.splits["train"].select(rows)
        with_features(ImageDataset({"test": part}, []), network, Accelerator(), FLIPPED)
        return {*cache.glob("*.npz")}

    first = made(*range(20))
    second = made(*range(20, 40)) - first
    for age, files in ((100, first), (50, second)):
        for path in files:
            os.utime(path, (time.time() - age,) * 2)
    size = sum(path.stat().st_size for path in cache.glob("*.npz"))
    monkeypatch.setattr(features_module, "has_room", lambda folder, asked: asked <= size)
    made(3, 4)  # all known: the first are of use now
    after = made(*range(40, 60))
    assert len(after) == 2
    assert first < after
    assert not second & after


def test_what_cannot_be_kept_is_computed(network, images, cache, monkeypatch, caplog):
    monkeypatch.setattr(features_module, "has_room", lambda folder, size: False)
    options = Accelerator(), FLIPPED
    first = with_features(images, network, *options)
    assert not any(cache.iterdir())

    def full(folder, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features_module, "has_room", full)
    with caplog.at_level(logging.WARNING):
        second = with_features(images, network, *options)
    assert "keeping the features for another run failed" in caplog.text
    assert torch.equal(first.splits["train"].versions, second.splits["train"].versions)


def test_a_sample_stands_for_all(network, images, cache):
    made = with_features(images, network, Accelerator(), FLIPPED, 2, sample=32).splits["train"]
    assert made.versions.shape == (2, 60, 96)
    assert torch.equal(made.versions[:, 32:], made.versions[:, :28])
    assert not cache.exists()
