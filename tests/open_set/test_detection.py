"""Known against unknown: metrics as anyone would count them, what `evaluate` says, and the choice of a score."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import DataError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.open_set.detection import best_score, compare_scores, detection_metrics, load_unknown_images
from hf_protosphere.open_set.scores import FITTED, SCORES, Outputs, fit_scores
from tests.open_set.test_scores import NUM_CLASSES, outputs


@pytest.mark.parametrize("digits", [1, 8])  # with and without ties
def test_figures_are_those_of_counting(digits):
    generator = torch.Generator().manual_seed(0)
    known = (torch.randn(70, generator=generator) + 1).mul(10**digits).round().div(10**digits)
    unknown = torch.randn(50, generator=generator).mul(10**digits).round().div(10**digits)
    metrics = detection_metrics(known, unknown)
    pairs = known[:, None] - unknown
    wins = (pairs > 0).double() + 0.5 * (pairs == 0).double()
    assert metrics["auroc"] == pytest.approx(wins.mean().item())
    accepted = [
        (unknown >= threshold).double().mean().item()
        for threshold in known
        if (known >= threshold).double().mean() >= 0.95
    ]
    assert metrics["fpr95"] == pytest.approx(min(accepted))
    scores, truth = torch.cat([known, unknown]).numpy(), np.repeat([1, 0], [70, 50])
    assert metrics["aupr"] == pytest.approx(average_precision_score(truth, scores))
    assert metrics["aupr_unknown"] == pytest.approx(average_precision_score(1 - truth, -scores))


def test_the_best_the_worst_and_the_useless_score():
    low, high = torch.rand(40), torch.rand(30) + 2
    best = detection_metrics(high, low)
    assert [*best.values()] == pytest.approx([1, 1, 1, 0])
    worst = detection_metrics(low, high)
    assert (worst["auroc"], worst["fpr95"]) == (0, 1)
    same = detection_metrics(torch.zeros(30), torch.zeros(10))
    assert [*same.values()] == pytest.approx([0.5, 0.75, 0.25, 1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    names = {i: f"digit_{i}" for i in range(3)}
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, id2label=names, rejection_threshold=0.2)
    folder = tmp_path_factory.mktemp("checkpoint")
    ProtoSphereForImageClassification(config).save_pretrained(folder)
    build_image_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory):
    """Images of noise, in a folder without classes."""
    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for i in range(20):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def run(checkpoint, data, **more):
    return evaluate(EvaluateArguments(model=str(checkpoint), dataset_name=str(data), num_workers=0, **more))


def test_the_report_holds_every_score_side_by_side(checkpoint, digits_folder, noise_folder, tmp_path, capsys):
    output, pictures = tmp_path / "report.json", tmp_path / "pictures"
    report = run(
        checkpoint, digits_folder, ood_dataset=str(noise_folder), output=str(output),
        pictures=str(pictures), batch_size=7,
    )  # fmt: skip
    printed = capsys.readouterr().out
    for text in ("known against", "(20 images)", "Mahalanobis", "FPR95", "unknown.png"):
        assert text in printed
    assert json.loads(output.read_text()) == report
    assert (pictures / "unknown.png").stat().st_size > 20_000

    model = ProtoSphereForImageClassification.from_pretrained(checkpoint).eval()

    def outputs_of(name, split):
        processor = build_image_processor(model.config)
        images = load_dataset(str(name), split=split)[:]["image"]
        with torch.no_grad():
            return model(pixels_of(images, processor))

    model.requires_grad_(False)
    known, unknown = outputs_of(digits_folder, "test"), outputs_of(noise_folder, "train")
    scores = {
        "cosine": lambda out: (out.embeddings @ model.prototypes.T).amax(-1),
        "max_softmax": lambda out: F.softmax(out.logits.double(), -1).amax(-1),
        "energy": lambda out: out.logits.double().exp().sum(-1).log(),
    }
    assert list(report["ood"]["scores"]) == [*scores, *FITTED]
    for name, score in scores.items():
        expected = detection_metrics(score(known), score(unknown))
        for metric, value in report["ood"]["scores"][name].items():
            assert value == pytest.approx(expected[metric], abs=0.03), (name, metric)
    for name in FITTED:
        assert all(0 <= value <= 1 for value in report["ood"]["scores"][name].values())
    rejected = report["ood"]["rejected"]
    assert rejected["known"] == known.is_unknown.double().mean().item()
    assert rejected["unknown"] == unknown.is_unknown.double().mean().item()


@pytest.mark.parametrize("score", ["mahalanobis", "vim"])
def test_the_score_of_the_model_is_what_it_holds(checkpoint, digits_folder, noise_folder, tmp_path, score):
    """Not what it would be fitted to on the training images, of which the threshold knows nothing."""
    model = ProtoSphereForImageClassification.from_pretrained(checkpoint).eval()
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 96, generator=generator) if score == "mahalanobis" else torch.empty(0, 96)
    model.hold_score(score, torch.randn(96, 5, generator=generator), centers)
    test = load_dataset(str(digits_folder), split="test")[:]["image"]
    with torch.no_grad():
        output = model(pixels_of(test, build_image_processor(model.config)))
        known = model.known_score(output.embeddings, output.logits).sort().values
        model.config.rejection_threshold = known[9:11].mean().item()
    model.save_pretrained(tmp_path)
    report = run(tmp_path, digits_folder, ood_dataset=str(noise_folder))
    assert report["ood"]["rejected"]["known"] == 10 / len(test)


def test_without_training_images_nothing_is_fitted(checkpoint, digits_folder, noise_folder, tmp_path, capsys):
    test = load_dataset(str(digits_folder), split="test")
    DatasetDict({"test": test}).save_to_disk(tmp_path / "data")
    scores = run(checkpoint, tmp_path / "data", ood_dataset=str(noise_folder))["ood"]["scores"]
    assert {name for name, of_score in scores.items() if of_score is None} == {*FITTED}
    assert "Mahalanobis (no training images)" in capsys.readouterr().out


def test_without_unknown_images_nothing_is_said_of_them(checkpoint, digits_folder):
    assert "ood" not in run(checkpoint, digits_folder, class_means=False)


def unknown_images(name, **more):
    return load_unknown_images(EvaluateArguments(model="m", dataset_name="d", ood_dataset=str(name), **more))


def test_labels_columns_and_splits_of_any_kind(digits_folder, noise_folder, tmp_path):
    assert len(unknown_images(digits_folder)) == 45  # the test split
    assert len(unknown_images(digits_folder, ood_split="train")) == 120
    assert len(unknown_images(digits_folder, max_eval_samples=10)) == 10
    photos = load_dataset(str(noise_folder), split="train").rename_column("image", "photo")
    photos.save_to_disk(tmp_path / "photos")
    split = unknown_images(tmp_path / "photos")
    assert (split.column_names, set(split["label"])) == (["image", "label"], {-1})


def test_errors(digits_folder, tmp_path):
    with pytest.raises(DataError, match=r"--ood_dataset /nowhere: there is no such file"):
        unknown_images("/nowhere")
    with pytest.raises(DataError, match=r"--ood_split dev: .* no such split, but train, test"):
        unknown_images(digits_folder, ood_split="dev")
    with pytest.raises(DataError, match=r"--ood_image_column photo: there is no such column"):
        unknown_images(digits_folder, ood_image_column="photo")
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match=r"no column of images: give --ood_image_column"):
        unknown_images(tmp_path / "text")


def auroc(score, known, unknown):
    scores = np.concatenate([score(x).numpy() for x in (known, unknown)])
    return roc_auc_score(np.repeat([1, 0], [len(known.labels), len(unknown.labels)]), scores)


def halved(known):
    """Of so many images every class is in both, whatever their order."""
    rows = torch.randperm(len(known.labels), generator=torch.Generator().manual_seed(0))
    first, second = known[rows[::2]], known[rows[1::2]]
    assert {*first.labels.tolist()} == {*second.labels.tolist()} == {*known.labels.tolist()}
    return first, second


def test_unknown_images_are_compared_with_the_half_that_was_not_fitted_on():
    (known, prototypes), (unknown, _) = outputs(81, noise=1.5), outputs(40, seed=2, turned=True)
    found = compare_scores(known, prototypes, unknown)
    assert [*found] == [*SCORES]
    even, odd = halved(known)
    for name in SCORES:
        halves = [
            auroc(fit_scores(prototypes, fitted)[name], measured, unknown)
            for fitted, measured in ((even, odd), (odd, even))
        ]
        assert found[name]["auroc"] == pytest.approx(np.mean(halves))
        assert found[name]["fpr95"] <= 1


def test_classes_that_are_left_out_are_nowhere():
    known, prototypes = outputs(100, noise=1.5)
    found = compare_scores(known, prototypes)
    expected = dict.fromkeys(SCORES, 0.0)
    for c in range(NUM_CLASSES):  # as many groups as classes
        others = [other for other in range(NUM_CLASSES) if other != c]
        own, rest = known.labels == c, known.labels != c
        inside = Outputs(known.embeddings[rest], known.logits[rest][:, others], known.labels[rest])
        outside = Outputs(known.embeddings[own], known.logits[own][:, others], known.labels[own])
        first, second = halved(inside)
        for fitted, measured in ((first, second), (second, first)):
            for name, score in fit_scores(prototypes[others], fitted).items():
                expected[name] += auroc(score, measured, outside) / (2 * NUM_CLASSES)
    assert {name: row["auroc"] for name, row in found.items()} == pytest.approx(expected)


def test_many_classes_are_left_out_in_groups():
    known, _ = outputs(96)
    prototypes = torch.randn(12, 12).double()
    logits = torch.randn(96, 12).double()
    assert [*compare_scores(Outputs(known.embeddings, logits, torch.arange(96) % 12), prototypes)] == [*SCORES]


def test_where_nothing_can_be_left_out_the_cosine_stays():
    known, prototypes = outputs(30)
    same = Outputs(known.embeddings, known.logits, torch.zeros(30, dtype=torch.int64))
    assert compare_scores(same, prototypes) == {}
    assert best_score({}) == "cosine"


@pytest.mark.parametrize(("energy", "chosen"), [(0.9, "cosine"), (0.909, "cosine"), (0.92, "energy")])
def test_another_score_has_to_be_clearly_better(energy, chosen):
    compared = {"cosine": {"auroc": 0.9}, "max_softmax": {"auroc": 0.8}, "energy": {"auroc": energy}}
    assert best_score(compared) == chosen
    assert best_score(compared | {"vim": {"auroc": 0.93}}) == "vim"
