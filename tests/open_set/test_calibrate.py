"""`calibrate` saves what it measures, and finds images that the model was not trained on."""

import json
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, load_dataset
from safetensors.torch import load_file

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.configuration_protosphere import FITTED_SCORES, REJECTION_SCORES, SET_SCORES
from hf_protosphere.data import dataset, pixels
from hf_protosphere.data.pixels import decode, pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.open_set.arguments import CalibrateArguments
from hf_protosphere.open_set.calibrate import calibrate, calibration_images
from hf_protosphere.open_set.detection import best_score
from hf_protosphere.open_set.scores import SCORES, Outputs, fit_scores
from hf_protosphere.pipeline_protosphere import prediction_sets
from hf_protosphere.prototypes import class_means
from hf_protosphere.runs.files import write_yaml
from hf_protosphere.training.adaptation import with_new_classes
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.setup import build_model, load_training_data

NAMES = {i: f"digit_{i}" for i in range(3)}


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
    return CalibrateArguments(model=str(folder), dataset_name=str(data), num_workers=0, **{"split": "test"} | more)


def test_what_is_saved_is_what_the_model_does(model_folder, digits_folder, capsys):
    (model_folder / "notes.txt").write_text("mine")
    weights = (model_folder / "model.safetensors").read_bytes()
    before = ProtoSphereForImageClassification.from_pretrained(model_folder).eval()
    report = calibrate(arguments(model_folder, digits_folder, false_rejection_rate=0.2, score="cosine"))
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

    again = calibrate(arguments(model_folder, digits_folder, false_rejection_rate=0.2, score="cosine"))
    assert again == report


@pytest.mark.parametrize("score", FITTED_SCORES)
def test_what_a_score_was_fitted_to_is_kept_with_the_weights(model_folder, digits_folder, tmp_path, score):
    options = {"false_rejection_rate": 0.2, "score": score, "output_dir": str(tmp_path)}
    report = calibrate(arguments(model_folder, digits_folder, **options))
    model, before = (ProtoSphereForImageClassification.from_pretrained(x).eval() for x in (tmp_path, model_folder))
    test = load_dataset(str(digits_folder), split="test")[:]
    pixels, labels = pixels_of(test["image"], build_image_processor(model.config)), torch.tensor(test["label"])
    with torch.no_grad():
        output, plain = model(pixels), before(pixels)
    assert torch.equal(output.embeddings, plain.embeddings)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(0))
    known = Outputs(output.embeddings, output.logits, labels)
    expected = fit_scores(model.prototypes.detach(), known[order[::2]])[score](known)
    found = model.known_score(output.embeddings, output.logits).detach().double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert report["rejected"] == output.is_unknown[order[1::2]].double().mean().item() == 3 / 22  # ⌊0.2 · 23⌋ − 1
    assert report["accuracy"] == (output.logits.argmax(1) == labels).double().mean().item()

    calibrate(arguments(tmp_path, digits_folder, score="cosine"))  # the earlier one plays no part
    assert {*load_file(tmp_path / "model.safetensors")} == {*load_file(model_folder / "model.safetensors")}
    model.add_classes({"new": test["image"][:3]})
    assert model.config.rejection_threshold is model.rejection_axes is model.rejection_centers is None
    model.save_pretrained(tmp_path)
    assert ProtoSphereForImageClassification.from_pretrained(tmp_path).config.rejection_score == "cosine"


def test_a_score_that_has_to_be_fitted_takes_twice_the_images(model_folder, digits_folder):
    with pytest.raises(ArgumentError, match=r"--false_rejection_rate 0.03.*at least 33, but there are 22"):
        calibrate(arguments(model_folder, digits_folder, score="vim", false_rejection_rate=0.03))
    assert calibrate(arguments(model_folder, digits_folder, false_rejection_rate=0.03))["rejection_score"] in (
        REJECTION_SCORES.keys() - {*FITTED_SCORES}
    )


def test_json_is_all_that_is_printed(model_folder, digits_folder, capsys):
    report = calibrate(arguments(model_folder, digits_folder, json=True, score="cosine"))
    assert json.loads(capsys.readouterr().out) == report


def test_classes_without_images_are_named(model_folder, digits_folder, tmp_path, capsys):
    for split in ("train", "test"):
        for name in ("digit_0", "digit_2"):
            shutil.copytree(digits_folder / split / name, tmp_path / "two" / split / name)
    report = calibrate(arguments(model_folder, tmp_path / "two"))
    assert report["classes_without_images"] == ["digit_1"]
    assert "There was no image of digit_1: how many of theirs" in capsys.readouterr().out
    # Nor do those have to be in the training split, of which a run held images out.
    run = TrainArguments(dataset_name=str(digits_folder), output_dir="", report_to="none")
    write_yaml(model_folder / "arguments.yaml", vars(run))
    assert calibrate(arguments(model_folder, tmp_path / "two", split=None, false_rejection_rate=0.2))


def test_another_folder_gets_a_whole_model(checkpoint, digits_folder, tmp_path):
    config = (checkpoint / "config.json").read_bytes()
    calibrate(arguments(checkpoint, digits_folder, output_dir=str(tmp_path / "calibrated")))
    assert (checkpoint / "config.json").read_bytes() == config
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path / "calibrated")
    assert model.config.rejection_threshold is not None
    with pytest.raises(ArgumentError, match="--model user/pets is no folder here: give --output_dir"):
        calibrate(arguments("user/pets", digits_folder))


@pytest.mark.parametrize(("fraction", "seed"), [(0.1, 0), (0.25, 3)])
def test_the_held_out_images_of_a_run_are_found_again(model_folder, digits_folder, fraction, seed, tmp_path):
    run = TrainArguments(
        dataset_name=str(digits_folder), output_dir=str(model_folder), validation_fraction=fraction,
        seed=seed, report_to="none",
    )  # fmt: skip
    write_yaml(model_folder / "arguments.yaml", vars(run))
    model = ProtoSphereForImageClassification.from_pretrained(model_folder)
    images, source = calibration_images(arguments(model_folder, digits_folder, split=None), model)
    assert source == "held out of train by the run"
    for name, value in {"on_bad_image": "skip", "train_split": "test"}.items():
        given = arguments(model_folder, digits_folder, split=None, **{name: value})
        with pytest.raises(ArgumentError, match=f"--{name} {value} does not fit the run in --mo"):
            calibration_images(given, model)
    expected = load_training_data(run)

    def pixels(split):
        return {np.asarray(image).tobytes() for image in split[:]["image"]}

    validation = images.splits["validation"]
    assert len(validation) == round(40 * fraction) * 3
    assert validation[:]["label"] == expected.splits["validation"][:]["label"]
    assert pixels(validation) == pixels(expected.splits["validation"])
    assert not pixels(validation) & pixels(expected.splits["train"])

    write_yaml(model_folder / "arguments.yaml", vars(run) | {"dataset_name": "user/digits"})
    _, source = calibration_images(arguments(model_folder, digits_folder, split=None), model)
    assert source == "held out of train by the run, of user/digits"


def test_images_of_training_are_never_taken(model_folder, digits_folder, tmp_path):
    model = ProtoSphereForImageClassification.from_pretrained(model_folder)

    def chosen(data=digits_folder, **more):
        return calibration_images(arguments(model_folder, data, **more), model)

    with pytest.raises(ArgumentError, match=r"--split train: training images"):
        chosen(split="train")
    with pytest.raises(ArgumentError, match=r"no arguments.yaml that tells what it held out: give --split"):
        chosen(split=None)
    with pytest.raises(DataError, match=r"--split dev: .* no such split, but train, test"):
        chosen(split="dev")
    run = {"dataset_name": str(digits_folder), "output_dir": "", "report_to": "none"}
    write_yaml(model_folder / "arguments.yaml", vars(TrainArguments(**run, validation_fraction=0)))
    with pytest.raises(ArgumentError, match=r"held none of its training images out: give --split"):
        chosen(split=None)
    tested = TrainArguments(**run, validation_split="test")
    write_yaml(model_folder / "arguments.yaml", vars(tested))
    assert chosen(split=None)[1] == "test"

    (model_folder / "arguments.yaml").unlink()
    test = load_dataset(str(digits_folder), split="test")
    assert isinstance(test, Dataset)
    DatasetDict({"train": test, "val": test}).save_to_disk(tmp_path / "with_val")
    assert chosen(tmp_path / "with_val", split=None)[1] == "val"
    with pytest.raises(ArgumentError, match=r"--split val: training images"):
        chosen(tmp_path / "with_val", split=None, train_split="val")


@pytest.fixture
def decoded(monkeypatch, tmp_path):
    """The splits' folders whose images were decoded, an entry for each time."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folders = []

    def remembered(value, *args, **kwargs):
        if isinstance(value, dict):  # not decoded already
            folders.append(Path(value["path"]).parts[-3])
        return decode(value, *args, **kwargs)

    for module in (pixels, dataset):
        monkeypatch.setattr(module, "decode", remembered)
    return folders


@pytest.fixture
def broken_training(digits_folder, tmp_path):
    """The digits with a split "validation", and a training image that cannot be decoded."""
    folder = tmp_path / "broken"
    shutil.copytree(digits_folder / "train", folder / "train")
    shutil.copytree(digits_folder / "test", folder / "validation")
    (folder / "train" / "digit_1" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("split", ["validation", None])
@pytest.mark.parametrize("of_a_run", [False, True])
def test_training_images_are_not_read_where_there_are_others(model_folder, broken_training, decoded, split, of_a_run):
    if of_a_run:  # by its arguments it would have held images out, had there been no split
        run = TrainArguments(dataset_name=str(broken_training), output_dir="", report_to="none")
        write_yaml(model_folder / "arguments.yaml", vars(run))
    report = calibrate(arguments(model_folder, broken_training, split=split))
    assert (report["source"], report["num_images"]) == ("validation", 45)
    assert set(decoded) == {"validation"}
    assert len(decoded) == 2 * 45  # checked once, seen once


def test_training_images_are_read_where_some_were_held_out(model_folder, broken_training, decoded):
    shutil.rmtree(broken_training / "validation")
    run = TrainArguments(dataset_name=str(broken_training), output_dir="", report_to="none")
    write_yaml(model_folder / "arguments.yaml", vars(run))
    with pytest.raises(DataError, match=r"1 of the train images cannot be decoded: .*broken\.png"):
        calibrate(arguments(model_folder, broken_training, split=None))
    # What the run did with such images counts, for the others to be drawn as they were then.
    write_yaml(model_folder / "arguments.yaml", vars(run) | {"on_bad_image": "skip"})
    decoded.clear()
    report = calibrate(arguments(model_folder, broken_training, split=None, false_rejection_rate=0.2))
    assert (report["source"], report["num_images"]) == ("held out of train by the run", 12)
    assert len(decoded) <= 121 + 12


def test_errors(model_folder, digits_folder, tmp_path):
    with pytest.raises(ArgumentError, match=r"--false_rejection_rate 0.01: .* takes at least 99, but"):
        calibrate(arguments(model_folder, digits_folder, false_rejection_rate=0.01))
    assert not (model_folder / "calibration.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"--output_dir .*file cannot be written"):
        calibrate(arguments(model_folder, digits_folder, output_dir=str(tmp_path / "file")))


def test_training_on_forgets_the_calibration(model_folder, digits_folder):
    calibrate(arguments(model_folder, digits_folder))
    run = TrainArguments(dataset_name=str(digits_folder), resume_from=str(model_folder), report_to="none")
    config = build_model(run, load_training_data(run)).config
    assert config.rejection_threshold is config.false_rejection_rate is None
    assert config.calibration_temperature == 1


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def outputs_for(model, digits_folder):
    test = load_dataset(str(digits_folder), split="test")[:]
    with torch.no_grad():
        return model(pixels_of(test["image"], build_image_processor(model.config))), torch.tensor(test["label"])


@pytest.mark.parametrize("score", ["max_softmax", "energy"])
def test_another_score_is_kept_and_obeyed(model_folder, digits_folder, score, capsys):
    report = calibrate(arguments(model_folder, digits_folder, score=score, false_rejection_rate=0.2))
    assert report["ood"] is None
    assert f"unknown below ({SCORES[score]})" in capsys.readouterr().out
    model = ProtoSphereForImageClassification.from_pretrained(model_folder).eval()
    assert model.config.rejection_score == report["rejection_score"] == score
    output, _ = outputs_for(model, digits_folder)
    values = output.logits.logsumexp(-1) if score == "energy" else output.logits.softmax(-1).amax(-1)
    assert torch.equal(output.is_unknown, values < report["rejection_threshold"])
    assert output.is_unknown.sum() == 8 == round(45 * report["rejected"])


def test_scores_are_compared_on_unknown_images_or_on_classes_left_out(
    model_folder, digits_folder, noise_folder, capsys
):
    report = calibrate(arguments(model_folder, digits_folder))
    printed = capsys.readouterr().out
    assert "known against classes left out in turn (45 images)" in printed
    assert all(title in printed for title in SCORES.values())
    assert f"Chosen: {SCORES[report['rejection_score']]}." in printed
    assert report["ood"]["dataset"] is None
    compared = report["ood"]["scores"]
    assert report["rejection_score"] == best_score({k: v for k, v in compared.items() if k not in FITTED_SCORES})
    rate = {"false_rejection_rate": 0.1}  # of which there are images enough to fit to half
    other = calibrate(arguments(model_folder, digits_folder, ood_dataset=str(noise_folder), **rate))
    assert other["rejection_score"] == best_score(other["ood"]["scores"])
    assert (other["ood"]["dataset"], other["ood"]["num_images"]) == (str(noise_folder), 12)
    assert f"known against {noise_folder} (12 images)" in capsys.readouterr().out
    assert other["ood"]["scores"]["cosine"] != report["ood"]["scores"]["cosine"]
    assert other["calibration_temperature"] == report["calibration_temperature"]


@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("sets", SET_SCORES)
def test_sets_are_kept_and_cover_what_was_promised(model_folder, digits_folder, sets, class_wise, capsys):
    given = {"coverage": 0.8, "sets": sets, "class_wise": class_wise, "score": "cosine"}
    found = calibrate(arguments(model_folder, digits_folder, **given))["prediction_sets"]
    assert "classes in a set" in capsys.readouterr().out
    model = ProtoSphereForImageClassification.from_pretrained(model_folder).eval()
    config = model.config
    assert (config.set_score, config.set_coverage, config.set_thresholds) == (sets, 0.8, found["set_thresholds"])
    assert len(config.set_thresholds) == (3 if class_wise else 1)
    output, labels = outputs_for(model, digits_folder)
    held = prediction_sets(output.logits, config)
    assert held.sum(1).double().mean().item() == pytest.approx(found["mean_size"])
    right = held.gather(1, labels[:, None])[:, 0]
    for rows in [labels == c for c in range(3)] if class_wise else [labels >= 0]:
        assert right[rows].sum() >= math.ceil(0.8 * (rows.sum() + 1) - 1e-9)
    calibrate(arguments(model_folder, digits_folder, score="cosine"))  # without --coverage there are none
    assert ProtoSphereForImageClassification.from_pretrained(model_folder).config.set_thresholds is None


def test_too_few_images_for_a_promise_are_said_before_the_pass(model_folder, digits_folder, monkeypatch):
    monkeypatch.setattr("hf_protosphere.open_set.calibrate.outputs_of", None)
    few = r"--coverage 0.98: to keep 0.98 of the images takes at least 49, but there are 45. Promise less, or give"
    with pytest.raises(ArgumentError, match=few):
        calibrate(arguments(model_folder, digits_folder, coverage=0.98))
    with pytest.raises(ArgumentError, match=r"--coverage 0.95 of class 'digit_0': .* at least 19, but there are 15"):
        calibrate(arguments(model_folder, digits_folder, coverage=0.95, class_wise=True))
    with pytest.raises(ArgumentError, match=r"--false_rejection_rate 0.01: .* at least 99, but there are 45"):
        calibrate(arguments(model_folder, digits_folder, false_rejection_rate=0.01))


SETS = {"set_score": "lac", "set_coverage": 0.9, "set_thresholds": [0.6]}


def calibrated(**options):
    torch.manual_seed(0)
    calibration = {"rejection_threshold": 0.4, "false_rejection_rate": 0.05, "calibration_temperature": 1.3} | SETS
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
    assert model.config.set_coverage is model.config.set_thresholds is None


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
    assert model.config.set_coverage is model.config.set_thresholds is None

    def loaded(**options):
        load = ProtoSphereForImageClassification.from_pretrained
        return calibration_of(load(tmp_path, ignore_mismatched_sizes=True, **options))

    assert loaded(id2label={0: "cat", 1: "dog"}) == none
    assert loaded(objective="cross_entropy") == none
    assert loaded() == (0.4, 0.05, 1.3)  # the head is the checkpoint's
