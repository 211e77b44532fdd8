"""A day's work, by the commands of scripts/README.md: from a folder of photographs to a published model."""

import csv
import json
import re
import shlex

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import AutoModelForImageClassification, pipeline

from hf_protosphere.cli import main
from tests import SCRIPTS

COMMANDS = ("inspect", "finetune", "evaluate", "calibrate", "predict", "publish")
QUICK = {
    "finetune": "--image_size 32 --epochs 3 --batch_size 32 --report_to none --validation_fraction 0.3",
    "inspect": "--near_duplicate 1",
}


def words():
    block = re.search(r"## A day's work\n.*?```bash\n(.*?)```", (SCRIPTS / "README.md").read_text(), re.DOTALL)[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("protosphere ")]


@pytest.mark.slow  # seven commands, one after the other
def test_from_a_folder_of_photographs_to_a_published_model(hub, digits_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_resnet", num_classes=0), "weights", safe_serialization=True)
    assert [command[1] for command in words()] == [*COMMANDS]
    places = {
        "path/to/clothing": str(digits_folder), "path/to/photos": str(digits_folder / "test"), "resnet50": "weights",
    }  # fmt: skip
    for _, name, *rest in words():
        quick = [] if name == "publish" else ["--num_workers", "0"]
        main([name, *(places.get(word, word) for word in rest), *QUICK.get(name, "").split(), *quick])
    assert json.loads((tmp_path / "outputs/inspect/inspection.json").read_text())
    assert "<table" in (tmp_path / "outputs/day_report/report.html").read_text()
    with open("outputs/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["class"] in row["image"] for row in rows)
    accuracy = json.loads((tmp_path / "outputs/day/results.json").read_text())["test"]["accuracy"]
    assert right / len(rows) == pytest.approx(accuracy, abs=0.03)  # files, and PNGs of a data set
    assert accuracy > 0.8
    config = AutoModelForImageClassification.from_pretrained("user/clothing").config
    assert config.rejection_threshold is not None
    assert config.set_coverage == 0.9
    (best, *_) = pipeline("image-classification", model="user/clothing")(rows[0]["image"])
    assert best["label"] == rows[0]["class"]
