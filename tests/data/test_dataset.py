"""Any data set becomes two columns; whatever is wrong is said with the flag that mends it."""

import dataclasses
import hashlib

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_protosphere.data import dataset as datasets_of_images
from hf_protosphere.data.dataset import ImageDataset, load_image_dataset, load_split, survey
from hf_protosphere.errors import DataError
from tests.data import image, image_folder, write


def test_many_images_are_decoded_by_several_processes_and_remembered(tmp_path, monkeypatch):
    content = [Image().encode_example(image(i))["bytes"] for i in range(20)] * 100
    content[7] = content[1999] = b"none"
    rows = {"image": [{"bytes": one, "path": None} for one in content]}
    Dataset.from_dict(rows, features=Features(image=Image())).to_parquet(tmp_path / "train.parquet")
    alone, shared = (Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=tmp_path / n) for n in "ab")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    expected = survey(alone, "train")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert survey(shared, "train") == expected
    assert [i for i, error in enumerate(expected["error"]) if error] == [7, 1999]
    monkeypatch.setattr("hf_protosphere.data.dataset.decode", lambda _: pytest.fail("decoded again"))
    for cores in (2, 1):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert survey(shared, "train") == expected


def test_image_folder(digits_folder):
    data = load_image_dataset(str(digits_folder), validation_fraction=0.2)
    assert data.label_names == ["digit_0", "digit_1", "digit_2"]
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 96,
        "validation": 24,
        "test": 45,
    }
    assert data.class_counts("validation") == [8, 8, 8]
    for split in data.splits.values():
        assert split.column_names == ["image", "label"]
        assert split.features["label"].names == data.label_names
    assert data.num_channels == 1
    assert data.suggested_image_size() == 32


def test_validation_split_is_stratified_deterministic_and_leaves_every_class(tmp_path):
    folder = write(tmp_path, [0] * 20 + [1] * 2 + [2], ClassLabel(names=["a", "b", "c"]))
    first = load_image_dataset(folder, validation_fraction=0.1, seed=3)
    again = load_image_dataset(folder, validation_fraction=0.1, seed=3)
    other = load_image_dataset(folder, validation_fraction=0.1, seed=4)
    assert first.class_counts("validation") == [2, 1, 0]
    assert first.class_counts("train") == [18, 1, 1]

    def pixels(data):
        return [np.asarray(x).tobytes() for x in data.splits["validation"][:]["image"]]

    assert pixels(first) == pixels(again)
    assert pixels(first) != pixels(other)


def test_limits_keep_the_classes_balanced(digits_folder):
    data = load_image_dataset(str(digits_folder), max_train_samples=10, max_eval_samples=6, validation_fraction=0.1)
    assert sorted(data.class_counts("train")) == [3, 3, 4]
    assert data.class_counts("test") == [2, 2, 2]
    with pytest.raises(DataError, match="max_train_samples"):
        load_image_dataset(str(digits_folder), max_train_samples=2)


@pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
def test_an_image_that_cannot_be_decoded(tmp_path, content, caplog):
    folder = image_folder(tmp_path / "data", train={"ant": 4, "bee": 4})
    bad = folder / "train" / "bee" / "2.png"
    if content == "truncated":
        image(size=64).save(bad)
        content = bad.read_bytes()[:2000]
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"1 of the train images.*bee/2.png.*--on_bad_image skip"):
        load_image_dataset(str(folder))
    data = load_image_dataset(str(folder), on_bad_image="skip", validation_fraction=0)
    assert data.class_counts("train") == [4, 3]
    assert [name[-9:] for name in data.bad_images["train"]] == ["bee/2.png"]
    assert "Left out 1 train images that cannot be decoded" in caplog.text


def test_images_of_16_bits_are_grayscale_and_broken_ones_are_not_asked(tmp_path):
    folder = image_folder(tmp_path, train={"ant": 2, "bee": 2})
    for path in (folder / "train").rglob("*.png"):
        PILImage.fromarray(np.zeros((40, 50), np.uint16)).save(path)
    (folder / "train" / "ant" / "0.png").write_bytes(b"no image")
    options = {"validation_fraction": 0, "check_images": False}
    data = load_image_dataset(str(folder), **options)
    assert (data.num_channels, data.suggested_image_size()) == (1, 64)
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    data = load_image_dataset(str(folder), **options)
    with pytest.raises(DataError, match="none of the first 100 training images can be decoded"):
        data.suggested_image_size()


def test_images_of_any_mode_are_good(tmp_path):
    folder = image_folder(tmp_path, train={"ant": 2, "bee": 2})
    for i, mode in enumerate(["L", "P", "CMYK", "RGBA", "LA", "1", "I;16"]):
        converted = image().convert("L").convert("I").convert(mode) if mode == "I;16" else None
        suffix = "tif" if mode in ("CMYK", "I;16") else "png"
        path = folder / "train" / "ant" / f"mode{i}.{suffix}"
        (converted or image().convert(mode)).save(path)
    data = load_image_dataset(str(folder), validation_fraction=0)
    assert data.class_counts("train") == [9, 2]
    assert not data.bad_images


@pytest.fixture
def decoded(monkeypatch):
    """The paths of images as they are decoded."""
    paths, decode = [], datasets_of_images.decode

    def counted(value):
        paths.append(value["path"])
        return decode(value)

    monkeypatch.setattr(datasets_of_images, "decode", counted)
    return paths


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (["test"], {"test": 5}),
        (["train"], {"train": 7}),
        (["validation", "test"], {"validation": 3, "test": 5}),
        (["train", "validation", "test"], {"train": 7, "validation": 3, "test": 5}),
    ],
)
def test_only_the_splits_that_will_be_read_are_decoded(tmp_path, decoded, roles, expected):
    counts = {"train": (4, 3), "validation": (1, 2), "test": (3, 2)}
    splits = {role: dict(zip(("ant", "bee"), count)) for role, count in counts.items()}
    folder = image_folder(tmp_path, **splits)
    for role in {*counts} - {*roles}:
        (folder / role / "bee" / "1.png").write_bytes(b"no image at all")
    data = load_image_dataset(str(folder), roles=roles)
    assert {role: len(split) for role, split in data.splits.items()} == expected
    assert dict(data.sources) == {role: role for role in roles}
    read = [path.split("/")[-3] for path in decoded]
    assert {role: read.count(role) for role in {*read}} == expected
    if {*roles} != {*counts}:
        with pytest.raises(DataError, match=r"cannot be decoded: .*bee/1.png"):
            load_image_dataset(str(folder))


def test_what_is_held_out_of_the_training_split_needs_it(tmp_path, decoded):
    folder = image_folder(tmp_path, train={"ant": 10, "bee": 6}, test={"ant": 1, "bee": 1})
    (folder / "test" / "bee" / "0.png").write_bytes(b"no image at all")
    data = load_image_dataset(str(folder), seed=3, roles=["validation"], validation_fraction=0.5)
    assert [path.split("/")[-3] for path in decoded] == ["train"] * 16
    assert data.class_counts("validation") == [5, 3]
    assert dict(data.sources) == {"train": "train", "validation": "train"}
    whole = load_image_dataset(
        str(folder), seed=3, validation_fraction=0.5, on_bad_image="skip"
    )  # with the test split: the same images are held out
    for role, split in data.splits.items():
        assert split._fingerprint == whole.splits[role]._fingerprint
    nothing = load_image_dataset(str(folder), roles=["validation"], validation_fraction=0, label_names=["ant", "bee"])
    assert (dict(nothing.splits), nothing.label_names) == ({}, ["ant", "bee"])


def test_nothing_in_a_data_set_changes(tmp_path):
    split = Dataset.from_dict({"image": [], "label": []})
    splits = {"train": split}
    data = ImageDataset(splits, ["a", "b"], {"train": ["x.png"]}, {"train": "train"})
    splits["test"] = split
    assert list(data.splits) == ["train"]
    for mapping in (data.splits, data.bad_images, data.sources):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["train"] = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.splits = splits
    other = split.select([])
    changed = data.with_train(other)
    assert changed.splits["train"] is other
    assert data.splits["train"] is split
    assert (changed.sources, changed.bad_images) == (data.sources, data.bad_images)


def test_one_split_with_classes_of_its_own(tmp_path):
    folder = str(image_folder(tmp_path, train={"ant": 2, "bee": 1}, test={"ant": 1, "bee": 2}))
    split = load_split(folder, "test")
    assert split.features["label"].names == ["ant", "bee"]
    assert split[:]["label"] == [0, 1, 1]
    with pytest.raises(DataError, match=r"--split dev: the data set has no such split, but train, test"):
        load_split(folder, "dev")


def test_a_survey_tells_what_images_are(tmp_path):
    folder = image_folder(tmp_path, train={"ant": 3})
    names = [folder / "train" / "ant" / f"{i}.png" for i in range(3)]
    image(0).convert("RGBA").save(names[1])
    names[2].write_bytes(b"no image")
    data = load_image_dataset(str(folder), check_images=False, validation_fraction=0)
    found = survey(data.splits["train"], "train")
    assert found["file"] == [*map(str, names)]
    assert (found["width"], found["height"], found["mode"]) == ([8, 8, 0], [8, 8, 0], ["RGB", "RGBA", ""])
    assert found["error"] == ["", "", "Pillow does not know what it is"]
    digests = [hashlib.sha256(name.read_bytes()).hexdigest()[:16] for name in names]
    assert found["content"] == [f"sha256:{digest}" for digest in digests]


def test_a_survey_is_made_anew_where_it_is_damaged_and_told_where_it_cannot_be_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = load_image_dataset(str(image_folder(tmp_path / "data", train={"ant": 3})), validation_fraction=0)
    expected = survey(data.splits["train"], "train")
    (kept,) = (tmp_path / "cache" / "protosphere").glob("survey-*.parquet")
    kept.write_bytes(kept.read_bytes()[:100])
    assert survey(data.splits["train"], "train") == expected
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file in its place")
    assert survey(data.splits["train"], "train") == expected
    assert "remembering what the images are failed; the results are kept" in caplog.text


def test_corrections_come_before_anything_is_held_out_or_left_out(tmp_path):
    folder = image_folder(tmp_path / "data", train={"ant": 10, "bee": 10}, val={"ant": 2, "bee": 2})
    (folder / "train" / "ant" / "4.png").write_bytes(b"no image")
    data = load_image_dataset(str(folder), check_images=False, validation_fraction=0)
    content = survey(data.splits["train"], "train")["content"] + survey(data.splits["validation"], "val")["content"]
    places = [("train", i) for i in range(20)] + [("val", i) for i in range(4)]
    header, rows = "image,label,content\n", [f"{s}[{r}],bee,{c}\n" for (s, r), c in zip(places, content)]
    (tmp_path / "labels.csv").write_text(header + rows[9] + rows[20] + rows[15])
    (tmp_path / "exclude.csv").write_text(header + rows[0] + rows[19])
    given = {"labels": str(tmp_path / "labels.csv"), "exclude": str(tmp_path / "exclude.csv")}
    data = load_image_dataset(str(folder), **given, on_bad_image="skip")
    assert {role: data.class_counts(role) for role in data.splits} == {"train": [7, 10], "validation": [1, 3]}
    joined = load_image_dataset(
        str(folder), train_split="train+val", **given, on_bad_image="skip", validation_fraction=0
    )
    assert joined.class_counts("train") == [8, 13]
    held_out = load_image_dataset(str(folder), **given, validation_split=None, check_images=False, seed=1)
    assert held_out.num_images("train") == 18
