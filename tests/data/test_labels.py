"""Labels of any kind become numbers of the same classes, matched by name."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.labels import find_class_names, labels_of, map_labels, some
from hf_protosphere.errors import DataError
from tests.data import NAMES, image, image_folder, write


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


def labelled(labels, feature):
    features = Features({"image": Value("string"), "label": feature})
    return Dataset.from_dict({"image": ["x"] * len(labels), "label": labels}, features=features)


def test_labels_are_one_array():
    labels = labels_of(labelled([1, 0, 1], NAMES).select([2, 1, 0, 0]))
    assert labels.tolist() == [1, 0, 1, 1]
    assert labels_of(labelled(["b", "a"], Value("string"))).tolist() == ["b", "a"]


def test_classes_are_those_of_the_training_split():
    splits = {
        "test": labelled(["dodo"], Value("string")),
        "train": labelled(["dog", "cat", "dog"], Value("string")),
    }
    assert find_class_names(splits, "label") == ["cat", "dog"]
    del splits["train"]
    assert find_class_names(splits, "label") == ["dodo"]
    assert find_class_names({"train": labelled([3, 1], Value("int8"))}, "y") == list("0123")


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        (["dog", "ant"], Value("string"), [2, 0]),
        ([2, 0], Value("int32"), [2, 0]),
        ([0, 1], ClassLabel(names=["dog", "ant"]), [2, 0]),
        ([0, 1], ClassLabel(names=["dog", "ant", "dodo"]), [2, 0]),  # a class without images
        ([2, 0], ClassLabel(names=["0", "1", "2"]), [2, 0]),  # numbers for names: their order
    ],
)
def test_labels_are_matched_by_name(labels, feature, expected):
    names = ["ant", "cat", "dog"]
    mapped = map_labels(labelled(labels, feature), "test", names)
    assert mapped[:]["label"] == expected
    assert mapped.features["label"] == ClassLabel(names=names)
    assert map_labels(mapped, "test", names) is mapped


def test_labels_that_match_nothing_are_named():
    names = ["ant", "cat"]
    with pytest.raises(DataError, match=r"the test split has the label 2, but there are 2 classes"):
        map_labels(labelled([0, 2], Value("int64")), "test", names)
    with pytest.raises(DataError, match=r"not among the 2 known ones: dodo\. Known are ant, cat"):
        map_labels(labelled(["ant", "dodo"], Value("string")), "test", names)
    with pytest.raises(DataError, match=r"labels of -1 \(hidden labels\?\)"):
        map_labels(labelled([-1, 0], NAMES), "test", names)


def test_long_lists_are_cut():
    assert some([1, 2, 3, 4, 5]) == "1, 2, 3, 4, 5"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
    assert some([]) == ""
