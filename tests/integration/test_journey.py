"""The whole road: train → evaluate → load anywhere → pipeline, by the commands a user types."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_protosphere.cli import main
from tests import SCRIPTS


@pytest.fixture(scope="module")
def trained(digits_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("journey") / "run"
    main(
        f"train --dataset_name {digits_folder} --output_dir {run} --backbone test_resnet --epochs 10 --batch_size 16 "
        "--optimizer adamw --augmentation crop --no_horizontal_flip --num_workers 0 --no_pictures".split()
    )
    return run


def test_evaluate_repeats_the_figures_of_training(trained, digits_folder, tmp_path):
    output = tmp_path / "report.json"
    main(
        f"evaluate --model {trained} --dataset_name {digits_folder} --split test "
        f"--output {output} --num_workers 0".split()
    )
    report = json.loads(output.read_text())
    results = json.loads((trained / "results.json").read_text())["test"]
    assert report["accuracy"] == results["accuracy"] > 0.8
    assert report["neural_collapse"]["nc1_cdnv"] == pytest.approx(results["neural_collapse"]["nc1_cdnv"], rel=1e-4)


def test_the_pipeline_applies_exactly_the_evaluation_transform(trained, digits_folder):
    model = AutoModelForImageClassification.from_pretrained(trained).eval()
    processor = AutoImageProcessor.from_pretrained(trained)
    classify = pipeline("image-classification", model=str(trained))
    for file in sorted((digits_folder / "test").rglob("*.png"))[::9]:
        image = Image.open(file).convert("RGB")
        with torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits[0]
        scores = {answer["label"]: answer["score"] for answer in classify(str(file))}
        for i, score in enumerate(logits.softmax(-1).tolist()):
            assert scores[model.config.id2label[i]] == pytest.approx(score, abs=1e-6)


@pytest.mark.slow  # a fresh process; tests/integration/test_publish.py has one too
def test_images_are_classified_where_the_package_is_missing(trained, digits_folder, python, tmp_path):
    files = sorted((digits_folder / "test").rglob("*.png"))[::15]
    result = python(SCRIPTS / "load_without_package.py", trained, *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "import hf_protosphere: ImportError" in result.stdout
    lines = [line for line in result.stdout.splitlines() if ": AutoModel" in line]
    assert len(lines) == len(files)
    right = sum(f"AutoModel {Path(line.split(':')[0]).parent.name} " in line for line in lines)
    assert right > len(files) / 2
