"""`protosphere add-class`: from images on disk to a checkpoint that knows them."""

import dataclasses
import json
import os
import shutil
import signal
import unicodedata
from multiprocessing import get_context
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from datasets import load_dataset
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.cli import main
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.metrics.snapshot import SnapshotCollector
from hf_protosphere.open_set.threshold import OpenSetClassifier
from hf_protosphere.runs.loading import load_classifier
from hf_protosphere.runs.snapshots import SNAPSHOT, load_snapshot, save_snapshot
from hf_protosphere.transfer.add_class import add_class
from hf_protosphere.transfer.arguments import AddClassArguments

NAMES = ["digit_0", "digit_1", "digit_2"]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A folder with a sub-folder for each of two letters, three images each."""
    folder = tmp_path_factory.mktemp("letters")
    for letter in "AB":
        (folder / letter).mkdir()
        for i in range(3):
            image = Image.new("L", (12, 12))
            ImageDraw.Draw(image).text((2 + i, 0), letter, fill=255)
            image.resize((32, 32)).save(folder / letter / f"{i}.png")
    return folder


@pytest.fixture
def make_run(tmp_path, digits_folder):
    """`make_run(name, **config)`: a checkpoint with a snapshot and what else a run leaves."""

    def make(name="run", **config):
        torch.manual_seed(0)
        config = {"backbone": "test_resnet", "image_size": 32, "projection": "linear"} | config
        config = ProtoSphereConfig(**config, projection_dim=16, id2label=dict(enumerate(NAMES)))
        model = ProtoSphereForImageClassification(config).eval()
        processor = build_image_processor(config)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        test = load_dataset(str(digits_folder), split="test")[:]
        with torch.no_grad():
            embeddings = model(pixels_of(test["image"], processor)).embeddings
        collector = SnapshotCollector(model.prototypes)
        collector.update(embeddings, torch.tensor(test["label"]))
        save_snapshot(collector.snapshot(NAMES, "test"), tmp_path / name / SNAPSHOT)
        (tmp_path / name / "results.json").write_text('{"best_epoch": 3}')
        (tmp_path / name / "notes.txt").write_text("mine")
        return SimpleNamespace(folder=tmp_path / name, model=model, processor=processor)

    return make


def arguments(folder, **options):
    return AddClassArguments(folder=str(folder), **options)


def mean_embedding(run, files):
    with torch.no_grad():
        pixels = pixels_of([Image.open(file) for file in sorted(files)], run.processor)
        return run.model(pixels).embeddings.mean(0)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("prototypes", "centre"), [("learned", True), ("learned", False), ("class_means", True)])
def test_in_place_with_the_centre_of_learned_prototypes(make_run, letters, prototypes, centre):
    run = make_run(prototypes=prototypes)
    add_class(arguments(run.folder, name="A", images=[str(letters / "A")], center=centre))
    model, _ = load_classifier(str(run.folder))
    mean = mean_embedding(run, (letters / "A").iterdir())
    subtracted = prototypes == "learned" and centre
    centre_of_classes = load_file(run.folder / SNAPSHOT)["embeddings"].view(3, 15, -1).mean((0, 1))
    expected = F.normalize(mean - centre_of_classes if subtracted else mean, dim=0)
    torch.testing.assert_close(model.prototypes[3], expected)
    assert torch.equal(model.head.weight[:3], run.model.head.weight)
    assert model.config.id2label == dict(enumerate([*NAMES, "A"]))

    results = json.loads((run.folder / "results.json").read_text())
    assert results == {"best_epoch": 3, "added_classes": {"A": 3}}
    snapshot = load_snapshot(run.folder / SNAPSHOT)
    assert snapshot.class_names == [*NAMES, "A"]
    assert torch.equal(snapshot.prototypes, model.prototypes)
    torch.testing.assert_close(snapshot.class_means[3], F.normalize(mean, dim=0))
    assert (run.folder / "notes.txt").read_text() == "mine"
    assert not list(run.folder.parent.glob("*.unfinished"))
    answer = OpenSetClassifier.load(str(run.folder), 180)(Image.open(letters / "A" / "0.png"))
    assert set(answer.angles) == {*NAMES, "A"}


def test_a_second_class_beside_a_fixed_frame_is_centred_too(make_run, letters):
    run = make_run(prototypes="simplex_etf")
    centre = load_snapshot(run.folder / SNAPSHOT).center
    for letter in "AB":
        add_class(arguments(run.folder, name=letter, images=[str(letters / letter)]))
    model, _ = load_classifier(str(run.folder))
    expected = F.normalize(mean_embedding(run, (letters / "B").iterdir()) - centre, dim=0)
    torch.testing.assert_close(model.prototypes[4].detach(), expected, atol=1e-5, rtol=1e-4)


def test_files_and_folders_by_the_command_into_another_folder(make_run, letters, tmp_path, capsys):
    run, more = make_run(), tmp_path / "more"
    before = contents(run.folder)
    nested = tmp_path / "photos" / "deeper"
    shutil.copytree(letters / "A", nested)
    (nested / "readme.txt").write_text("no image")
    words = [tmp_path / "photos", letters / "B" / "0.png", "--output_dir", more]
    main(["add-class", *map(str, [run.folder, "AB", *words])])
    assert f"{more}: 4 classes, new are AB" in capsys.readouterr().out
    assert contents(run.folder) == before
    assert json.loads((more / "results.json").read_text())["added_classes"] == {"AB": 4}
    assert load_snapshot(more / SNAPSHOT).class_names == [*NAMES, "AB"]
    assert not (more / "notes.txt").exists()  # no file of ours
    main(["add-class", *map(str, [more, "B", letters / "B"])])
    added = json.loads((more / "results.json").read_text())["added_classes"]
    assert added == {"AB": 4, "B": 3}


def test_all_new_classes_of_a_data_set(make_run, letters, tmp_path):
    run = make_run()
    shutil.copytree(letters / "A", tmp_path / "data" / "train" / "digit_1")  # known: left alone
    for letter in "AB":
        shutil.copytree(letters / letter, tmp_path / "data" / "train" / letter)
    (tmp_path / "data" / "test" / "A").mkdir(parents=True)
    (tmp_path / "data" / "test" / "A" / "0.png").write_bytes(b"")  # of a split that is not read
    add_class(arguments(run.folder, dataset_name=str(tmp_path / "data")))
    model, _ = load_classifier(str(run.folder))
    assert list(model.config.id2label.values()) == [*NAMES, "A", "B"]
    center = load_snapshot(run.folder / SNAPSHOT).center
    for row, letter in ((3, "A"), (4, "B")):
        mean = mean_embedding(run, (letters / letter).iterdir())
        torch.testing.assert_close(model.prototypes[row], F.normalize(mean - center, dim=0))
    with pytest.raises(ArgumentError, match=r"the checkpoint knows all of its classes, A, B, dig"):
        add_class(arguments(run.folder, dataset_name=str(tmp_path / "data")))
    with pytest.raises(DataError, match=r"^--split dev: the data set has no such split, but train"):
        add_class(arguments(run.folder, dataset_name=str(tmp_path / "data"), split="dev"))


def test_a_name_that_is_there_in_another_form_is_refused(make_run, letters, tmp_path, capsys):
    run, images = make_run(), [str(letters / "A")]
    nfc, nfd = (unicodedata.normalize(form, "béret") for form in ("NFC", "NFD"))
    add_class(arguments(run.folder, name=f" {nfd}", images=images))
    assert load_classifier(str(run.folder))[0].config.class_names == [*NAMES, nfc]
    for name in (nfd, f"{nfc} ", "digit_1 "):
        with pytest.raises(ArgumentError, match=r"has a class '(béret|digit_1)' already: give anot"):
            add_class(arguments(run.folder, name=name, images=images))
    shutil.copytree(letters / "B", tmp_path / "data" / nfd)
    with pytest.raises(ArgumentError, match=r"the checkpoint knows all of its classes, béret"):
        add_class(arguments(run.folder, dataset_name=str(tmp_path / "data")))
    capsys.readouterr()
    add_class(arguments(run.folder, name="Béret", images=images))
    assert "differ in case alone stay apart: Béret." in capsys.readouterr().err


def test_images_of_a_class_are_walked_as_everywhere(make_run, letters, tmp_path, capsys):
    run = make_run()
    shutil.copytree(letters / "A", tmp_path / "A")
    (tmp_path / "A" / "more").symlink_to(letters / "B")
    shutil.copytree(letters / "B", tmp_path / "A" / ".trash")
    add_class(arguments(run.folder, name="A", images=[str(tmp_path / "A")]))
    assert f"{tmp_path / 'A'}: 6 images (0.png" in capsys.readouterr().err
    assert json.loads((run.folder / "results.json").read_text())["added_classes"] == {"A": 6}


def test_margins_and_spare_vertices_by_leave_one_out_are_said_and_kept(make_run, letters, capsys):
    run = make_run(prototypes="simplex_etf", reserved_classes=4)
    plain = make_run("plain", prototypes="simplex_etf", reserved_classes=4)
    pictures = [str(letters / "A")]
    add_class(arguments(run.folder, name="A", images=pictures, leave_one_out=True))
    add_class(arguments(run.folder, name="B", images=[str(letters / "B")], leave_one_out=True))
    said = capsys.readouterr().out
    model, _ = load_classifier(str(run.folder))
    margins = model.config.class_margins or [0.0] * 5
    assert f"By leaving out each image in turn: margin {margins[3]:.2f} of A; spare vertices taken: " in said
    assert f"margin {margins[4]:.2f} of B" in said

    snapshot = load_snapshot(plain.folder / SNAPSHOT)  # the same by hand
    images = [Image.open(file) for file in sorted((letters / "A").iterdir())]
    plain.model.add_classes(
        {"A": images}, plain.processor, center=snapshot.center, known=(snapshot.embeddings, snapshot.labels)
    )
    torch.testing.assert_close(model.prototypes[:4], plain.model.prototypes)
    assert (plain.model.config.class_margins or [0.0] * 4)[3] == margins[3]
    embeddings, labels = load_snapshot(run.folder / SNAPSHOT).known
    assert torch.equal(labels[: len(snapshot.labels)], snapshot.labels)
    assert labels[len(snapshot.labels) :].tolist() == [3, 4]  # which it holds no images of: their means
    assert torch.equal(embeddings[-2:], load_snapshot(run.folder / SNAPSHOT).class_means[3:])

    add_class(arguments(plain.folder, name="A", images=pictures))
    assert "By leaving out" not in capsys.readouterr().out
    config = ProtoSphereConfig.from_pretrained(plain.folder)
    assert (config.class_margins, config.reserved_classes) == (None, 4)


def test_without_a_snapshot_it_says_that_nothing_was_centred(make_run, letters, capsys):
    run = make_run()
    (run.folder / SNAPSHOT).unlink()
    with pytest.raises(ArgumentError, match="--leave_one_out needs images of known classes"):
        add_class(arguments(run.folder, name="A", images=[str(letters / "A")], leave_one_out=True))
    add_class(arguments(run.folder, name="A", images=[str(letters / "A")]))
    assert f"not centred, for want of a {SNAPSHOT}" in capsys.readouterr().out
    assert not (run.folder / SNAPSHOT).exists()


def test_a_calibrated_model_is_to_be_calibrated_again(make_run, letters, capsys):
    run = make_run(rejection_threshold=0.3, false_rejection_rate=0.05)
    add_class(arguments(run.folder, name="A", images=[str(letters / "A")]))
    assert f"`protosphere calibrate {run.folder} --dataset_name" in capsys.readouterr().out
    config = ProtoSphereConfig.from_pretrained(run.folder)
    assert (config.rejection_threshold, config.false_rejection_rate) == (0.3, None)


def test_errors_come_before_anything_is_written(make_run, letters, tmp_path):
    run = make_run()
    before = contents(run.folder)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG and no more")
    (tmp_path / "empty").mkdir()
    some = [str(letters / "A")]

    def fails(message, error=ArgumentError, folder=run.folder, **options):
        with pytest.raises(error, match=message):
            add_class(arguments(folder, **{"name": "A", "images": some} | options))

    bad = [*some, str(tmp_path / "bad.png")]
    fails(r"bad.png cannot be decoded", DataError, images=bad)
    fails(r"--images .*nothing: there is no such", images=[str(tmp_path / "nothing")])
    fails(r"--images .*empty: no images in there", images=[str(tmp_path / "empty")])
    fails(r"--folder .*run: the model has a class 'digit_1' already", name="digit_1")
    fails(r"--name '  ': give a name", name="  ")
    fails(r"--name 'caf.udce9': give a name in UTF-8", name=os.fsdecode(b"caf\xe9"))
    fails(r"user/digits is not a folder here: give --output_dir", folder="user/digits")
    linear = make_run("linear", objective="cross_entropy").folder
    fails(r"--folder .*linear: add_classes needs prototypes", folder=linear)
    assert contents(run.folder) == before
    snapshot = load_snapshot(run.folder / SNAPSHOT)
    for change, message in (
        ({"class_names": ["a", "b", "c"]}, r"its snapshot\.safetensors is of other classes"),
        ({"class_means": snapshot.class_means * float("nan")}, r"snapshot\.safetensors .*finite"),
    ):
        save_snapshot(dataclasses.replace(snapshot, **change), run.folder / SNAPSHOT)
        fails(message)
    assert before == contents(run.folder) | {SNAPSHOT: before[SNAPSHOT]}


def test_a_checkpoint_that_would_not_load_does_not_replace_one_that_does(make_run, letters):
    run = make_run()
    before = contents(run.folder)
    add = ProtoSphereForImageClassification.add_classes

    def add_badly(model, *args, **options):
        means = add(model, *args, **options)
        with torch.no_grad():
            model.head.weight[-1] = float("nan")
        return means

    with (
        patch.object(ProtoSphereForImageClassification, "add_classes", add_badly),
        pytest.raises(ArgumentError, match=r"^the new checkpoint .*finite"),
    ):
        add_class(arguments(run.folder, name="A", images=[str(letters / "A")]))
    assert contents(run.folder) == before


@pytest.mark.parametrize(("before", "classes"), [("results.json", 3), ("backbones.py", 4), ("model.safetensors", 4)])
def test_a_killed_process_leaves_the_folder_as_it_was_or_as_it_would_be(make_run, letters, before, classes):
    run = make_run()
    replace = os.replace

    def words(name):
        return ["add-class", *map(str, (run.folder, name, letters / name))]

    def replace_or_die(source, target):
        here = target.parent == run.folder or classes == 3  # or in what is not yet whole
        if target.name == before and here:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def die_there():
        with patch("hf_protosphere.runs.files.os.replace", replace_or_die):
            main(words("A"))

    process = get_context("fork").Process(target=die_there, daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert load_classifier(str(run.folder))[0].config.num_labels == classes
    assert len(load_snapshot(run.folder / SNAPSHOT).prototypes) == classes
    main(words("B"))  # what the other left is no hindrance
    assert load_classifier(str(run.folder))[0].config.num_labels == classes + 1
    assert not list(run.folder.parent.rglob(".*.unfinished"))


def test_the_folder_may_be_the_current_one(make_run, letters, monkeypatch):
    run = make_run()
    monkeypatch.chdir(run.folder)
    main(["add-class", ".", "A", str(letters / "A")])
    assert load_classifier(".")[0].config.num_labels == 4
