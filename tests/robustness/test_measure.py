"""Errors on corrupted images: those of a plain loop, beside a baseline, of ready-made sets; and the
table of them: every error, every mean, and what they mean."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import hf_protosphere.robustness
from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.robustness.corruptions import corrupt
from hf_protosphere.robustness.measure import (
    corruption_errors,
    corruption_metrics,
    format_robustness,
)
from tests.robustness.test_corrupted_data import ASKED, NAMES, write_arrays, write_folders


def build(seed=0, names=NAMES, **config):
    torch.manual_seed(seed)
    defaults = {"backbone": "test_resnet", "image_size": 32, "id2label": dict(enumerate(names))}
    config = ProtoSphereConfig(**defaults | config)
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


def test_batches_and_workers_change_nothing(split):
    classifier = build()
    first = measured(classifier, split)
    assert measured(classifier, split, batch_size=7, num_workers=2) == first
    other = measured(classifier, split, seed=1)
    assert other["clean_error"] == first["clean_error"]


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
    assert list(metrics["undefined"].values()) == ["the baseline is no worse than on clean images under fog"]
    perfect = {"clean_error": 0.0, "errors": {"fog": [0.0, 0.0], "snow": [0.4, 0.8]}}
    metrics = corruption_metrics(ours, perfect)
    assert metrics["mean_corruption_error_over_baseline"] is None
    assert "makes no error under fog" in str(metrics["undefined"])


def test_of_ready_made_images_those_of_another_size_are_counted(split, tmp_path):
    classifier, few = build(crop_pct=0.875), split.select(range(0, 45, 5))
    folder = write_folders(tmp_path, few, 32)
    report = measured(classifier, split, corrupted_dataset=folder)
    assert (report["num_images"], report["num_corrupted_images"]) == (45, 36)
    assert report["num_resized"] == 0
    fewer = measured(classifier, split, corrupted_dataset=folder, max_images=3)
    assert fewer["num_corrupted_images"] == 12
    larger = write_folders(tmp_path / "larger", few, 40)
    report = measured(classifier, split, corrupted_dataset=larger)
    assert (report["num_corrupted_images"], report["num_resized"]) == (36, 36)


def test_arrays_and_folders_of_the_same_images_give_the_same_errors(split, tmp_path):
    classifier, few = build(), split.select(range(0, 45, 3))
    array = measured(classifier, split, corrupted_dataset=write_arrays(tmp_path, few))
    folder = write_folders(tmp_path / "folders", few, 32)
    assert array["errors"] == measured(classifier, split, corrupted_dataset=folder)["errors"]


def test_images_that_are_too_small_are_refused(split):
    with pytest.raises(ArgumentError, match="at least 32 pixels a side, but the model's are 28"):
        measured(build(image_size=28), split)


def test_a_lost_image_is_noticed_and_both_models_stay_as_they_were(split, monkeypatch):
    ours, baseline = build(seed=0), build(seed=1)
    ours[0].train()
    gather = Accelerator.gather_for_metrics
    monkeypatch.setattr(Accelerator, "gather_for_metrics", lambda self, x: tuple(t[1:] for t in gather(self, x)))
    with pytest.raises(RuntimeError, match=r"^corruptions: 210 images .* there are 225\.$"):
        measured(ours, split, baseline=baseline)  # 15 batches of the images, clean and corrupted
    assert [part.training for part in (ours[0], baseline[0])] == [True, False]


def test_the_room_offers_what_is_documented():
    assert hf_protosphere.robustness.corruption_errors is corruption_errors
    with pytest.raises(AttributeError, match="has no attribute 'corrupt_errors'"):
        hf_protosphere.robustness.corrupt_errors  # noqa: B018


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
    assert {"corruptions.png", "corrupted_images.png"} <= {path.name for path in (tmp_path / "seen").iterdir()}


OURS = {"clean_error": 0.1, "errors": {"fog": [0.2, 0.4], "snow": [0.3, 0.6]}}
THEIRS = {"clean_error": 0.2, "errors": {"fog": [0.3, 0.5], "snow": [0.4, 0.8]}}


def report(ours=OURS, baseline=None, **more):
    whole = {"num_images": 45, "severities": [2, 4], **ours, **more}
    whole |= corruption_metrics(ours, baseline)
    if baseline:
        whole["baseline"] = {"model": "user/alexnet", **baseline, **corruption_metrics(baseline)}
    return whole


def cells(table):
    """The numbers behind each row's name."""
    found = {}
    for line in table.splitlines():
        words = line.split()
        numbers = [word for word in words if word.endswith("%")]
        found[" ".join(words[: len(words) - len(numbers)])] = numbers
    return found


def test_alone_it_shows_errors_and_their_mean():
    table = format_robustness(report())
    header = table.splitlines()[0]
    assert header.split() == [
        "error",
        "under",
        "corruption",
        "severity",
        "2",
        "severity",
        "4",
        "mean",
    ]
    rows = cells(table)
    assert rows["(clean images)"] == ["10.0%"]
    assert rows["fog"] == ["20.0%", "40.0%", "30.0%"]
    assert rows["snow"] == ["30.0%", "60.0%", "45.0%"]
    assert rows["mean of the 2"] == ["37.5%"]
    assert "not mCE" in table
    assert "baseline;" not in table
    assert "AlexNet" not in table


def test_beside_a_baseline_it_shows_the_benchmarks_metrics():
    table = format_robustness(report(baseline=THEIRS))
    rows = cells(table)
    assert rows["(clean images)"] == ["10.0%", "20.0%"]
    assert rows["fog"] == ["20.0%", "40.0%", "30.0%", "40.0%", "75.0%"]  # 0.6 / 0.8
    assert rows["snow"] == ["30.0%", "60.0%", "45.0%", "60.0%", "75.0%"]
    assert rows["mean of the 2"] == ["37.5%", "50.0%", "75.0%"]
    assert rows["mean of what is lost to clean images"] == ["93.8%"]  # (0.4/0.4 + 0.7/0.8) / 2
    assert "100 % is as bad as the baseline, user/alexnet." in table


def test_what_is_undefined_is_blank_with_the_reason():
    perfect = {"clean_error": 0.0, "errors": {"fog": [0.0, 0.0], "snow": [0.4, 0.8]}}
    table = format_robustness(report(baseline=perfect))
    rows = cells(table)
    assert rows["fog"] == ["20.0%", "40.0%", "30.0%", "0.0%"]
    assert rows["mean of the 2"] == ["37.5%", "30.0%"]
    assert "Undefined: the baseline makes no error under fog." in table


def test_of_ready_made_images_it_says_how_many_were_resized():
    table = format_robustness(report(num_corrupted_images=40, num_resized=15))
    last = table.splitlines()[-1]
    assert last.startswith("Of 40 images that were corrupted already 25 had the model's input size")
    assert last.endswith("15 were resized and cropped.")
