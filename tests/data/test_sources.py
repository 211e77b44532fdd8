"""Splits and columns are found, or named with the flag that gives them."""

import shutil

import pytest
from datasets import Dataset, DatasetDict, Value, load_dataset

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.sources import choose_splits, find_image_column, two_columns
from hf_protosphere.errors import DataError
from tests.data import NAMES, image_folder, write


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


def of_labels(column="label", **more):
    return Dataset.from_dict({column: [0, 1], **more})


def test_splits_are_chosen_by_their_usual_names_or_as_they_are_called():
    splits = {name: of_labels() for name in ("train", "dev", "val", "test", "held_out")}
    usual = {"train": "train", "validation": "val", "test": "test"}
    assert choose_splits(splits, "train", None, None, need_train=True) == usual
    named = choose_splits(splits, "dev", "held_out", "val", need_train=True)
    assert named == {"train": "dev", "validation": "held_out", "test": "val"}
    # What is tested on is never validated on.
    assert choose_splits(splits, "train", None, "val", need_train=True)["validation"] == "dev"
    assert choose_splits({"test": of_labels()}, "train", None, None, need_train=False) == {
        "test": "test"
    }
    with pytest.raises(DataError, match=r"--test_split exam: .* train, dev, val, test, held_out"):
        choose_splits(splits, "train", None, "exam", need_train=True)
    with pytest.raises(DataError, match=r"--split exam: "):  # as commands that measure call it
        choose_splits(splits, "train", None, "exam", need_train=False, flags={"test": "--split"})
    with pytest.raises(DataError, match="split 'train' of the data set holds no images"):
        choose_splits({"train": of_labels().select([])}, "train", None, None, need_train=True)


def test_encoded_images_need_not_be_declared_as_such(tmp_path):
    folder = write(tmp_path / "data", [0, 1], NAMES)
    plain = Dataset.from_parquet(f"{folder}/train.parquet").with_format("arrow")[:]
    split = Dataset(plain.replace_schema_metadata(None))  # {"bytes", "path"}, as others write them
    assert find_image_column(split, "image") == "image"
    images = two_columns(split, "image", "label")
    declared = load_dataset("parquet", data_files=f"{folder}/train.parquet", split="train")
    assert [image.tobytes() for image in images[:]["image"]] == [
        image.tobytes() for image in declared[:]["image"]
    ]
    with pytest.raises(DataError, match=r"--queries label holds no images"):
        find_image_column(split, "label", "--queries")
    with pytest.raises(DataError, match=r"--label_column kind is missing in one of the splits"):
        two_columns(split, "image", "kind")
