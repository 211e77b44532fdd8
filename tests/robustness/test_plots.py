"""Pictures of corruptions show every error, and the image under each."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_protosphere.robustness.corruptions import corrupt
from hf_protosphere.robustness.plots import (
    draw_robustness,
    plot_corrupted_images,
    plot_corruption_errors,
)
from tests.robustness.test_corrupted_data import processor

REPORT = {
    "severities": [1, 4],
    "clean_error": 0.1,
    "errors": {"gaussian_noise": [0.2, 0.4], "fog": [0.3, 0.6]},
}


@pytest.fixture(scope="module")
def photo():
    blobs = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blobs).resize((32, 32), Image.Resampling.BICUBIC))


def dots(axes):
    """Places and heights of each collection of dots."""
    found = [c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 2]
    return [np.asarray(points).tolist() for points in found if np.asarray(points).any()]


def test_a_dot_for_every_error(tmp_path, figures):
    plot_corruption_errors(REPORT, tmp_path / "corruptions.png")
    assert (tmp_path / "corruptions.png").stat().st_size > 10_000
    (axes,) = figures[0].axes
    assert dots(axes) == [[[0, 20], [1, 30]], [[0, 40], [1, 60]]]  # by severity, in per cent
    assert [label.get_text() for label in axes.get_xticklabels()] == ["gaussian noise", "fog"]
    (clean,) = axes.lines
    assert list(clean.get_ydata()) == [10, 10]
    assert "severities 1, 4, darker is more severe" in axes.get_title()


def test_a_baseline_stands_beside_it(tmp_path, figures):
    baseline = {**REPORT, "model": "user/a$x$net", "errors": {"fog": [0, 0.5], "snow": [0.1, 0.2]}}
    plot_corruption_errors(REPORT | {"baseline": baseline}, tmp_path / "corruptions.svg")
    (axes,) = figures[0].axes
    ours, _, theirs, _ = dots(axes)
    assert ours == [[-0.15, 20], [0.85, 30]]
    assert theirs == [[0.15, 0], [1.15, 10]]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert r"baseline user/a\$x\$net" in labels
    assert r"baseline user/a\$x\$net, clean images" in labels


def test_one_image_clean_and_under_each_corruption(tmp_path, figures, photo):
    names = ["gaussian_noise", "fog", "contrast", "pixelate", "snow"]
    plot_corrupted_images(photo, names, 3, tmp_path / "corrupted.png")
    panels = figures[0].axes
    shown = [axes.images[0].get_array() for axes in panels if axes.images]
    assert len(panels) == 10  # two rows of five, of which four stay empty
    assert len(shown) == 6
    assert np.array_equal(shown[0], photo)
    for name, pixels in zip(names, shown[1:]):
        assert np.array_equal(pixels, corrupt(photo, name, 3, seed=0))
    assert [axes.get_title() for axes in panels[:3]] == ["clean", "gaussian noise", "fog"]


def test_images_of_a_folder_are_not_drawn(tmp_path, figures, photo):
    features = Features(image=ImageFeature(), label=ClassLabel(names=["a"]))
    split = Dataset.from_dict({"image": [Image.fromarray(photo)], "label": [0]}, features)
    drawn = draw_robustness(REPORT, split, processor(), tmp_path)
    assert drawn == [tmp_path / "corruptions.png", tmp_path / "corrupted_images.png"]
    assert all(path.is_file() for path in drawn)
    shown = [axes.images[0].get_array() for axes in figures[1].axes if axes.images]
    assert np.array_equal(shown[0], photo)
    assert np.array_equal(shown[2], corrupt(photo, "fog", 4, seed=0))  # the most severe

    ready_made = REPORT | {"num_corrupted_images": 8, "num_resized": 0}
    (tmp_path / "other").mkdir()
    assert draw_robustness(ready_made, split, processor(), tmp_path / "other") == [
        tmp_path / "other" / "corruptions.png"
    ]
