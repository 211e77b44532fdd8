"""The cache is exact, made once, whole or not there."""

import errno
import io
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.data import image_cache
from hf_protosphere.data.image_cache import (
    CachedImages,
    FeatureSplit,
    cache_path,
    cached_pixels,
)
from hf_protosphere.data.labels import labels_of
from hf_protosphere.data.transforms import EvaluationImages, build_image_processor, collate
from hf_protosphere.errors import CacheError, DataError
from hf_protosphere.runs.files import whole_file


@pytest.fixture
def split(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    sizes = [(48, 40), (32, 32), (33, 70)] * 4
    images = [PILImage.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": images, "label": [0, 1] * 6}
    return datasets.Dataset.from_dict(columns, features=features)


def processor(**kwargs):
    return build_image_processor(ProtoSphereConfig(image_size=32, num_labels=2, **kwargs))


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_what_the_processor_makes(split, crop_pct, num_workers):
    one = processor(crop_pct=crop_pct)
    pixels = cached_pixels(split, one, num_workers, "test")
    cached = CachedImages(pixels, torch.tensor([0, 1] * 6), (one.image_mean, one.image_std))
    loaders = [
        DataLoader(images, batch_size=5, collate_fn=collate) for images in (cached, EvaluationImages(split, one))
    ]
    for ours, theirs in zip(*loaders, strict=True):
        assert torch.allclose(ours["pixel_values"], theirs["pixel_values"], atol=1e-5)
        assert torch.equal(ours["labels"], theirs["labels"])


def test_it_is_made_once_and_found_by_what_it_holds(split, monkeypatch):
    first = cached_pixels(split, processor(), 0, "train")
    monkeypatch.setattr(image_cache, "DecodedImages", lambda *_, **__: pytest.fail("made again"))
    assert np.array_equal(cached_pixels(split, processor(), 0, "train"), first)
    paths = {
        cache_path(split, processor()),
        cache_path(split, processor(interpolation="bilinear")),
        cache_path(split, processor(crop_pct=0.875)),  # read each other's pixels once
        cache_path(split, build_image_processor(ProtoSphereConfig(image_size=64, num_labels=2))),
        cache_path(split.select(range(5)), processor()),
    }
    assert len(paths) == 5
    monkeypatch.undo()


def test_writing_into_a_batch_leaves_the_file_alone(split):
    pixels = cached_pixels(split, processor(), 0, "train")
    before = pixels[0].copy()
    pixels[0] = 7
    assert np.array_equal(cached_pixels(split, processor(), 0, "train")[0], before)


def test_without_room_there_is_none(split, monkeypatch):
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 12 * 3 * 32**2 - 2))
    assert cached_pixels(split, processor(), 0, "train") is None


def test_a_disk_that_fills_up_leaves_nothing_behind(split, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_cache.Path, "open", lambda *_: Full())
    with pytest.raises(CacheError, match=r"No space left.*HF_DATASETS_CACHE.*--cache_images false"):
        cached_pixels(split, processor(), 0, "train")
    assert list(cache_path(split, processor()).parent.iterdir()) == []


def test_what_a_killed_run_left_half_written_goes_and_that_of_others_stays(split, monkeypatch):
    path = cache_path(split, processor())
    path.parent.mkdir(parents=True, exist_ok=True)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        killed.setattr(image_cache.DecodedImages, "__getitems__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cached_pixels(split, processor(), 0, "train")
    assert len(list(path.parent.iterdir())) == 1
    (path.parent / "notes.unfinished").write_text("mine")
    with whole_file(path) as unfinished:  # as another process does that lives
        unfinished.write_bytes(b"half")
        cached_pixels(split, processor(), 0, "train")
        assert unfinished.exists()
        unfinished.write_bytes(path.read_bytes())
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, "notes.unfinished"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_not_called_a_full_disk(split, tmp_path, num_workers):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = split.select([0]).map(lambda _: {"image": str(tmp_path / "bad.png")})
    with pytest.raises(DataError, match=r"^the train images: .*bad\.png cannot be decoded [^\n]*$"):
        cached_pixels(bad, processor(), num_workers, "train")
    assert list(cache_path(split, processor()).parent.iterdir()) == []


def test_an_interrupted_run_leaves_nothing_behind(split, monkeypatch):
    def interrupted(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_cache.DecodedImages, "__getitems__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_pixels(split, processor(), 0, "train")
    assert list(cache_path(split, processor()).parent.iterdir()) == []


def test_features_stand_for_a_split():
    versions = torch.arange(24.0).view(2, 4, 3)
    features = FeatureSplit(versions, torch.tensor([0, 1, 1, 0]), seconds=8.0)
    batch = features.__getitems__([2, 0, 6])  # 6 is a repetition of 2
    assert batch["pixel_values"].shape == (3, 3, 1, 1)
    assert torch.equal(batch["pixel_values"][:, :, 0, 0], versions[0, [2, 0, 2]])
    assert batch["labels"].tolist() == [1, 0, 1]
    some = features.select(np.array([3, 1]))
    assert torch.equal(some.versions, versions[:, [3, 1]])
    assert labels_of(some).tolist() == [0, 1]
    assert some.seconds == 4.0


def test_versions_are_drawn_for_each_image_and_epoch():
    versions = torch.arange(3.0)[:, None, None].expand(3, 400, 1)
    features = FeatureSplit(versions, torch.zeros(400, dtype=torch.int64))

    def drawn(epoch, views=1, seed=0, indices=range(400)):
        split = features.for_training(views, seed)
        split.set_epoch(epoch)
        return split.__getitems__([*indices])["pixel_values"][..., 0, 0, 0]

    first = drawn(0)
    counts = first.long().bincount()
    assert counts.min() > 100  # of 133
    assert torch.equal(drawn(0, indices=range(200, 400)), first[200:])
    for other in (drawn(1), drawn(0, seed=1), drawn(0, indices=range(400, 800))):
        assert 0.2 < (other == first).float().mean() < 0.5
    assert features.__getitems__([0])["pixel_values"].item() == 0  # evaluation takes the plain one
    pairs = drawn(0, views=2)
    assert pairs.shape == (400, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert drawn(0, views=4).sort().values[:, [0, -1]].unique(dim=0).tolist() == [[0, 2]]


@pytest.mark.parametrize("versions", [torch.zeros(3, 2), torch.full((4, 2), torch.nan)])
def test_features_that_cannot_be_are_refused(versions):
    with pytest.raises(DataError, match=r"must be finite, \(N, F\) or \(A, N, F\)"):
        FeatureSplit(versions, torch.zeros(4, dtype=torch.int64))
