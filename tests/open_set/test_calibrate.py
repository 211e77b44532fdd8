"""Thresholds keep their promise, temperatures are the likelihood's, `calibrate` saves both."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, load_dataset
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.arguments.parsing import write_yaml
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.open_set.arguments import CalibrateArguments
from hf_protosphere.open_set.calibrate import calibrate, calibration_images
from hf_protosphere.open_set.confidence import (
    fit_temperature,
    negative_log_likelihood,
    rejection_threshold,
    reliability,
)
from hf_protosphere.prototypes import class_means
from hf_protosphere.training.adaptation import with_new_classes
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.setup import build_model, load_training_data

NAMES = {i: f"digit_{i}" for i in range(3)}


def noisy(num_images=400, num_classes=5, scale=3.0, seed=0):
    """Logits (M, K) whose softmax is about right at a temperature of `scale`, and labels (M,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator)
    labels = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]
    return scale * logits, labels


def test_the_calibration_error_is_that_of_a_loop_over_bins():
    logits, labels = noisy()
    scores = softmax(logits.double().numpy(), axis=1)
    confidence, right = scores.max(1), scores.argmax(1) == labels.numpy()
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    bins = reliability(logits, labels)
    assert bins.counts.sum() == len(labels)
    assert bins.expected_calibration_error == pytest.approx(error, abs=1e-12)
    assert error > 0.1


def test_certainty_that_is_right_has_no_error_and_wrong_all_of_it():
    logits = 1000 * torch.eye(3)
    assert reliability(logits, torch.arange(3)).expected_calibration_error == 0
    assert reliability(logits, torch.tensor([1, 2, 0])).expected_calibration_error == 1


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 30.0])
def test_the_temperature_is_the_optimum_of_the_likelihood(scale):
    logits, labels = noisy(scale=scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.2)
    # For two classes temperature scaling is logistic regression on the difference, without bias.
    two, of_two = noisy(num_classes=2, scale=scale, seed=1)
    margin = (two[:, 1] - two[:, 0]).double().numpy()[:, None] / scale
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(margin, of_two).coef_
    assert fit_temperature(two, of_two) == pytest.approx(scale / slope.item(), rel=1e-4)
    for factor in (0.99, 1.01):
        assert negative_log_likelihood(logits, labels, temperature) < negative_log_likelihood(
            logits, labels, factor * temperature
        )


def test_no_temperature_is_best_when_all_is_right_or_no_better_than_chance():
    logits, _ = noisy()
    assert fit_temperature(logits, logits.argmax(-1)) is None
    assert fit_temperature(logits, logits.argmin(-1)) is None


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("n", [99, 100, 137])
def test_at_most_the_promised_share_is_rejected(rate, n):
    cosines = torch.rand(n, generator=torch.Generator().manual_seed(n)) * 2 - 1
    threshold = rejection_threshold(cosines, rate)
    rejected = (cosines < threshold).sum().item()
    assert rejected == math.floor(rate * (n + 1) + 1e-9) - 1
    assert rejected <= rate * n
    # Nor do the images that set it fall below it when their cosine is rounded otherwise.
    assert (cosines - 5e-8 < threshold).sum() <= rate * (n + 1)


def test_new_images_are_rejected_as_seldom_as_promised():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 60, generator=generator).double()
    thresholds = torch.tensor([rejection_threshold(cosines[:59], 0.1) for cosines in draws])
    rejected = (draws[:, 59] < thresholds).double().mean().item()
    assert rejected == pytest.approx(6 / 60, abs=0.02)  # three standard errors


def test_too_few_images_for_a_rate_are_an_error():
    assert rejection_threshold(torch.linspace(-1, 1, 19), 0.05) == -1
    with pytest.raises(ValueError, match=r"at least 19 known images to keep, but there are 18"):
        rejection_threshold(torch.rand(18), 0.05)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits_folder):
    """An untrained model that is better than chance: classes by the directions of their means."""
    torch.manual_seed(0)
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, id2label=NAMES)
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = (
        ProtoSphereForImageClassification(config).eval(),
        build_image_processor(config),
    )
    train = load_dataset(str(digits_folder), split="train")[:]
    with torch.no_grad():
        embeddings = model(pixels_of(train["image"], processor)).embeddings
    means = class_means(embeddings, torch.tensor(train["label"]))
    model.set_prototypes(means - means.mean(0))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def arguments(folder, data, **more):
    return CalibrateArguments(
        model=str(folder), dataset_name=str(data), num_workers=0, **{"split": "test"} | more
    )


def test_what_is_saved_is_what_the_model_does(model_folder, digits_folder, capsys):
    (model_folder / "notes.txt").write_text("mine")
    weights = (model_folder / "model.safetensors").read_bytes()
    before = ProtoSphereForImageClassification.from_pretrained(model_folder).eval()
    report = calibrate(arguments(model_folder, digits_folder, false_rejection_rate=0.2))
    assert "rejected" in (printed := capsys.readouterr().out)
    assert str(model_folder / "reliability.png") in printed
    assert json.loads((model_folder / "calibration.json").read_text()) == report
    assert (model_folder / "reliability.png").stat().st_size > 10_000
    assert (model_folder / "notes.txt").read_text() == "mine"
    assert (model_folder / "model.safetensors").read_bytes() == weights

    model = ProtoSphereForImageClassification.from_pretrained(model_folder).eval()
    assert model.config.rejection_threshold == report["rejection_threshold"]
    assert model.config.false_rejection_rate == 0.2
    temperature = model.config.calibration_temperature
    assert temperature == report["calibration_temperature"] != 1
    test = load_dataset(str(digits_folder), split="test")[:]
    pixels, labels = pixels_of(test["image"], build_image_processor(model.config)), test["label"]
    with torch.no_grad():
        plain, output = before(pixels), model(pixels)
    assert plain.is_unknown is None
    assert torch.equal(output.logits, plain.logits / temperature)
    assert torch.equal(output.logits.argmax(-1), plain.logits.argmax(-1))
    rejected = output.is_unknown.double().mean().item()
    assert report["rejected"] == pytest.approx(rejected)
    assert rejected == pytest.approx(8 / 45)  # ⌊0.2 · 46⌋ − 1
    likelihood = F.cross_entropy(output.logits, torch.tensor(labels)).item()
    assert report["negative_log_likelihood"]["after"] == pytest.approx(likelihood, rel=1e-5)
    assert likelihood <= report["negative_log_likelihood"]["before"]

    again = calibrate(arguments(model_folder, digits_folder, false_rejection_rate=0.2))
    assert again == report


def test_classes_without_images_are_named(model_folder, digits_folder, tmp_path, capsys):
    for split in ("train", "test"):
        for name in ("digit_0", "digit_2"):
            shutil.copytree(digits_folder / split / name, tmp_path / "two" / split / name)
    report = calibrate(arguments(model_folder, tmp_path / "two"))
    assert report["classes_without_images"] == ["digit_1"]
    assert "There was no image of digit_1: how many of theirs" in capsys.readouterr().out
    # Nor do those have to be in the training split, of which a run held images out.
    run = TrainArguments(dataset_name=str(digits_folder), output_dir="", report_to="none")
    write_yaml(vars(run), model_folder / "arguments.yaml")
    assert calibrate(
        arguments(model_folder, tmp_path / "two", split=None, false_rejection_rate=0.2)
    )


def test_another_folder_gets_a_whole_model(checkpoint, digits_folder, tmp_path):
    config = (checkpoint / "config.json").read_bytes()
    calibrate(arguments(checkpoint, digits_folder, output_dir=str(tmp_path / "calibrated")))
    assert (checkpoint / "config.json").read_bytes() == config
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path / "calibrated")
    assert model.config.rejection_threshold is not None
    with pytest.raises(ArgumentError, match="--output_dir is needed for --model user/pets"):
        calibrate(arguments("user/pets", digits_folder))


@pytest.mark.parametrize(("fraction", "seed"), [(0.1, 0), (0.25, 3)])
def test_the_held_out_images_of_a_run_are_found_again(
    model_folder, digits_folder, fraction, seed, tmp_path
):
    run = TrainArguments(
        dataset_name=str(digits_folder), output_dir=str(model_folder), validation_fraction=fraction,
        seed=seed, report_to="none",
    )  # fmt: skip
    write_yaml(vars(run), model_folder / "arguments.yaml")
    model = ProtoSphereForImageClassification.from_pretrained(model_folder)
    images, source = calibration_images(arguments(model_folder, digits_folder, split=None), model)
    assert source == "held out of train by the run"
    expected = load_training_data(run)

    def pixels(split):
        return {np.asarray(image).tobytes() for image in split[:]["image"]}

    validation = images.splits["validation"]
    assert len(validation) == round(40 * fraction) * 3
    assert validation[:]["label"] == expected.splits["validation"][:]["label"]
    assert pixels(validation) == pixels(expected.splits["validation"])
    assert not pixels(validation) & pixels(expected.splits["train"])

    write_yaml(vars(run) | {"dataset_name": "user/digits"}, model_folder / "arguments.yaml")
    _, source = calibration_images(arguments(model_folder, digits_folder, split=None), model)
    assert source == "held out of train by the run, of user/digits"


def test_images_of_training_are_never_taken(model_folder, digits_folder, tmp_path):
    model = ProtoSphereForImageClassification.from_pretrained(model_folder)

    def chosen(data=digits_folder, **more):
        return calibration_images(arguments(model_folder, data, **more), model)

    with pytest.raises(ArgumentError, match=r"--split train: images of training"):
        chosen(split="train")
    with pytest.raises(ArgumentError, match=r"no arguments.yaml that tells which .* give --split"):
        chosen(split=None)
    with pytest.raises(DataError, match=r"--split dev: .* no such split, but train, test"):
        chosen(split="dev")
    run = {"dataset_name": str(digits_folder), "output_dir": "", "report_to": "none"}
    write_yaml(vars(TrainArguments(**run, validation_fraction=0)), model_folder / "arguments.yaml")
    with pytest.raises(ArgumentError, match=r"held none of its training images out: give --split"):
        chosen(split=None)
    write_yaml(
        vars(TrainArguments(**run, validation_split="test")), model_folder / "arguments.yaml"
    )
    assert chosen(split=None)[1] == "test"

    (model_folder / "arguments.yaml").unlink()
    test = load_dataset(str(digits_folder), split="test")
    assert isinstance(test, Dataset)
    DatasetDict({"train": test, "val": test}).save_to_disk(tmp_path / "with_val")
    assert chosen(tmp_path / "with_val", split=None)[1] == "val"


def test_errors(model_folder, digits_folder, tmp_path):
    for rate in (0, 1, -0.1, "much"):
        with pytest.raises(ArgumentError, match=r"--false_rejection_rate must be in \(0, 1\)"):
            arguments(model_folder, digits_folder, false_rejection_rate=rate)
    with pytest.raises(ArgumentError, match=r"--false_rejection_rate 0.01: .* at least 99 known"):
        calibrate(arguments(model_folder, digits_folder, false_rejection_rate=0.01))
    assert not (model_folder / "calibration.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"--output_dir .*file cannot be written"):
        calibrate(arguments(model_folder, digits_folder, output_dir=str(tmp_path / "file")))


def test_training_on_forgets_the_calibration(model_folder, digits_folder):
    calibrate(arguments(model_folder, digits_folder))
    run = TrainArguments(
        dataset_name=str(digits_folder), resume_from=str(model_folder), report_to="none"
    )
    config = build_model(run, load_training_data(run)).config
    assert config.rejection_threshold is config.false_rejection_rate is None
    assert config.calibration_temperature == 1


def calibrated(**options):
    torch.manual_seed(0)
    calibration = {
        "rejection_threshold": 0.4, "false_rejection_rate": 0.05, "calibration_temperature": 1.3
    }  # fmt: skip
    defaults = {"backbone": "test_resnet", "image_size": 32, "id2label": NAMES}
    config = ProtoSphereConfig(**defaults | calibration | options)
    return ProtoSphereForImageClassification(config).eval()


def calibration_of(model):
    config = model.config
    return config.rejection_threshold, config.false_rejection_rate, config.calibration_temperature


@pytest.mark.parametrize(
    "edit",
    [
        lambda model, images: model.add_classes({"new": images}),
        lambda model, images: model.remove_classes(["digit_0"]),
        lambda model, images: model.merge_classes({"both": ["digit_0", "digit_1"]}),
    ],
)
def test_of_other_classes_the_threshold_serves_but_promises_nothing(edit):
    model, images = calibrated(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = model(images).logits
        edit(model, images)
        output = model(images)
    assert calibration_of(model) == (0.4, None, 1.3)
    assert torch.equal(output.logits[:, model.config.label2id["digit_2"]], before[:, 2])
    cosines = output.embeddings @ model.prototypes.T
    assert torch.equal(output.is_unknown, cosines.amax(1) < 0.4)


def test_an_edit_that_fails_keeps_the_promise():
    model = calibrated()
    with pytest.raises(ValueError, match="no class 'x'"):
        model.remove_classes(["x"])
    assert calibration_of(model) == (0.4, 0.05, 1.3)


def test_other_prototypes_and_other_heads_are_not_calibrated(tmp_path):
    model, none = calibrated(), (None, None, 1.0)
    model.save_pretrained(tmp_path)
    assert calibration_of(with_new_classes(model, ["digit_0", "other"], objective="ntce")) == none
    model.set_prototypes(model.prototypes)
    assert calibration_of(model) == none

    def loaded(**options):
        load = ProtoSphereForImageClassification.from_pretrained
        return calibration_of(load(tmp_path, ignore_mismatched_sizes=True, **options))

    assert loaded(id2label={0: "cat", 1: "dog"}) == none
    assert loaded(objective="cross_entropy") == none
    assert loaded() == (0.4, 0.05, 1.3)  # the head is the checkpoint's
