"""From a folder of images to tables that can be corrected and are given to the other commands."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.inspection.arguments import InspectArguments
from hf_protosphere.inspection.inspect import COLUMNS, FILES, inspect
from hf_protosphere.inspection.report import BROKEN, COPIES, LEAKS, OUTLIERS, WRONG


@pytest.fixture(scope="module")
def data(digits_folder, tmp_path_factory):
    """The digits with a broken image, one that lies in both splits and one twice, and a wrong label."""
    folder = tmp_path_factory.mktemp("inspected") / "digits"
    shutil.copytree(digits_folder, folder)
    shutil.copy(folder / "train/digit_0/003.png", folder / "test/digit_0/leak.png")
    shutil.copy(folder / "train/digit_1/005.png", folder / "train/digit_1/copy.png")
    (folder / "train/digit_2/broken.png").write_bytes(b"no image")
    shutil.move(folder / "train/digit_0/007.png", folder / "train/digit_1/wrong.png")
    return folder


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names(rows):
    return [row["file"].split("/")[-1] for row in rows]


def test_without_a_model(data, tmp_path, capsys):
    report = inspect(InspectArguments(dataset_name=str(data), output_dir=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} - {".protosphere"} == {*FILES}
    rows = rows_of(tmp_path / "images.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["image"] for row in rows] == [*(f"train[{i}]" for i in range(122)), *(f"test[{i}]" for i in range(46))]
    assert json.loads((tmp_path / "inspection.json").read_text()) == report
    assert {kind: found["images"] for kind, found in report["suspects"].items()} == {BROKEN: 1, LEAKS: 1, COPIES: 1}
    left_out = rows_of(tmp_path / "exclude.csv")
    assert names(left_out) == ["copy.png", "broken.png", "leak.png"]
    copied = {row["file"]: row for row in rows}[str(data / "train/digit_0/003.png")]
    assert left_out[2]["duplicate_of"] == copied["image"]
    assert {row["label_score"] for row in rows} == {""}
    said = capsys.readouterr()
    assert said.out.endswith("\n\nLook at suspects.png, and correct the labels in images.csv.\n")
    assert said.err.count("168 images") == 2  # of the folder, and of its splits


def test_with_a_model_and_back(data, saved, tmp_path, capsys):
    given = {"dataset_name": str(data), "model": str(saved), "num_workers": 0}
    report = inspect(InspectArguments(**given, output_dir=str(tmp_path), wrong_label=0.5, worst=3, json=True))
    assert json.loads(capsys.readouterr().out) == report
    rows = rows_of(tmp_path / "images.csv")
    # Of features that were never trained: the wrong label is among the first, if not the first.
    worst = sorted((row for row in rows if row["label_score"]), key=lambda row: -float(row["label_score"]))
    assert "wrong.png" in names(worst[:5])
    (wrong,) = (row for row in rows if row["file"].endswith("wrong.png"))
    assert wrong["suggested_label"] == "digit_0"
    assert wrong["image"] in [image["image"] for image in report["suspects"][WRONG]["worst"]]
    assert report["suspects"][OUTLIERS]["images"] == len(rows) - 1
    copies = [row for row in rows if row["file"].endswith(("leak.png", "copy.png"))]
    assert [float(row["similarity"]) for row in copies] == pytest.approx([1, 1])
    with (tmp_path / "corrected.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row | ({"label": "digit_0"} if row is wrong else {}) for row in rows)
    tables = {"labels": str(tmp_path / "corrected.csv"), "exclude": str(tmp_path / "exclude.csv")}
    again = load_image_dataset(str(data), **tables, validation_fraction=0)
    left_out = len(rows_of(tmp_path / "exclude.csv"))
    assert again.num_images("train") + again.num_images("test") == len(rows) - left_out
    output = {"output_dir": str(tmp_path / "again"), "splits": ["train"]}
    inspect(InspectArguments(dataset_name=str(data), **tables, **output))
    found = {row["image"]: row["label"] for row in rows_of(tmp_path / "again" / "images.csv")}
    assert found[wrong["image"]] == "digit_0"  # rows are those of the data set still


def test_with_own_weights_for_a_backbone(data, tmp_path):
    given = {"dataset_name": str(data), "model": "test_resnet", "num_workers": 0, "splits": ["test"]}
    similar = []
    for seed in range(2):
        torch.manual_seed(seed)
        weights = tmp_path / f"{seed}.pth"
        torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
        inspect(InspectArguments(**given, pretrained=str(weights), output_dir=str(tmp_path / str(seed))))
        similar.append([row["similarity"] for row in rows_of(tmp_path / str(seed) / "images.csv")])
    assert similar[0] != similar[1]
    with pytest.raises(ArgumentError, match=r"--pretrained .* is for --model"):
        InspectArguments(dataset_name=str(data), pretrained=str(weights))


def test_a_recompressed_copy_is_a_near_duplicate(data, saved, tmp_path):
    images = [Image.open(path).convert("RGB") for path in sorted((data / "train/digit_2").glob("0*.png"))]
    images[5].save(file := io.BytesIO(), "JPEG", quality=90)
    parts = {"train": images, "extra": [Image.open(file)]}
    splits = {name: Dataset.from_dict({"image": own, "label": ["two"] * len(own)}) for name, own in parts.items()}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    given = {
        "dataset_name": str(tmp_path / "data"),
        "model": str(saved),
        "num_workers": 0,
        "near_duplicate": 0.9,
        "worst": 1,
    }
    report = inspect(InspectArguments(**given, output_dir=str(tmp_path / "out")))
    (leak,) = report["suspects"][LEAKS]["worst"]
    assert (leak["image"], leak["duplicate_of"]) == ("extra[0]", "train[5]")
    assert 0.9 < leak["similarity"] < 1
    assert WRONG not in report["suspects"]  # there is one class


def test_what_was_corrected_is_not_replaced(data, tmp_path):
    arguments = InspectArguments(dataset_name=str(data), output_dir=str(tmp_path), splits=["test"])
    inspect(arguments)
    (tmp_path / "images.csv").write_text("corrected")
    with pytest.raises(ArgumentError, match=r"holds images\.csv, corrected or not: --overwrite"):
        inspect(arguments)
    assert (tmp_path / "images.csv").read_text() == "corrected"
    inspect(arguments.but(overwrite=True))
    assert len(rows_of(tmp_path / "images.csv")) == 46


def test_what_cannot_be_inspected(data, saved, tmp_path):
    given = {"output_dir": str(tmp_path / "out")}
    with pytest.raises(DataError, match=r"--dataset_name .*nothing: there is no such file or folder"):
        inspect(InspectArguments(dataset_name=str(tmp_path / "nothing"), **given))
    with pytest.raises(
        ArgumentError, match=r"--splits: the data set has train, test, but no 'tets'\. Did you mean 'test'"
    ):
        inspect(InspectArguments(dataset_name=str(data), splits=["tets"], **given))
    with pytest.raises(ArgumentError, match=r"--model .*nothing: there is no such folder"):
        inspect(InspectArguments(dataset_name=str(data), model=str(tmp_path / "nothing"), **given))
    broken = tmp_path / "broken" / "a"
    broken.mkdir(parents=True)
    for name in ("0.png", "1.png"):
        (broken / name).write_bytes(b"no image")
    report = inspect(InspectArguments(dataset_name=str(broken.parent), **given))
    assert (report["suspects"][BROKEN]["images"], report["sizes"]) == (2, [])
    with pytest.raises(DataError, match=r"has no two images that can be decoded"):
        inspect(InspectArguments(dataset_name=str(broken.parent), model=str(saved), overwrite=True, **given))


def test_labels_are_numbers_too(tmp_path):
    images = [Image.fromarray(np.full((8, 8, 3), i, np.uint8)) for i in range(4)]
    Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}).save_to_disk(tmp_path / "data")
    inspect(InspectArguments(dataset_name=str(tmp_path / "data"), output_dir=str(tmp_path / "out")))
    table = str(tmp_path / "out" / "images.csv")
    again = load_image_dataset(str(tmp_path / "data"), labels=table, validation_fraction=0)
    assert again.class_counts("train") == [2, 2]
