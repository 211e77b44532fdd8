"""The card and the published files of a run that was calibrated, and then given another class."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits

from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.errors import ArgumentError
from hf_protosphere.hub.arguments import PublishArguments
from hf_protosphere.hub.card import render_card
from hf_protosphere.hub.publish import publishable_files
from hf_protosphere.open_set.arguments import CalibrateArguments
from hf_protosphere.open_set.calibrate import calibrate
from hf_protosphere.runs.finished_run import FinishedRun
from hf_protosphere.runs.loading import load_classifier
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train
from hf_protosphere.transfer.add_class import add_class
from hf_protosphere.transfer.arguments import AddClassArguments
from tests.hub.test_card import code_blocks, sections

HEADING = "Recognise unknown images"


@pytest.fixture(scope="module")
def trained(digits_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(
        TrainArguments(
            dataset_name=str(digits_folder), output_dir=str(folder), backbone="test_resnet",
            epochs=10, batch_size=16, optimizer="adamw", augmentation="crop", num_workers=0,
            horizontal_flip=False, report_to="none", pictures=False, validation_fraction=0.4,
        )
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def calibrated(trained, digits_folder, tmp_path_factory):
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("calibrated") / "run")
    # By another path than the run knew, so that the report names the run's.
    other = shutil.copytree(digits_folder, tmp_path_factory.mktemp("again") / "digits")
    calibrate(CalibrateArguments(model=str(folder), dataset_name=str(other), false_rejection_rate=0.1, num_workers=0))
    return folder


@pytest.fixture(scope="module")
def with_class(calibrated, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("with_class")
    folder = tmp_path / "run"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    add_class(
        AddClassArguments(
            folder=str(calibrated), name="a | noise", images=[str(tmp_path / "noise.png")], output_dir=str(folder),
        )
    )  # fmt: skip
    return folder


def test_the_card_tells_what_was_calibrated(calibrated):
    card, report = (
        render_card(calibrated),
        json.loads((calibrated / "calibration.json").read_text()),
    )
    section = sections(card)[HEADING]
    degrees = np.degrees(np.arccos(report["rejection_threshold"]))
    assert f"is below {report['rejection_threshold']:.4f}" in section
    assert f"more than {degrees:.1f}° away" in section
    rejected = f"{100 * report['rejected']:.2f} %"
    assert "48 images (held out of train by the run, of digits" in section
    assert f"of which it rejects {rejected}. A new" in section
    assert "probability of at most 10.00 %" in section
    error = report["expected_calibration_error"]
    assert f"calibration error of {100 * error['after']:.2f} %" in section
    assert f"{report['calibration_temperature']:.3f} it was {100 * error['before']:.2f} %" in section
    assert "](reliability.png)" in section
    assert "not been calibrated" not in card.text
    assert "the threshold above finds some of those" in sections(card)["Intended use and limits"]


def test_the_card_names_the_score(calibrated, digits_folder, tmp_path):
    folder = shutil.copytree(calibrated, tmp_path / "run")
    options = {"false_rejection_rate": 0.1, "num_workers": 0, "score": "mahalanobis"}
    report = calibrate(CalibrateArguments(model=str(folder), dataset_name=str(digits_folder), **options))
    section = sections(render_card(folder))[HEADING]
    assert f"when its score (Mahalanobis) is below {report['rejection_threshold']:.4f}." in section


def strangest_digit(folder):
    """Of the digits 3 to 9, which the model does not know, the farthest from all prototypes."""
    model, processor = load_classifier(str(folder))
    digits = load_digits()
    images = [
        Image.fromarray(np.uint8(np.kron(pixels, np.ones((4, 4))) * 15))
        for pixels in digits.images[digits.target > 2][:100]
    ]
    with torch.no_grad():
        embeddings = model.eval()(pixels_of(images, processor)).embeddings
    return images[(embeddings @ model.prototypes.T).amax(1).argmin()]


@pytest.mark.slow  # a process that imports everything anew: 10 s
def test_the_snippet_runs_where_the_package_is_missing(calibrated, digits_folder, python, tmp_path):
    card = render_card(calibrated, repo_id="someone/digits")
    (snippet,) = [block for block in code_blocks(card, "python") if "open-set" in block]
    snippet = snippet.replace("someone/digits", str(calibrated))
    program = ["import os, sys", "sys.modules['hf_protosphere'] = None"]
    for place, image in {
        "known": Image.open(next((digits_folder / "train" / "digit_1").iterdir())),
        "unknown": strangest_digit(calibrated),
    }.items():
        (tmp_path / place).mkdir()
        image.save(tmp_path / place / "image.png")
        program.append(f"os.chdir({str(tmp_path / place)!r}); exec({snippet!r}, {{}})")
    result = python("-c", "\n".join(program))
    assert result.returncode == 0, result.stderr[-3000:]
    known, unknown = result.stdout.splitlines()
    assert known.startswith("[{'label': 'digit_1'")
    assert unknown.startswith("[{'label': 'unknown'")


def test_a_model_that_was_not_calibrated_has_no_such_section(trained):
    card = render_card(trained)
    assert HEADING not in sections(card)
    assert "The scores are a softmax of cosines and have not been calibrated: 0.9" in card.text
    assert "calibration.json" not in published(trained)


def published(folder):
    arguments = PublishArguments(folder=str(folder), repo_id="user/digits")
    return publishable_files(FinishedRun.read(folder), arguments)


def test_report_and_picture_are_published_without_paths(calibrated, tmp_path_factory):
    files, here = published(calibrated), str(tmp_path_factory.getbasetemp())
    assert files["reliability.png"].read_bytes().startswith(b"\x89PNG")
    report = json.loads(files["calibration.json"])
    assert report["source"] == "held out of train by the run, of digits0"
    assert here in (calibrated / "calibration.json").read_text()
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.read_bytes()
        assert here.encode() not in content, name


def test_an_added_class_is_told_and_the_metrics_stay_with_theirs(calibrated, with_class):
    card, results = render_card(with_class), json.loads((with_class / "results.json").read_text())
    run = FinishedRun.read(with_class)
    assert (run.class_names, run.added_classes) == (["digit_0", "digit_1", "digit_2"], {"a | noise": 1})
    assert len(run.class_names) == len(results["test"]["class_accuracies"])
    text = card.text
    assert "for 3 classes (digit_0, digit_1, digit_2)" in text
    assert "It also knows a &#124; noise, added without training" in text
    assert "gets one of the 4 classes" in text
    assert "least accurate" not in text.lower() or "noise (" not in text
    assert card.data.to_dict() == render_card(calibrated).data.to_dict()
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_a_calibration_of_other_classes_is_not_told(with_class):
    section = sections(render_card(with_class))[HEADING]
    assert "° away" in section
    assert "How many images of its own classes this model rejects was not measured" in section
    assert "reliability.png" not in section
    assert "have not been calibrated for these classes" in render_card(with_class).text
    assert not {"calibration.json", "reliability.png"} & published(with_class).keys()


def test_a_report_that_is_cut_short_is_said(calibrated, tmp_path):
    folder = shutil.copytree(calibrated, tmp_path / "run")
    (folder / "calibration.json").write_text('{"source": "te')
    with pytest.raises(ArgumentError, match=r"calibration.json cannot be read: .* writes it again"):
        render_card(folder)
