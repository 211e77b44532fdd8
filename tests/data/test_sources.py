"""Splits and columns are found, or named with the flag that gives them."""

import json
import shutil
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from datasets import Array2D, Array3D, Dataset, DatasetDict, Features, Image, Value, load_dataset

from hf_protosphere.data.dataset import load_image_dataset, load_split
from hf_protosphere.data.pixels import image_files, walk_images
from hf_protosphere.data.sources import (
    by_split,
    choose_splits,
    find_image_column,
    folder_labels,
    load_splits,
    outnumber_tables,
    two_columns,
)
from hf_protosphere.data.streaming import stream_length
from hf_protosphere.errors import DataError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.open_set.detection import load_unknown_images
from tests.data import NAMES, image, image_folder, photos, write, write_shard


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
    assert data.label_names == ["cat", "dog"]


def test_shards_of_webdataset(tmp_path):
    for shard in ("train-0", "train-1", "test-0"):
        write_shard(tmp_path / f"{shard}.tar", [*map(image, range(6))], [0, 1, 2] * 2)
    data = load_image_dataset(str(tmp_path), validation_fraction=0)
    assert data.class_counts("train") == [4, 4, 4]
    options = {"streaming": True, "num_train_images": 12, "validation_split": "test"}
    streamed = load_image_dataset(str(tmp_path), **options)
    assert streamed.label_names == data.label_names == ["0", "1", "2"]
    assert [row["label"] for row in streamed.splits["train"]] == data.splits["train"]["label"]
    assert streamed.splits["train"].num_shards == 2
    with pytest.raises(DataError, match="needs a label column of ClassLabel"):  # nothing tells how many classes
        load_image_dataset(str(tmp_path), **options, roles=["train"])


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
    folder = image_folder(tmp_path / "three", train=cats_and_dogs, validation=cats_and_dogs, test=cats_and_dogs)
    data = load_image_dataset(str(folder), train_split="train+validation", validation_fraction=0, check_images=False)
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
    data = load_image_dataset(str(only_test), need_train=False, label_names=["digit_0", "digit_1", "digit_2"])
    assert list(data.splits) == ["test"]


@pytest.mark.parametrize(
    ("names", "named", "expected"),
    [
        # No name of a file, and of no class folder, makes a split.
        (["a.png", "train.png", "my-test-2.png", "val_3.png"], [], {"train": {None: 4}}),
        (["bus/test-1.png", "train/1.png"], [], {"train": {"bus": 1, "train": 1}}),
        (["bus/1.png", "test/1.png", "test/old/2.png"], [], {"train": {"bus": 1, "test": 2}}),
        # What lies deeper is of the class.
        (["bus/red/1.png", "bus/2.png", "car/a/b/3.png"], [], {"train": {"bus": 2, "car": 1}}),
        (["train/bus/red/1.png", "val/bus/2.png"], [], {"train": {"bus": 1}, "val": {"bus": 1}}),
        # Splits are called exactly so, or as the user says.
        (["training/bus/1.png", "Test/bus/2.png"], [], {"train": {"training": 1, "Test": 1}}),
        (["a/bus/1.png", "b/car/2.png"], ["a", "b"], {"a": {"bus": 1}, "b": {"car": 1}}),
        (["train/1.png", "test/2.png"], [], {"train": {None: 1}, "test": {None: 1}}),
        # Several of them make the others splits too, which are not read.
        (
            ["train/bus/1.png", "test/car/2.png", "extra/3.png"], [],
            {"train": {"bus": 1}, "test": {"car": 1}, "extra": {None: 1}},
        ),
        # An image beside class folders has no class.
        (["bus/1.png", "map.png"], [], {"train": {"bus": 1, None: 1}}),
    ],
)  # fmt: skip
def test_splits_and_classes_of_folders(tmp_path, names, named, expected):
    splits = by_split(tmp_path, names, named)
    found = {split: Counter(name for _, name in rows) for split, rows in splits.items()}
    assert found == expected
    assert [*found] == [*expected]


def test_folders_that_may_be_splits_or_classes_are_not_guessed(tmp_path):
    folder = photos(tmp_path, "train/steam/1.png", "bus/1.png", "car/2.png")
    message = r"--dataset_name .*: is train a split or a class, beside bus, car\?.*--test_split"
    with pytest.raises(DataError, match=message):
        load_image_dataset(str(folder))
    found = load_image_dataset(
        str(folder), validation_split="bus", test_split="car", roles=["train"], check_images=False
    )
    assert found.label_names == ["steam"]


def test_what_was_found_is_said_before_anything_starts(tmp_path, capsys, monkeypatch):
    folder = image_folder(tmp_path, train={"cat": 3, "dog": 1}, test={"dog": 2}, extra={"emu": 1})
    (folder / "train" / "notes.txt").touch()
    (folder / "train" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be decoded"):
        load_image_dataset(str(folder), label_names=["dog", "cat"])
    assert capsys.readouterr().err == (
        f"{folder}: 7 images (extra/emu/0.png, test/dog/0.png, test/dog/1.png, train/cat/0.png, "
        "train/cat/1.png and 2 more); left out: 1 of other kinds (train/notes.txt)\n"
        f"{folder}\n  train: 4 images of 2 classes: dog 1, cat 3\n"
        "  test: 2 images of 1 classes: dog 2\n  extra: not read\n"
    )
    monkeypatch.setenv("RANK", "1")  # one process speaks
    load_split(str(folder), "extra")
    assert capsys.readouterr().err == ""


def test_names_of_files_make_no_splits_beside_metadata_either(tmp_path):
    names = [f"{i}{word}.png" for i in range(3) for word in ("", "-test-", "_train")]
    photos(tmp_path, *names)
    rows = [f"{name},{'cat' if 'test' in name else 'dog'}" for name in names]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    data = load_image_dataset(str(tmp_path), validation_fraction=0)
    assert data.class_counts("train") == [3, 6]
    assert [*data.splits] == ["train"]


def test_every_reader_finds_the_same_images(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").touch()  # of no meaning to 🤗 datasets
    folder = photos(tmp_path / "data", "ant/0.png", "ant/x/1.png", ".trash/2.png", "bee/._3.png")
    (folder / "cow").symlink_to(photos(tmp_path / "cow", "4.png", "5.png"))
    photos(folder, "bee/6.png")
    files = image_files(folder)
    data = load_image_dataset(str(folder), validation_fraction=0, check_images=False)
    split = data.splits["train"].cast_column("image", Image(decode=False))
    paths = [image["path"] for image in split[:]["image"]]
    assert paths == [*map(str, files)]
    assert data.label_names == ["ant", "bee", "cow"]
    labels = folder_labels(folder, files, "--images")
    assert [labels[file] for file in files] == [data.label_names[i] for i in split[:]["label"]]
    stream = load_splits(str(folder), None, streaming=True)["train"]
    assert sorted(row["image"]["path"] for row in stream.cast_column("image", Image(decode=False))) == paths
    assert stream_length(stream, "train") == 5
    assert outnumber_tables(*walk_images(folder))


PIXELS = [np.asarray(image(i)) for i in range(4)]


def saved(folder, images, feature, format=None):
    """A data set by save_to_disk: of two cats and two dogs, in a format for other work."""
    features = Features({"image": feature, "label": NAMES})
    rows = Dataset.from_dict({"image": images, "label": [0, 0, 1, 1]}, features=features)
    rows.with_format(format).save_to_disk(str(folder))
    return folder


def encoded(pixels):
    return Image().encode_example(pixels)["bytes"]


def listed(folder, file, root):
    """A table of paths, relative or not, and names of classes."""
    rows = [(f"{root}pics/{i}.png", "cat" if i < 2 else "dog") for i in range(4)]
    photos(folder, *(f"pics/{i}.png" for i in range(4)))
    table = Dataset.from_dict(dict(zip(("file_name", "label"), map(list, zip(*rows)))))
    getattr(table, f"to_{file.suffix[1:].replace('jsonl', 'json')}")(str(file))
    return file


@pytest.mark.parametrize(
    "write_data",
    {
        "not decoded": lambda f: saved(f, [image(i) for i in range(4)], Image(decode=False)),
        "another mode": lambda f: saved(f, [image(i) for i in range(4)], Image(mode="L")),
        "torch": lambda f: saved(f, [image(i) for i in range(4)], Image(), "torch"),
        "numpy": lambda f: saved(f, [image(i) for i in range(4)], Image(), "numpy"),
        "bytes": lambda f: saved(f, [*map(encoded, PIXELS)], Value("binary")),
        "pixels": lambda f: saved(f, PIXELS, Array3D((8, 8, 3), "uint8")),
        "channels first": lambda f: saved(
            f, [pixels.transpose(2, 0, 1) for pixels in PIXELS], Array3D((3, 8, 8), "uint8")
        ),
        "csv": lambda f: listed(f, f / "labels.csv", ""),
        "jsonl": lambda f: listed(f, f / "labels.jsonl", ""),
        "parquet": lambda f: listed(f, f / "train.parquet", f"{f}/"),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_a_column_of_images_may_hold_them_in_any_form(tmp_path, write_data):
    source = str(write_data[1](tmp_path))
    unknown = EvaluateArguments(model="m", dataset_name="d", ood_dataset=source)
    for split in (
        load_image_dataset(source, validation_fraction=0).splits["train"],
        load_split(source, "train"),
        load_unknown_images(unknown),
    ):
        assert split.features["image"] == Image()
        assert all(np.array_equal(a, b) for a, b in zip(split[:]["image"], PIXELS, strict=True))
        assert split[:]["label"] in ([0, 0, 1, 1], [-1] * 4)


@pytest.mark.parametrize("name", ["dataset_dict.json", "train/state.json", "train/dataset_info.json"])
def test_damage_of_what_describes_a_data_set_is_one_line(tmp_path, name):
    DatasetDict(train=Dataset.from_parquet(f"{write(tmp_path / 'data', [0, 1], NAMES)}/train.parquet")).save_to_disk(
        str(tmp_path / "saved")
    )
    path = tmp_path / "saved" / name
    whole = path.read_text()

    def damaged(value):
        """The same with one value deleted, or of another kind."""
        for key in [*value] if isinstance(value, dict) else range(len(value)):
            inner = value[key]
            for other in (None, [{}]):
                yield {**value, key: other} if isinstance(value, dict) else [other]
            if isinstance(value, dict):
                yield {k: v for k, v in value.items() if k != key}
            if isinstance(inner, dict | list):
                yield from ({**value, key: v} if isinstance(value, dict) else [v] for v in damaged(inner))

    for text in ("", "[]", "null", whole[:-9], *map(json.dumps, damaged(json.loads(whole)))):
        path.write_text(text)
        with suppress(DataError):  # or it is no damage
            load_image_dataset(str(tmp_path / "saved"), check_images=False, validation_fraction=0)
    path.write_text("")
    with pytest.raises(DataError, match=r"^--dataset_name .*saved cannot be loaded: .*per class\.$"):
        load_image_dataset(str(tmp_path / "saved"))


def test_gray_pixels_keep_their_type(tmp_path):
    gray = [np.full((8, 8), 1000 * i, np.uint16) for i in range(4)]
    data = load_split(str(saved(tmp_path, gray, Array2D((8, 8), "uint16"))), "train")
    assert [np.asarray(image).max() for image in data[:]["image"]] == [0, 1000, 2000, 3000]


@pytest.mark.parametrize(
    ("images", "feature", "message"),
    [
        (
            [np.zeros((8, 8, 3))] * 4,
            Array3D((8, 8, 3), "float32"),
            r"type float32 are no image: colours .* uint8",
        ),
        (["https://host/0.png"] * 4, Value("string"), r"'https://host/0.png' is read as a path"),
    ],
)
def test_columns_that_are_no_images_after_all(tmp_path, images, feature, message):
    with pytest.raises(DataError, match=f"--image_column image.*{message}"):
        load_image_dataset(str(saved(tmp_path, images, feature)))


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
    assert choose_splits({"test": of_labels()}, "train", None, None, need_train=False) == {"test": "test"}
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
    images = two_columns(split, "image", "label", folder)
    declared = load_dataset("parquet", data_files=f"{folder}/train.parquet", split="train")
    assert [image.tobytes() for image in images[:]["image"]] == [image.tobytes() for image in declared[:]["image"]]
    with pytest.raises(DataError, match=r"--queries label holds no images"):
        find_image_column(split, "label", "--queries")
    with pytest.raises(DataError, match=r"--label_column kind is missing in one of the splits"):
        two_columns(split, "image", "kind", folder)
