"""Any data set becomes two columns; whatever is wrong is said with the flag that mends it."""

import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.errors import DataError


def image(seed=0, size=8):
    rng = np.random.default_rng(seed)
    return PILImage.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def write(folder, labels, feature, *, image_column="image", label_column="label", extra=None):
    """A Parquet file of one random image per label."""
    columns = {image_column: [image(i) for i in range(len(labels))], label_column: labels}
    features = {image_column: Image(), label_column: feature}
    for name, (values, kind) in (extra or {}).items():
        columns[name], features[name] = values, kind
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / "train.parquet")
    return str(folder)


def image_folder(folder, **splits):
    """{"train": {"cat": 4, ...}} → folder/train/cat/0.png, ..."""
    for split, classes in splits.items():
        for name, count in classes.items():
            for i in range(count):
                path = folder / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image(i).save(path)
    return folder


NAMES = ClassLabel(names=["cat", "dog"])


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


@pytest.mark.parametrize("save", ["parquet", "file", "dict_on_disk", "on_disk"])
def test_every_local_source(tmp_path, save):
    folder = write(tmp_path / "data", [0, 1] * 6, NAMES)
    split = Dataset.from_parquet(str(tmp_path / "data" / "train.parquet"))
    if save == "file":
        folder = str(tmp_path / "data" / "train.parquet")
    elif save == "dict_on_disk":
        folder = str(tmp_path / "saved")
        DatasetDict({"train": split}).save_to_disk(folder)
    elif save == "on_disk":
        folder = str(tmp_path / "saved")
        split.save_to_disk(folder)
    data = load_image_dataset(folder, validation_fraction=0.25)
    assert len(data.splits["train"]) == 8
    assert len(data.splits["validation"]) == 4
    assert data.id2label == {0: "cat", 1: "dog"}


def test_columns_of_any_name_are_found_by_type_or_given(tmp_path):
    folder = write(
        tmp_path / "a", [0, 1] * 4, NAMES, image_column="img", label_column="fine_label",
        extra={"id": (list(range(8)), Value("int64"))},
    )  # fmt: skip
    data = load_image_dataset(folder)
    assert data.splits["train"].column_names == ["image", "label"]

    two = write(tmp_path / "b", [0, 1] * 4, NAMES, extra={"coarse": ([0] * 8, NAMES)})
    with pytest.raises(DataError, match=r"several columns of labels.*--label_column.*coarse"):
        load_image_dataset(two)
    assert load_image_dataset(two, label_column="label").class_counts("train") == [3, 3]
    with pytest.raises(DataError, match=r"--label_column kind: there is no such column.*coarse"):
        load_image_dataset(two, label_column="kind")


def test_no_image_column(tmp_path):
    table = Dataset.from_dict({"pixels": [[1, 2]] * 4, "label": [0, 1, 0, 1]})
    table.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"no column of images: give --image_column.*pixels"):
        load_image_dataset(str(tmp_path))
    with pytest.raises(DataError, match="--image_column pixels holds no images"):
        load_image_dataset(str(tmp_path), image_column="pixels")


def test_no_label_column(tmp_path):
    folder = write(tmp_path, [0.5, 1.5], Value("float32"), label_column="weight")
    with pytest.raises(DataError, match=r"no column of labels: give --label_column.*weight"):
        load_image_dataset(folder)


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0.0, 1.0], Value("float32"), "whole numbers.*float32"),
        ([0, -3], Value("int64"), "count from 0.*-3"),
        ([-1, -1], Value("int64"), "hidden labels"),
        ([0, None], Value("int64"), "without a label"),
        ([0, 2] * 3, Value("int64"), "1 of 3 classes have no training image: 1"),
        ([0, 0], NAMES, "1 of 2 classes have no training image: dog"),
        (["a", None], Value("string"), "without a label"),
    ],
)
def test_bad_labels(tmp_path, labels, feature, message):
    folder = write(tmp_path, labels, feature)
    with pytest.raises(DataError, match=message):
        load_image_dataset(folder)


@pytest.mark.parametrize(
    ("labels", "feature", "names"),
    [
        (["dog", "cat"] * 4, Value("string"), ["cat", "dog"]),
        ([1, 0] * 4, Value("int32"), ["0", "1"]),
        ([1, 0] * 4, NAMES, ["cat", "dog"]),
    ],
)
def test_labels_as_names_or_numbers(tmp_path, labels, feature, names):
    data = load_image_dataset(write(tmp_path, labels, feature), validation_fraction=0)
    assert data.label_names == names
    assert data.splits["train"][:]["label"] == [1, 0] * 4
    assert "validation" not in data.splits


def test_splits_that_number_their_own_folders_are_mapped_by_name(tmp_path):
    train = {"ant": 3, "bee": 3, "cow": 3}
    folder = image_folder(tmp_path / "a", train=train, test={"bee": 2, "cow": 2})
    data = load_image_dataset(str(folder))
    names = [data.label_names[i] for i in data.splits["test"][:]["label"]]
    assert sorted(names) == ["bee", "bee", "cow", "cow"]
    features = Features({"image": Image(), "label": ClassLabel(names=["cow", "ant", "bee"])})
    other = Dataset.from_dict({"image": [image()] * 3, "label": [0, 1, 2]}, features=features)
    other.save_to_disk(str(tmp_path / "b"))
    evaluated = load_image_dataset(
        str(tmp_path / "b"), label_names=data.label_names, need_train=False
    )
    assert evaluated.splits["train"][:]["label"] == [2, 0, 1]


def test_classes_that_training_does_not_know_are_listed(tmp_path):
    folder = image_folder(tmp_path / "a", train={"ant": 3, "bee": 3}, test={"bee": 2, "dodo": 2})
    with pytest.raises(DataError, match="1 of 3 classes have no training image: dodo"):
        load_image_dataset(str(folder))
    splits = {}
    for split, names in (("train", ["ant", "bee"]), ("test", ["bee", "dodo"])):
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        rows = {"image": [image(i) for i in range(4)], "label": [0, 1, 0, 1]}
        splits[split] = Dataset.from_dict(rows, features=features)
    DatasetDict(splits).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(DataError, match=r"test split.*not among the 2 known ones: dodo.*ant, bee"):
        load_image_dataset(str(tmp_path / "b"))


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
    data = load_image_dataset(
        str(digits_folder), max_train_samples=10, max_eval_samples=6, validation_fraction=0.1
    )
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


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="there is no such file or folder"):
        load_image_dataset(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="user/nothing cannot be loaded"):
        load_image_dataset("user/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        load_image_dataset(str(tmp_path / "empty"))
    (tmp_path / "empty" / "train.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_image_dataset(str(tmp_path / "empty"))
    script = tmp_path / "scripted"
    script.mkdir()
    (script / "scripted.py").write_text("import datasets\n")
    with pytest.raises(DataError, match=r"Parquet|folder of images"):
        load_image_dataset(str(script))


def test_splits_are_joined_to_train_on_both(tmp_path):
    cats_and_dogs = {"cat": 4, "dog": 3}
    folder = image_folder(
        tmp_path / "three", train=cats_and_dogs, validation=cats_and_dogs, test=cats_and_dogs
    )
    data = load_image_dataset(
        str(folder), train_split="train+validation", validation_fraction=0, check_images=False
    )
    assert {role: len(split) for role, split in data.splits.items()} == {"train": 14, "test": 7}
    assert data.class_counts("train") == [8, 6]
    assert data.sources["train"] == "train+validation"
    with pytest.raises(DataError, match=r"train\+val: .* has no val, but train, validation, test"):
        load_image_dataset(str(folder), train_split="train+val")
    with pytest.raises(DataError, match=r"--streaming reads one split"):
        load_image_dataset(str(folder), train_split="train+validation", streaming=True)
    other = image_folder(tmp_path / "other", train=cats_and_dogs, validation={"cat": 2, "emu": 2})
    joined = load_image_dataset(str(other), train_split="train+validation", validation_fraction=0)
    assert joined.label_names == ["cat", "dog", "emu"]
    assert joined.class_counts("train") == [6, 3, 2]


def test_missing_splits_are_named(digits_folder, tmp_path):
    with pytest.raises(DataError, match=r"--train_split training: .* train, test"):
        load_image_dataset(str(digits_folder), train_split="training")
    with pytest.raises(DataError, match="--validation_split dev"):
        load_image_dataset(str(digits_folder), validation_split="dev")
    only_test = tmp_path / "only_test"
    shutil.copytree(digits_folder / "test", only_test / "test")
    with pytest.raises(DataError, match="--train_split train"):
        load_image_dataset(str(only_test))
    data = load_image_dataset(
        str(only_test), need_train=False, label_names=["digit_0", "digit_1", "digit_2"]
    )
    assert list(data.splits) == ["test"]
