"""Evaluation counts every image once, and its report can be read by people and programs."""

import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import PIL.Image
import pytest
import torch

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data import dataset, pixels
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.pixels import decode
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.evaluation.outcomes import interval
from hf_protosphere.metrics.neural_collapse import METRICS, NeuralCollapse
from hf_protosphere.prototypes import class_means
from hf_protosphere.runs.checkpoints import save_model
from hf_protosphere.runs.loading import load_classifier
from hf_protosphere.runs.snapshots import load_snapshot


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    names = {i: f"digit_{i}" for i in range(3)}
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, id2label=names)
    folder = tmp_path_factory.mktemp("checkpoint")
    ProtoSphereForImageClassification(config).save_pretrained(folder)
    build_image_processor(config).save_pretrained(folder)
    return folder


def test_figures_are_those_of_all_images_at_once(checkpoint, digits_folder, tmp_path, capsys):
    output = tmp_path / "reports" / "digits.json"
    report = evaluate(
        EvaluateArguments(
            model=str(checkpoint),
            dataset_name=str(digits_folder),
            batch_size=7,
            num_workers=0,
            output=str(output),
        )
    )
    assert json.loads(output.read_text()) == report
    assert "accuracy by class means" in capsys.readouterr().out

    model = ProtoSphereForImageClassification.from_pretrained(checkpoint).eval()
    data = load_image_dataset(str(digits_folder), validation_fraction=0)

    def embed(split):
        processor = build_image_processor(model.config)
        images = [image.convert("RGB") for image in data.splits[split][:]["image"]]
        with torch.no_grad():
            output = model(processor(images, return_tensors="pt")["pixel_values"])
        return output, torch.tensor(data.splits[split][:]["label"])

    (train, train_labels), (test, labels) = embed("train"), embed("test")
    means = class_means(train.embeddings, train_labels, 3)
    by_mean = (test.embeddings @ means.T).argmax(-1)
    assert report["num_images"] == 45
    assert report["accuracy"] == (test.logits.argmax(-1) == labels).float().mean().item()
    assert report["class_means_accuracy"] == (by_mean == labels).float().mean().item()
    metric = NeuralCollapse(3, 96)
    metric.update(test.embeddings, labels)
    expected = metric.compute(model.prototypes)
    for info in METRICS:
        assert report["neural_collapse"][info.name] == pytest.approx(expected[info.name], rel=1e-3)


def test_a_data_set_of_some_of_the_classes(checkpoint, digits_folder, tmp_path, capsys):
    for split in ("train", "test"):
        for name in ("digit_0", "digit_2"):
            shutil.copytree(digits_folder / split / name, tmp_path / split / name)
    report = evaluate(EvaluateArguments(model=str(checkpoint), dataset_name=str(tmp_path), num_workers=0))
    assert report["num_images"] == 30
    assert report["class_accuracies"][1] is None
    assert "class_means_accuracy" not in report
    assert report["neural_collapse"]["absent_classes"] == [1]
    assert report["neural_collapse"]["nc1_cdnv"] > 0
    printed = capsys.readouterr().out
    assert "(no image of digit_1: what needs every class is not defined)" in printed
    assert "(a class has no images in the split 'train' to take class means from)" in printed


def test_json_for_programs(checkpoint, digits_folder, capsys):
    evaluate(
        EvaluateArguments(
            model=str(checkpoint),
            dataset_name=str(digits_folder),
            split="train",
            class_means=False,
            num_workers=0,
            json=True,
        )
    )
    report = json.loads(capsys.readouterr().out)
    assert report["num_images"] == 120
    assert "class_means_accuracy" not in report


def test_errors(checkpoint, digits_folder, tmp_path):
    def run(**kwargs):
        defaults = {"model": str(checkpoint), "dataset_name": str(digits_folder), "num_workers": 0}
        return evaluate(EvaluateArguments(**{**defaults, **kwargs}))

    with pytest.raises(ArgumentError, match="there is no such folder"):
        run(model=str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ArgumentError, match=r"is no timm model, and no checkpoint either: .*No such file .*config\.json"
    ):
        run(model=str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"--split dev: .* train, test"):
        run(split="dev")


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """How often each file was decoded, by commands that find nothing in the cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    counts = Counter()

    def counted(value, *args, **kwargs):
        if isinstance(value, dict):  # not decoded already
            counts[value["path"]] += 1
        return decode(value, *args, **kwargs)

    for module in (pixels, dataset):
        monkeypatch.setattr(module, "decode", counted)
    return counts


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"class_means": False}, {"test": 45}),
        ({}, {"train": 120, "test": 45}),
        ({"split": "train", "class_means": False}, {"train": 120}),
        ({"split": "train"}, {"train": 120}),  # for the means, and to be measured
    ],
)
def test_only_what_is_measured_is_decoded(checkpoint, digits_folder, opened, options, expected):
    given = {"model": str(checkpoint), "dataset_name": str(digits_folder), "num_workers": 0, "check_images": False}
    first = evaluate(EvaluateArguments(**given, **options))
    counts = Counter()
    for path, count in opened.items():
        counts[Path(path).parts[-3]] += count
    assert counts == expected
    opened.clear()
    assert evaluate(EvaluateArguments(**given, **options)) == first
    assert not opened


def test_of_other_weights_nothing_is_found(checkpoint, digits_folder, tmp_path, opened):
    def run(folder):
        given = {"model": str(folder), "dataset_name": str(digits_folder), "num_workers": 0, "check_images": False}
        opened.clear()
        return evaluate(EvaluateArguments(**given, class_means=False))

    model, processor = load_classifier(str(checkpoint))
    first = run(checkpoint)
    model.set_prototypes(model.prototypes.flip(0))
    save_model(model, processor, tmp_path / "head")
    assert run(tmp_path / "head")["accuracy"] != first["accuracy"]
    assert not opened  # the backbone is the same
    with torch.no_grad():
        next(model.protosphere.backbone.parameters()).mul_(-1)
    save_model(model, processor, tmp_path / "backbone")
    run(tmp_path / "backbone")
    assert len(opened) == 45
    processor.image_mean = [0.1, 0.2, 0.3]
    save_model(model, processor, tmp_path / "processor")
    run(tmp_path / "processor")
    assert len(opened) == 45
    digits_folder = shutil.copytree(digits_folder, tmp_path / "digits")
    changed = digits_folder / "test" / "digit_1" / "041.png"
    PIL.Image.new("L", (32, 32)).save(changed)
    run(tmp_path / "processor")
    assert [*opened] == [str(changed)]  # the others are known by their content


def test_a_broken_image_in_a_split_that_is_not_read_stops_nothing(checkpoint, digits_folder, tmp_path, opened):
    folder = shutil.copytree(digits_folder, tmp_path / "digits")
    broken = folder / "train" / "digit_1" / "broken.png"
    broken.write_bytes(b"no image")

    def run(**options):
        arguments = {"model": str(checkpoint), "dataset_name": str(folder), "num_workers": 0}
        return evaluate(EvaluateArguments(**arguments, **options))

    assert run(class_means=False)["num_images"] == 45
    # Once to check it, once to measure it; no training image at all.
    assert {Path(path).parts[-3] for path in opened} == {"test"}
    assert set(opened.values()) == {2}
    assert len(opened) == 45
    with pytest.raises(DataError, match=r"1 of the train images cannot be decoded: .*broken\.png"):
        run()  # the class means are taken from them
    (folder / "test" / "digit_1" / "broken.png").write_bytes(b"no image")
    broken.unlink()
    assert run(split="train")["num_images"] == 120
    few = run(split="train", max_eval_samples=24, max_train_samples=60)  # of the class means
    assert few["num_images"] == 24


def test_pictures_on_request_and_folders_checked_first(checkpoint, digits_folder, tmp_path):
    def run(**options):
        arguments = {"model": str(checkpoint), "dataset_name": str(digits_folder)}
        return evaluate(EvaluateArguments(num_workers=0, **arguments, **options))

    run(pictures=str(tmp_path / "seen" / "there"))
    written = {path.name for path in (tmp_path / "seen" / "there").glob("*.*")} - {".protosphere"}
    assert written == {
        "cosines.png", "margins.png", "sphere.png", "sphere_narrow.png", "snapshot.safetensors", "report.html",
        "confusion.png", "reliability.png", "classes.csv", "confusion.csv", "errors.csv",
    }  # fmt: skip
    snapshot = load_snapshot(tmp_path / "seen" / "there" / "snapshot.safetensors")
    assert snapshot.class_names == ["digit_0", "digit_1", "digit_2"]
    assert (len(snapshot.own_cosines), snapshot.split) == (45, "test")

    (tmp_path / "file").write_text("")
    for flag in ("pictures", "output"):
        with pytest.raises(ArgumentError, match=f"--{flag} .*file.* cannot be written"):
            run(**{flag: str(tmp_path / "file" / "below" / "x")})


def test_classes_are_named_and_the_accuracy_has_an_interval(checkpoint, digits_folder, tmp_path, capsys):
    for name in ("digit_0", "digit_2"):
        shutil.copytree(digits_folder / "test" / name, tmp_path / "test" / name)
    arguments = {"model": str(checkpoint), "dataset_name": str(tmp_path), "num_workers": 0}
    report = evaluate(EvaluateArguments(**arguments))
    printed = capsys.readouterr().out
    right = round(30 * report["accuracy"])
    assert report["accuracy_interval"] == interval(right, 30)
    assert f"accuracy {right / 30:.2%}, 95 % interval " in printed
    rows = {row["class"]: row for row in report["classes"]}
    assert list(rows) == ["digit_0", "digit_1", "digit_2"]
    assert [row["recall"] for row in rows.values()] == report["class_accuracies"]
    without = rows.pop("digit_1")
    assert {key for key, value in without.items() if value is not None} == {"class", "images"}
    assert without["images"] == 0
    assert "(no image of digit_1: what needs every class is not defined)" in printed
    assert "digit_1" not in printed.split("confused with")[1].replace("digit_1 (", "")


def test_two_models_are_compared_on_the_same_images(checkpoint, digits_folder, tmp_path, capsys, monkeypatch):
    # Drawing takes seconds, and has tests of its own.
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b""))
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    order = ["digit_2", "digit_0", "digit_1"]  # classes meet by name, and so all are confused here
    config |= {"id2label": dict(enumerate(order)), "label2id": {name: i for i, name in enumerate(order)}}
    (other / "config.json").write_text(json.dumps(config))
    arguments = {"model": str(checkpoint), "dataset_name": str(digits_folder), "num_workers": 0}
    arguments |= {"class_means": False}

    same = evaluate(EvaluateArguments(**arguments, compare=str(checkpoint)))["comparison"]
    assert (same["difference"], same["only_ours_right"], same["p_value"]) == (0, 0, 1)
    assert f"of {checkpoint.name}"[:3] in capsys.readouterr().out
    seen = tmp_path / "seen"
    report = evaluate(EvaluateArguments(**arguments, compare=str(other), pictures=str(seen), json=True))
    assert json.loads(capsys.readouterr().out) == report  # and no names of pictures
    found, classes = report["comparison"], report["classes"]
    assert found["model"] == str(other)
    assert found["only_ours_right"] == round(45 * report["accuracy"])  # never both: the names differ
    assert found["difference"] == pytest.approx(report["accuracy"] - found["accuracy"])
    assert sum(row["images"] for row in classes) == 45
    lines = (seen / "differences.csv").read_text().splitlines()
    assert lines[0] == "row,file,given,predicted,confidence,other_predicted,other_confidence"
    assert len(lines) == 46

    config |= {"id2label": {0: "cat", 1: "digit_0", 2: "digit_1"}, "label2id": {"cat": 0, "digit_0": 1, "digit_1": 2}}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"test \(--compare .*other\) split has classes that are not .* digit_2"):
        evaluate(EvaluateArguments(**arguments, compare=str(other)))
    with pytest.raises(ArgumentError, match=r"--compare .*nothing: there is no such folder"):
        evaluate(EvaluateArguments(**arguments, compare=str(tmp_path / "nothing")))
