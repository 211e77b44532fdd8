"""The same images in the same order, whichever way they come."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.data import loaders
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.image_cache import CachedImages, FeatureSplit
from hf_protosphere.data.labels import labels_of
from hf_protosphere.data.loaders import TrainingBatches, evaluation_loader
from hf_protosphere.data.samplers import ClassBalancedBatches
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError


@pytest.fixture(scope="module")
def images(digits_folder):
    return load_image_dataset(str(digits_folder))


CONFIG = ProtoSphereConfig(image_size=32, num_labels=3)


def batches(images, **options):
    chosen = BatchOptions(**{"batch_size": 16} | options)
    return TrainingBatches(images.splits["train"], CONFIG, chosen, Accelerator(cpu=True))


def as_list(epoch):
    return [(batch["pixel_values"], batch["labels"]) for batch in epoch]


@pytest.mark.parametrize("last", [{}, {"blur": 0.5}, {"rand_augment": 9}, {"random_erasing": 0.5}])
def test_cached_and_decoded_images_are_the_same(images, last):
    cached = batches(images, **last)
    decoded = batches(images, **last, cache_images=False, num_workers=2)
    assert (cached.is_cached, decoded.is_cached) == (True, False)
    for epoch in (0, 3):
        pairs = zip(as_list(cached.epoch(epoch)), as_list(decoded.epoch(epoch)), strict=True)
        for (ours, our_labels), (theirs, their_labels) in pairs:
            assert torch.equal(our_labels, their_labels)
            assert torch.allclose(ours, theirs, atol=1e-4)
    seen = as_list(cached.epoch(0))[0][0]
    assert not torch.equal(seen, as_list(cached.epoch(3))[0][0])
    assert bool(last) != torch.equal(seen, as_list(batches(images).epoch(0))[0][0])


@pytest.mark.parametrize("cache_images", [True, False])
@pytest.mark.parametrize(("augmentation", "usual"), [("resized_crop", 0.5), ("contrastive", 0.2)])
def test_the_scale_of_crops_reaches_both_paths(images, cache_images, augmentation, usual):
    options = {"augmentation": augmentation, "cache_images": cache_images}
    default, same, other = (
        next(batches(images, crop_scale=scale, **options).epoch(0))["pixel_values"] for scale in (None, usual, 0.1)
    )
    assert torch.equal(default, same)
    assert not torch.equal(default, other)


@pytest.mark.parametrize("cache_images", [True, False])
@pytest.mark.parametrize("views", [1, 2])
def test_an_epoch_repeats_itself_also_from_its_middle(images, cache_images, views):
    options = {"cache_images": cache_images, "augmentation": "contrastive", "views": views}
    one = batches(images, **options)
    whole = as_list(one.epoch(2))
    as_list(one.epoch(5))
    rest = as_list(batches(images, **options).epoch(2, skip=3))
    assert len(rest) == len(whole) - 3
    for (pixels, labels), (again, labels_again) in zip(whole[3:], rest):
        assert torch.equal(pixels, again)
        assert torch.equal(labels, labels_again)


@pytest.mark.parametrize("cache_images", [True, False])
def test_class_balanced_batches(images, cache_images):
    options = {"classes_per_batch": 2, "batch_size": 8, "cache_images": cache_images}
    one = batches(images, **options, augmentation="crop")
    whole = as_list(one.epoch(4))
    assert len(whole) == 108 // 8
    for _, labels in whole:
        assert sorted(labels.bincount(minlength=3).tolist()) == [0, 4, 4]
    rest = as_list(batches(images, **options, augmentation="crop").epoch(4, skip=5))
    for (pixels, labels), (again, labels_again) in zip(whole[5:], rest, strict=True):
        assert torch.equal(pixels, again)
        assert torch.equal(labels, labels_again)
    assert not torch.equal(whole[0][0], as_list(one.epoch(5))[0][0])


def test_processes_get_class_balanced_batches_without_common_images(images):
    labels = labels_of(images.splits["train"])
    sampler = ClassBalancedBatches(labels, 3, 6, seed=0, batches_per_step=2)
    shards = [BatchSamplerShard(sampler, 2, process) for process in range(2)]
    assert len(shards[0]) == len(shards[1]) == 108 // 12
    for first, second in zip(*shards, strict=True):
        assert not {i % 108 for i in first} & {i % 108 for i in second}


def test_evaluation_is_cached_on_request(images):
    processor = build_image_processor(CONFIG)
    seen = []
    for cache in (True, False):
        loader = evaluation_loader(images.splits["test"], processor, 7, 0, Accelerator(cpu=True), cache=cache)
        assert isinstance(loader.dataset, CachedImages) == cache
        seen.append(torch.cat([batch["pixel_values"] for batch in loader]))
    assert torch.allclose(*seen, atol=1e-5)


def test_a_cache_without_room_is_refused_or_left_out(images, monkeypatch):
    monkeypatch.setattr(loaders, "cached_pixels", lambda *_: None)
    assert not batches(images).is_cached
    with pytest.raises(ArgumentError, match="--cache_images: there is no room for the 108"):
        batches(images, cache_images=True)


def test_features_come_in_the_order_of_their_images(images):
    train = images.splits["train"]
    numbers = torch.arange(float(len(train)))[:, None]
    features = FeatureSplit(torch.stack([numbers, -numbers]), torch.tensor(labels_of(train)))
    of_features = batches(images.with_train(features))
    order = [batch["pixel_values"].abs().flatten().long() for batch in of_features.epoch(2)]
    labels = [label for _, label in as_list(batches(images).epoch(2))]
    assert torch.equal(features.labels[torch.cat(order)], torch.cat(labels))
    rest = as_list(of_features.epoch(2, skip=3))
    assert torch.equal(torch.cat([x for x, _ in rest]).abs().flatten().long(), torch.cat(order[3:]))
    loader = evaluation_loader(features, None, 7, 2, Accelerator(cpu=True))
    assert torch.equal(torch.cat([b["pixel_values"] for b in loader])[:, :, 0, 0], numbers)
