"""Corrupted images: made here alike each time, or read from a folder as they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.robustness.corrupted_data import (
    CorruptedImages,
    ResizedImages,
    input_size,
    make_corrupted,
    read_corrupted,
)
from hf_protosphere.robustness.corruptions import corrupt

NAMES = ["digit_0", "digit_1", "digit_2"]
ASKED = {"corruptions": ["gaussian_noise", "fog"], "severities": [1, 5]}


def processor(**config):
    defaults = {"backbone": "test_resnet", "image_size": 32, "id2label": dict(enumerate(NAMES))}
    return build_image_processor(ProtoSphereConfig(**defaults | config))


@pytest.fixture(scope="module")
def split(digits_folder):
    return load_image_dataset(str(digits_folder), validation_fraction=0).splits["test"]


def pixels(data, i):
    """(S, S, 3) uint8 of an item."""
    return data[i]["pixel_values"].permute(1, 2, 0).numpy()


def test_images_are_resized_and_cropped_as_the_processor_does(split):
    shrinking = processor(crop_pct=0.8)  # to 40 pixels, of which the middle 32 stay
    assert input_size(shrinking) == (32, 32)
    images = ResizedImages(split, shrinking)
    assert len(images) == 45
    for i in (0, 20, 44):
        item, row = images[i], split[i]
        resized = row["image"].convert("RGB").resize((40, 40), shrinking.resample)
        difference = pixels(images, i).astype(int) - np.array(resized)[4:36, 4:36]
        assert np.abs(difference).max() <= 1  # torchvision and Pillow round differently
        assert (item["labels"], item["resized"]) == (row["label"], True)


def test_pixels_follow_from_seed_and_index(split):
    images = ResizedImages(split, processor())
    one, two = (CorruptedImages(images, "impulse_noise", 3, seed) for seed in (0, 1))
    backwards = [one[i]["pixel_values"] for i in (4, 3)]
    assert torch.equal(backwards[1], one[3]["pixel_values"])
    assert not torch.equal(backwards[1], two[3]["pixel_values"])


def test_a_data_set_for_each_corruption_and_severity_in_order(split):
    images = ResizedImages(split, processor())
    made = make_corrupted(images, **ASKED, seed=0)
    asked = [(name, severity) for name in ASKED["corruptions"] for severity in (1, 5)]
    assert [(data.corruption, data.severity) for data in made] == asked
    seed = int(np.random.SeedSequence([0, 7]).generate_state(1)[0])
    for data, (name, severity) in zip(made, asked):
        expected = corrupt(pixels(images, 7), name, severity, seed=seed)
        assert np.array_equal(pixels(data, 7), expected)
        assert data[7]["labels"] == split[7]["label"]
    with pytest.raises(ArgumentError, match="at least 32 pixels a side, but the model's are 28"):
        make_corrupted(ResizedImages(split, processor(image_size=28)), **ASKED, seed=0)


def write_folders(folder, split, size, severities=(1, 5)):
    for name in ASKED["corruptions"]:
        for severity in severities:
            for i, row in enumerate(split):
                path = folder / name / str(severity) / NAMES[row["label"]] / f"{i:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = np.array(row["image"].convert("RGB").resize((size, size)))
                Image.fromarray(corrupt(image, name, severity, seed=i)).save(path)
    return folder


def write_arrays(folder, split):
    """As of CIFAR-10-C: the images of all severities one after the other."""
    images = [np.array(row["image"].convert("RGB")) for row in split]
    for name in ASKED["corruptions"]:
        corrupted = [corrupt(image, name, severity, seed=i) for severity in range(1, 6)
                     for i, image in enumerate(images)]  # fmt: skip
        np.save(folder / f"{name}.npy", np.stack(corrupted))
    np.save(folder / "labels.npy", np.tile(np.array(split["label"], dtype=np.uint8), 5))
    return folder


def test_folders_of_the_input_size_are_not_resized_again(split, tmp_path):
    shrinking = processor(crop_pct=0.875)  # would resize to 37 pixels, and crop
    few = split.select(range(0, 45, 5))
    folder = write_folders(tmp_path, few, 32)
    (part,) = read_corrupted(folder, NAMES, shrinking, ["fog"], [5])
    files = sorted((folder / "fog" / "5").rglob("*.png"))
    assert len(part) == len(files) == 9
    assert np.array_equal(pixels(part, 4), np.array(Image.open(files[4])))
    assert [item["labels"] for item in part] == few["label"]
    assert not part[4]["resized"]

    larger = write_folders(tmp_path / "larger", few, 40)
    (part,) = read_corrupted(larger, NAMES, shrinking, ["fog"], [5])
    assert part[4]["resized"]
    assert part[4]["pixel_values"].shape == (3, 32, 32)


def test_as_many_images_of_each_corruption_as_asked_for(split, tmp_path):
    folder = write_folders(tmp_path, split.select(range(0, 45, 5)), 32)
    parts = read_corrupted(folder, NAMES, processor(), **ASKED, max_images=6)
    assert [len(part) for part in parts] == [6] * 4
    labels = [[item["labels"] for item in part] for part in parts]
    assert labels == [[0, 0, 1, 1, 2, 2]] * 4


def test_classes_of_a_folder_are_matched_by_name(split, tmp_path):
    folder = write_folders(tmp_path, split.select(range(0, 45, 5)), 32)
    part = folder / "fog" / "1"
    (part / NAMES[0]).rename(tmp_path / "elsewhere")
    (part / NAMES[0]).symlink_to(tmp_path / "elsewhere")
    (part / NAMES[1] / "._0.png").touch()
    (part / ".cache").mkdir()
    (part,) = read_corrupted(folder, NAMES[::-1], processor(), ["fog"], [1])
    assert [item["labels"] for item in part] == [2, 2, 2, 1, 1, 1, 0, 0, 0]


def test_arrays_as_of_cifar(split, tmp_path):
    few = split.select(range(0, 45, 3))
    write_arrays(tmp_path, few)
    (part,) = read_corrupted(tmp_path, NAMES, processor(), ["fog"], [3])
    expected = corrupt(np.array(few[7]["image"].convert("RGB")), "fog", 3, seed=7)
    assert np.array_equal(pixels(part, 7), expected)
    assert [item["labels"] for item in part] == few["label"]
    np.save(tmp_path / "labels.npy", np.array(few["label"], dtype=np.uint8))
    with pytest.raises(DataError, match=r"fog.npy: 75 images, 15 labels"):
        read_corrupted(tmp_path, NAMES, processor(), ["fog"], [3])
    for labels, message in (
        (np.array([{}, print], dtype=object), "labels.npy cannot be read: .*objects"),
        (np.ones((3, 2)), "labels.npy is no array of 1 dimensions"),
        (np.ones(3), "must be uint8, labels whole: uint8, float64"),
    ):
        np.save(tmp_path / "labels.npy", labels)
        with pytest.raises(DataError, match=message):
            read_corrupted(tmp_path, NAMES, processor(), ["fog"], [3])
    (tmp_path / "labels.npy").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"labels.npy cannot be read"):
        read_corrupted(tmp_path, NAMES, processor(), ["fog"], [3])


def test_what_a_folder_lacks_is_named(split, tmp_path):
    folder = write_folders(tmp_path, split.select(range(3)), 32, severities=[1])
    with pytest.raises(DataError, match=r"has no fog/2, snow/1, snow/2: add"):
        read_corrupted(folder, NAMES, processor(), ["fog", "snow"], [1, 2])
    with pytest.raises(DataError, match=r"corrupted \(fog/1\).*not among.*digit_0"):
        read_corrupted(folder, ["a", "b", "c"], processor(), ["fog"], [1])
    (tmp_path / "empty" / "fog" / "1").mkdir(parents=True)
    with pytest.raises(DataError, match=r"--corrupted_dataset: .*fog/1"):
        read_corrupted(tmp_path / "empty", NAMES, processor(), ["fog"], [1])
