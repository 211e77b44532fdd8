"""Two classes → transfer to three → a fourth without training → "unknown" → Hub → a stranger."""

import ast
import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits

from hf_protosphere.cli import main
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.runs.loading import load_classifier

STRANGER = """
import sys
sys.modules["hf_protosphere"] = None
from transformers import pipeline
task = "open-set-image-classification"
classify = pipeline(task, model="user/digits", revision="v1", trust_remote_code=True)
for file in sys.argv[1:]:
    print([answer["label"] for answer in classify(file)])
"""


def save_digits(target, folder, count):
    folder.mkdir(parents=True)
    digits = load_digits()
    for i, pixels in enumerate(digits.images[digits.target == target][:count]):
        Image.fromarray(np.uint8(np.kron(pixels, np.ones((4, 4))) * 15)).save(folder / f"{i}.png")


@pytest.fixture
def two_digits(digits_folder, tmp_path):
    for split in ("train", "test"):
        for name in ("digit_0", "digit_1"):
            shutil.copytree(digits_folder / split / name, tmp_path / "two" / split / name)
    return tmp_path / "two"


def test_from_two_classes_to_a_stranger(hub, two_digits, digits_folder, python, tmp_path, capsys):
    def run(command, *words):
        main([command, *map(str, words)])

    small = (
        "--epochs 12 --learning_rate 3e-3 --batch_size 16 --optimizer adamw --augmentation crop "
        "--no_horizontal_flip --num_workers 0 --report_to none --no_pictures"
    )
    first, transfer = tmp_path / "first", tmp_path / "transfer"
    run(
        "train", "--dataset_name", two_digits, "--backbone", "test_resnet",
        "--output_dir", first, *small.split(),
    )  # fmt: skip
    run(
        "finetune", "--model", first, "--dataset_name", digits_folder, "--output_dir", transfer,
        "--compare", "full,prototypes", "--validation_fraction", 0.4, *small.split(),
    )  # fmt: skip
    rows = json.loads((transfer / "comparison.json").read_text())["rows"]
    assert {row["mode"] for row in rows} == {"full", "prototypes"}
    assert min(row["accuracy"] for row in rows) > 0.7  # of 45 images, by what two classes teach

    full = transfer / "full"
    save_digits(4, tmp_path / "four", 20)
    run("add-class", full, "digit_4", tmp_path / "four", "--output_dir", tmp_path / "more")
    capsys.readouterr()
    run(
        "calibrate", tmp_path / "more", "--dataset_name", digits_folder,
        "--false_rejection_rate", 0.2, "--num_workers", 0,
    )  # fmt: skip
    assert "There was no image of digit_4" in capsys.readouterr().out
    report = json.loads((tmp_path / "more" / "calibration.json").read_text())
    assert report["num_images"] == 48
    assert report["rejected"] <= 0.2
    run("publish", tmp_path / "more", "--repo_id", "user/digits", "--revision", "v1")
    text = ModelCard.load("user/digits").text
    assert "It also knows digit_4, added without training" in text
    assert "48 images (held out of train by the run)" in text
    assert "at most 20.00 %; of digit_4 there was none" in text

    files = [*sorted((digits_folder / "test").rglob("*.png"))[::5], *(tmp_path / "four").iterdir()]
    save_digits(7, tmp_path / "seven", 10)
    files += (tmp_path / "seven").iterdir()
    model, processor = load_classifier(str(tmp_path / "more"))
    with torch.no_grad():
        output = model.eval()(pixels_of([Image.open(file) for file in files], processor))
    names = [model.config.id2label[i] for i in output.logits.argmax(-1).tolist()]
    unknown = output.is_unknown.tolist()
    expected = ["unknown" if no else name for name, no in zip(names, unknown)]
    # A network of three classes has little room for what sets a fourth apart.
    assert set(expected) >= {"unknown", "digit_0", "digit_1", "digit_2"}
    result = python("-c", STRANGER, *files, cwd=tmp_path, hub=hub)
    assert result.returncode == 0, result.stderr[-2000:]
    answers = list(map(ast.literal_eval, result.stdout.splitlines()))
    assert [answer[0] for answer in answers] == expected
    every = {"unknown", "digit_4", "digit_0", "digit_1", "digit_2"}
    assert all(set(answer) == every for answer in answers)

    # The class can be had from the Hub's copy as well, snapshot included.
    run("add-class", "user/digits", "digit_7", tmp_path / "seven", "--output_dir", tmp_path / "5")
    model, _ = load_classifier(str(tmp_path / "5"))
    assert list(model.config.id2label.values())[3:] == ["digit_4", "digit_7"]
    assert model.config.rejection_threshold == report["rejection_threshold"]
    assert (tmp_path / "5" / "snapshot.safetensors").exists()
