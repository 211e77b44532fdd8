"""One image under one corruption: real, repeatable, and of the same shape."""

import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from hf_protosphere.errors import ArgumentError
from hf_protosphere.robustness.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    GROUPS,
    SEVERITIES,
    corrupt,
    load_library,
    parse_corruptions,
    parse_severities,
)


@pytest.fixture(scope="module")
def photo():
    """Coloured blobs (32, 32, 3): smooth, as photographs are."""
    blobs = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blobs).resize((32, 32), Image.Resampling.BICUBIC))


def test_names_are_the_librarys():
    from imagecorruptions import get_corruption_names

    assert list(BENCHMARK) == get_corruption_names("common")
    assert list(CORRUPTIONS) == get_corruption_names("all")
    for group in ("noise", "blur", "weather", "digital"):
        assert list(GROUPS[group]) == get_corruption_names(group)


def test_every_corruption_changes_the_image_the_same_way_each_time(photo):
    before, state = photo.copy(), np.random.get_state()[1].copy()
    distances = {}
    for name in CORRUPTIONS:
        results = [corrupt(photo, name, severity, seed=5) for severity in SEVERITIES]
        assert all((r.shape, r.dtype) == (photo.shape, photo.dtype) for r in results)
        distances[name] = [np.abs(r.astype(float) - photo).mean() for r in results]
        for severity in (5, 1):  # in another order
            again = corrupt(photo, name, severity, seed=5)
            assert np.array_equal(again, results[severity - 1]), name
    assert np.array_equal(photo, before)
    assert np.array_equal(np.random.get_state()[1], state)
    assert min(min(d) for d in distances.values()) > 0
    # By their parameters these do not grow from each severity to the next.
    uneven = {"glass_blur", "snow", "frost", "fog", "saturate", "spatter"}
    for name in set(CORRUPTIONS) - uneven:
        assert distances[name] == sorted(distances[name]), name
    assert all(d[4] > d[0] for name, d in distances.items() if name != "saturate")


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "glass_blur", "snow"])
def test_seeds_differ(photo, name):
    one, other = (corrupt(photo, name, 3, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_spatter_without_a_drop_is_the_image(photo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # upstream: 0 divided by 0, and a black image
        results = [corrupt(photo, "spatter", 1, seed=seed) for seed in range(150)]
    untouched = [np.array_equal(result, photo) for result in results]
    assert 0 < sum(untouched) < 30
    assert min(result.mean() for result in results) >= photo.mean() - 1


def test_parsing():
    assert parse_corruptions("all") == list(BENCHMARK)
    assert parse_corruptions(["extra", "fog", "weather"]) == [*GROUPS["weather"], *GROUPS["extra"]]
    with pytest.raises(ArgumentError, match=r"--corruptions.*'fogg'. Did you mean 'fog'"):
        parse_corruptions(["fogg"])
    with pytest.raises(ArgumentError, match=r"--corruptions needs at least one"):
        parse_corruptions([])

    assert parse_severities("1-5") == list(SEVERITIES)
    assert parse_severities("5, 1-2") == [1, 2, 5]
    assert parse_severities(3) == parse_severities([3]) == [3]
    for text in ("0-2", "6", "4-2", "", "1-", "1.5"):
        with pytest.raises(ArgumentError, match="--severities must be such as 1-5"):
            parse_severities(text)


def test_too_small_and_not_installed(photo, monkeypatch):
    with pytest.raises(ArgumentError, match="at least 32 pixels a side, but the model's are 28"):
        corrupt(photo[:28, :28], "fog", 1, seed=0)
    load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ArgumentError, match="pip install imagecorruptions-imaug"):
        corrupt(photo, "fog", 1, seed=0)
