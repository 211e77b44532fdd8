"""Errors on corrupted images: those of a plain loop, beside a baseline, and of ready-made sets."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.robustness.corrupted_data import CorruptedImages, ResizedImages, read_corrupted
from hf_protosphere.robustness.corruptions import corrupt
from hf_protosphere.robustness.measure import corruption_errors, corruption_metrics

NAMES = ["digit_0", "digit_1", "digit_2"]
ASKED = {"corruptions": ["gaussian_noise", "fog"], "severities": [1, 5]}


def build(seed=0, names=NAMES, **config):
    torch.manual_seed(seed)
    defaults = {"backbone": "test_resnet", "image_size": 32, "id2label": dict(enumerate(names))}
    config = ProtoSphereConfig(**defaults, **config) if "image_size" not in config else (
        ProtoSphereConfig(**{**defaults, **config}))  # fmt: skip
    return ProtoSphereForImageClassification(config).eval(), build_image_processor(config)


@pytest.fixture(scope="module")
def split(digits_folder):
    return load_image_dataset(str(digits_folder), validation_fraction=0).splits["test"]


def measured(classifier, split, **options):
    model, processor = classifier
    options = {"batch_size": 16, "num_workers": 0, **ASKED, **options}
    return corruption_errors(model, split, processor, Accelerator(), **options)


def looped(classifier, split, name=None, severity=None):
    """The error by one image at a time."""
    model, processor = classifier
    wrong = []
    for i, row in enumerate(split):
        size = processor.size["shortest_edge"]
        image = row["image"].convert("RGB").resize((size, size), processor.resample)
        edge = (size - processor.crop_size["width"]) // 2
        image = np.array(image)[edge : size - edge, edge : size - edge]
        if name is not None:
            seed = int(np.random.SeedSequence([0, i]).generate_state(1)[0])
            image = corrupt(image, name, severity, seed=seed)
        with torch.no_grad():
            pixels = processor(image, return_tensors="pt", do_resize=False, do_center_crop=False)
            wrong.append(model(**pixels).logits.argmax().item() != row["label"])
    return np.mean(wrong)


@pytest.mark.parametrize("objective", ["nonl", "cross_entropy"])
def test_errors_are_those_of_a_loop_over_images(split, objective):
    classifier = build(objective=objective)
    report = measured(classifier, split)
    assert (report["num_images"], report["severities"]) == (45, [1, 5])
    assert report["clean_error"] == looped(classifier, split)
    for name in ASKED["corruptions"]:
        assert report["errors"][name] == [looped(classifier, split, name, s) for s in (1, 5)]
    assert report["mean_corruption_error"] == pytest.approx(
        np.mean([report["errors"][name] for name in report["errors"]])
    )
    assert json.loads(json.dumps(report)) == report


def test_batches_workers_and_the_cache_change_nothing(split, monkeypatch):
    classifier = build()
    first = measured(classifier, split)
    assert measured(classifier, split, batch_size=7, num_workers=2) == first
    # Without room for the cache, images are decoded again and again.
    monkeypatch.setattr("hf_protosphere.robustness.corrupted_data.cached_pixels", lambda *_: None)
    assert measured(classifier, split, num_workers=1) == first
    other = measured(classifier, split, seed=1)
    assert other["clean_error"] == first["clean_error"]


def test_pixels_follow_from_seed_and_index(split):
    images = ResizedImages(split, build()[1])
    one, two = (CorruptedImages(images, "impulse_noise", 3, seed) for seed in (0, 1))
    backwards = [one[i]["pixel_values"] for i in (4, 3)]
    assert torch.equal(backwards[1], one[3]["pixel_values"])
    assert not torch.equal(backwards[1], two[3]["pixel_values"])


def test_a_baseline_sees_the_same_images(split):
    ours, baseline = build(seed=0), build(seed=1, names=NAMES[::-1])  # other numbers, same names
    report = measured(ours, split, baseline=baseline)
    assert measured(ours, split).items() <= report.items()
    alone = measured(baseline, split)
    assert report["baseline"] == alone
    assert report | corruption_metrics(report, alone) == report
    larger = build(seed=1, image_size=64)  # has to be shown them at its own size
    report = measured(ours, split, baseline=larger)
    assert report["baseline"] == measured(larger, split)
    assert report["errors"] == measured(ours, split)["errors"]
    with pytest.raises(ArgumentError, match=r"--baseline must have the classes .* other"):
        measured(ours, split, baseline=build(names=["digit_0", "digit_1", "other"]))


def test_figures_by_hand():
    ours = {"clean_error": 0.1, "errors": {"fog": [0.2, 0.4], "snow": [0.3, 0.6]}}
    theirs = {"clean_error": 0.2, "errors": {"fog": [0.3, 0.5], "snow": [0.4, 0.8]}}
    assert corruption_metrics(ours) == {"mean_corruption_error": pytest.approx(0.375)}
    metrics = corruption_metrics(ours, theirs)
    assert metrics["errors_over_baseline"] == pytest.approx({"fog": 0.6 / 0.8, "snow": 0.9 / 1.2})
    assert metrics["mean_corruption_error_over_baseline"] == pytest.approx(0.75)
    relative = (0.4 / 0.4 + 0.7 / 0.8) / 2
    assert metrics["relative_mean_corruption_error_over_baseline"] == pytest.approx(relative)
    assert "undefined" not in metrics


def test_what_a_baseline_leaves_undefined_is_none_with_the_reason():
    ours = {"clean_error": 0.1, "errors": {"fog": [0.2, 0.4], "snow": [0.3, 0.6]}}
    steady = {"clean_error": 0.4, "errors": {"fog": [0.3, 0.5], "snow": [0.4, 0.8]}}
    metrics = corruption_metrics(ours, steady)  # on fog just as on clean images
    assert metrics["mean_corruption_error_over_baseline"] == pytest.approx(0.75)
    assert metrics["relative_mean_corruption_error_over_baseline"] is None
    assert list(metrics["undefined"].values()) == [
        "the baseline is no worse than on clean images under fog"
    ]
    perfect = {"clean_error": 0.0, "errors": {"fog": [0.0, 0.0], "snow": [0.4, 0.8]}}
    metrics = corruption_metrics(ours, perfect)
    assert metrics["mean_corruption_error_over_baseline"] is None
    assert "makes no error under fog" in str(metrics["undefined"])


def write_folders(folder, split, size, severities=(1, 5)):
    for name in ASKED["corruptions"]:
        for severity in severities:
            for i, row in enumerate(split):
                path = folder / name / str(severity) / NAMES[row["label"]] / f"{i:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = np.array(row["image"].convert("RGB").resize((size, size)))
                Image.fromarray(corrupt(image, name, severity, seed=i)).save(path)
    return folder


def test_folders_of_the_input_size_are_not_resized_again(split, tmp_path):
    classifier = build(crop_pct=0.875)  # the processor would resize to 37 pixels, and crop
    folder = write_folders(tmp_path, split.select(range(0, 45, 5)), 32)
    (part,) = read_corrupted(folder, NAMES, classifier[1], ["fog"], [5])
    file = sorted((folder / "fog" / "5").rglob("*.png"))[4]
    assert torch.equal(
        part[4]["pixel_values"], torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    )
    report = measured(classifier, split, corrupted_dataset=folder)
    assert (report["num_corrupted_images"], report["num_resized"]) == (36, 0)
    assert measured(classifier, split, corrupted_dataset=folder, max_images=3)[
        "num_corrupted_images"
    ] == 12  # fmt: skip
    larger = write_folders(tmp_path / "larger", split.select(range(0, 45, 5)), 40)
    report = measured(classifier, split, corrupted_dataset=larger)
    assert (report["num_corrupted_images"], report["num_resized"]) == (36, 36)


def test_arrays_as_of_cifar(split, tmp_path):
    classifier, few = build(), split.select(range(0, 45, 3))
    images = [np.array(row["image"].convert("RGB")) for row in few]
    for name in ASKED["corruptions"]:
        pixels = [corrupt(image, name, severity, seed=i) for severity in range(1, 6)
                  for i, image in enumerate(images)]  # fmt: skip
        np.save(tmp_path / f"{name}.npy", np.stack(pixels))
    labels = np.array(few["label"], dtype=np.uint8)
    np.save(tmp_path / "labels.npy", np.tile(labels, 5))
    (part,) = read_corrupted(tmp_path, NAMES, classifier[1], ["fog"], [3])
    expected = corrupt(images[7], "fog", 3, seed=7)
    assert torch.equal(part[7]["pixel_values"], torch.from_numpy(expected).permute(2, 0, 1))
    assert [item["labels"] for item in part] == few["label"]

    array = measured(classifier, split, corrupted_dataset=tmp_path)
    folder = write_folders(tmp_path / "folders", few, 32)
    assert array["errors"] == measured(classifier, split, corrupted_dataset=folder)["errors"]
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match=r"fog.npy holds 75 images and labels.npy 15"):
        read_corrupted(tmp_path, NAMES, classifier[1], ["fog"], [3])


def test_what_a_folder_lacks_is_named(split, tmp_path):
    processor = build()[1]
    folder = write_folders(tmp_path, split.select(range(3)), 32, severities=[1])
    with pytest.raises(DataError, match=r"has no fog/2, snow/1, snow/2: add"):
        read_corrupted(folder, NAMES, processor, ["fog", "snow"], [1, 2])
    with pytest.raises(DataError, match=r"corrupted \(fog/1\).*not among.*digit_0"):
        read_corrupted(folder, ["a", "b", "c"], processor, ["fog"], [1])
    with pytest.raises(ArgumentError, match="at least 32 pixels a side, but the model's are 28"):
        measured(build(image_size=28), split)


def test_evaluate_reports_and_draws(digits_folder, tmp_path, capsys):
    for name, seed in (("model", 0), ("baseline", 1)):
        for part in build(seed=seed):
            part.save_pretrained(tmp_path / name)

    def run(**options):
        defaults = {"model": str(tmp_path / "model"), "dataset_name": str(digits_folder)}
        return evaluate(EvaluateArguments(num_workers=0, **{**defaults, **options}))

    report = run(
        corruptions=["fog", "contrast"], severities="2,4", baseline=str(tmp_path / "baseline"),
        pictures=str(tmp_path / "seen"), output=str(tmp_path / "report.json"), class_means=False,
    )["robustness"]  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["robustness"] == report
    assert list(report["errors"]) == ["fog", "contrast"]
    assert report["baseline"]["model"] == str(tmp_path / "baseline")
    shown = capsys.readouterr().out
    for text in ("severity 4", "over baseline", "mean of the 2", "not mCE", "100 % is as bad"):
        assert text in shown
    assert {"corruptions.png", "corrupted_images.png"} <= {
        path.name for path in (tmp_path / "seen").iterdir()
    }


def test_arguments_are_checked_at_once(tmp_path):
    def check(**options):
        EvaluateArguments(model="m", dataset_name="d", **options)

    with pytest.raises(ArgumentError, match=r"--corruptions: there is no 'rain'"):
        check(corruptions=["rain"])
    with pytest.raises(ArgumentError, match="--severities"):
        check(corruptions=["all"], severities="0-5")
    with pytest.raises(ArgumentError, match=r"--baseline .* give --corruptions"):
        check(baseline="b")
    with pytest.raises(ArgumentError, match=r"--corrupted_dataset .*nothing: there is no such"):
        check(corrupted_dataset=str(tmp_path / "nothing"))
