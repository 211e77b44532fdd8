"""Labels of any kind become numbers of the same classes, matched by name."""

import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.labels import find_class_names, labels_of, map_labels, some
from hf_protosphere.data.streaming import decoded, downloaded
from hf_protosphere.errors import DataError
from tests.data import NAMES, image, image_folder, photos, write


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0.0, 1.0], Value("float32"), "whole numbers.*float32"),
        ([0, -3], Value("int64"), "label is -3"),
        ([-1, -1], Value("int64"), "hidden labels"),
        ([0, None], Value("int64"), "without a label"),
        ([0, 2] * 3, Value("int64"), "1 of 3 classes have no training image: 1"),
        ([0, 0], NAMES, "1 of 2 classes have no training image: dog"),
        (["a", None], Value("string"), "1 train images without a label, such as row 1: label"),
        ([0, 1, None], NAMES, "1 train images without a label, such as row 2: label"),
        ([0, 2**40], Value("int64"), "label 1099511627776 is not below 1,000,000"),
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
    evaluated = load_image_dataset(str(tmp_path / "b"), label_names=data.label_names, need_train=False)
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
    assert find_class_names(splits) == ["cat", "dog"]
    del splits["train"]
    assert find_class_names(splits) == ["dodo"]
    assert find_class_names({"train": labelled([3, 1], Value("int8"))}) == list("0123")


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        (["dog", "ant"], Value("string"), [2, 0]),
        ([2, 0], Value("int32"), [2, 0]),
        ([0, 1], ClassLabel(names=["dog", "ant"]), [2, 0]),
        ([0, 1], ClassLabel(names=["dog", "ant", "dodo"]), [2, 0]),  # a class without images
        ([2, 0], ClassLabel(names=["0", "1", "2"]), [2, 0]),  # numbers for names: their order
        ([1, 0], ClassLabel(names=["0", "1"]), [1, 0]),
        ([0, 1], ClassLabel(names=[" ant", "dog\u00a0 "]), [0, 2]),
    ],
)
def test_labels_are_matched_by_name(labels, feature, expected):
    names = ["ant", "cat", "dog"]
    mapped = map_labels(labelled(labels, feature), "test", names)
    assert mapped[:]["label"] == expected
    assert mapped.features["label"] == ClassLabel(names=names)
    assert map_labels(mapped, "test", names) is mapped


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("feature", [ClassLabel(names=[str(i) for i in range(12)]), Value("int64"), Value("string")])
def test_numbers_are_names_where_classes_are_called_by_numbers(feature, stream, capsys):
    names = sorted(str(i) for i in range(12))  # as folders are: 0, 1, 10, 11, 2, ...
    labels = [2, 10, 11, 0]
    split = labelled([*map(str, labels)] if feature == Value("string") else labels, feature)
    if stream:
        split = split.to_iterable_dataset(num_shards=2)
        if feature == Value("string"):
            with pytest.raises(DataError, match="--streaming needs a label column of ClassLabel"):
                map_labels(split, "train", names)
            return
    mapped = [row["label"] for row in map_labels(split, "train", names)]
    assert [names[i] for i in mapped] == ["2", "10", "11", "0"]
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match="not among the 12 known ones: 0"):
        map_labels(split, "train", [str(i) for i in range(1, 13)])


def test_positions_are_said(capsys):
    names = ["ape", "bat", "cod"]
    for role in ("train", "test"):
        map_labels(labelled([2, 0], Value("int64")), role, names)
    said = "Labels are numbers without names, and so positions of classes: 0 is ape, 1 is bat, 2 is"
    assert capsys.readouterr().err.count(said) == 1


NFC, NFD = (unicodedata.normalize(form, "béret") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("stream", [False, True])
def test_names_that_differ_in_nothing_one_can_see_are_one(capsys, stream):
    own = [NFD, NFC, f" {NFC}", "top  hat", "top hat", "Top hat"]
    split = labelled([0, 1, 2, 3, 4, 5], ClassLabel(names=own))
    split = split.to_iterable_dataset() if stream else split
    names = find_class_names({"train": split})
    assert names == [NFC, "top hat", "Top hat"]
    said = capsys.readouterr().err
    assert f"in NFC: {NFD!r}, ' {NFC}', 'top  hat'. So there are 3 classes of 6 names." in said
    assert "in case alone stay apart: top hat, Top hat." in said
    assert [row["label"] for row in map_labels(split, "train", names)] == [0, 0, 0, 1, 1, 2]
    # A model of before has its own names, and may have two of them: each its images.
    for known, labels in ((["top hat ", "Top hat", NFD], [2, 2, 2, 0, 0, 1]), (own, [*range(6)])):
        mapped = map_labels(split, "test", known)
        assert [row["label"] for row in mapped] == labels
        assert mapped.features["label"].names == known


def test_class_folders_in_two_forms_are_one_class(tmp_path):
    folder = photos(tmp_path, f"train/{NFC}/0.png", f"train/{NFD}/1.png", "train/hat/2.png")
    data = load_image_dataset(str(folder), validation_fraction=0)
    assert (data.label_names, data.class_counts("train")) == ([NFC, "hat"], [2, 1])
    photos(folder, "train/beside.png")
    with pytest.raises(DataError, match=r"1 train images without a label, such as .*beside\.png: label"):
        load_image_dataset(str(folder))


@pytest.mark.parametrize("names", [["cat", "dog"], ["dog", "cat"]])
def test_labels_beyond_the_declared_classes(tmp_path, names):
    folder = write(tmp_path, [0, 1, 7], Value("int64"))
    declared = Dataset.from_dict({"image": [image()], "label": [0]}, Features(image=Image(), label=NAMES))
    schema = declared.features.arrow_schema  # 7 of two classes, as no writer of datasets leaves it
    table = pq.read_table(f"{folder}/train.parquet").replace_schema_metadata(schema.metadata)
    pq.write_table(table, f"{folder}/train.parquet")
    options = {"label_names": names, "validation_fraction": 0}
    with pytest.raises(DataError, match=r"the train label 7 is not below 2"):
        load_image_dataset(folder, **options)
    stream = load_image_dataset(folder, **options, streaming=True, num_train_images=3, roles=["train"])
    with pytest.raises(DataError, match="train split cannot be read: Class label 7 greater"):
        list(decoded(stream.splits["train"], skip_bad=False))
    with pytest.raises(DataError, match="the test split cannot be read: Class label 7 greater"):
        downloaded(stream.splits["train"], "test")


def test_names_that_are_not_utf_8(tmp_path):
    data = pa.array([b"caf\xe9", b"tea"], pa.binary())
    text = pa.StringArray.from_buffers(2, *data.buffers()[1:])
    images = write(tmp_path, [0, 1], NAMES)
    table = pq.read_table(f"{images}/train.parquet")
    content = table["image"].combine_chunks().field("bytes")
    named = pa.StructArray.from_arrays([content, text], ["bytes", "path"])
    for column, values in (("label", text), ("image", named), ("image", text)):
        other = table.drop_columns(column).append_column(column, values)
        pq.write_table(other.replace_schema_metadata(None), tmp_path / "train.parquet")
        with pytest.raises(DataError, match=r"cannot be loaded: .*UTF8"):
            load_image_dataset(images)


def test_labels_that_match_nothing_are_named():
    names = ["ant", "cat"]
    with pytest.raises(DataError, match=r"a test label is 2, but there are 2 classes"):
        map_labels(labelled([0, 2], Value("int64")), "test", names)
    with pytest.raises(DataError, match=r"not among the 2 known ones: dodo\. Known are ant, cat"):
        map_labels(labelled(["ant", "dodo"], Value("string")), "test", names)
    with pytest.raises(DataError, match=r"label is -1 \(hidden labels\?\)"):
        map_labels(labelled([-1, 0], NAMES), "test", names)


def test_long_lists_are_cut():
    assert some([1, 2, 3, 4, 5]) == "1, 2, 3, 4, 5"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
    assert some([]) == ""
