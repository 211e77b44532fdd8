"""A table of classes says what the model says, of every image once, also after a kill."""

import csv
import io
import json
import os
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

import hf_protosphere
from hf_protosphere.cli import main
from hf_protosphere.data.pixels import DecodedImages, pixels_of
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError, TrainingInterrupted
from hf_protosphere.inference import predict as module
from hf_protosphere.inference import predictions
from hf_protosphere.inference.arguments import PredictArguments
from hf_protosphere.inference.predict import image_paths, predict_into_file
from tests.open_set.test_threshold import noise, save_checkpoint

NAMES = ["a/0.png", "a/deep/0.jpg", "b/2.png", "broken.png", 'é, "3".PNG']


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a checkpoint, and the model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return str(folder), save_checkpoint(folder, with_snapshot=False)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Five images, one of them cut short, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    broken = tmp_path / "photos/broken.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (tmp_path / "photos/notes.md").write_text("no image")
    return tmp_path / "photos"


def predicted(model, *images, **more):
    """The rows of the table that `protosphere predict` writes."""
    options = {"num_workers": 0, "batch_size": 2, "output": "predictions.csv"} | more
    predict_into_file(PredictArguments(model=model, images=[*images] or None, **options))
    return kept(options["output"])


def kept(output):
    """The rows that --resume goes on from."""
    (path,) = Path(output).parent.glob(f".{Path(output).name}.rows/*.jsonl")
    return [*map(json.loads, path.read_text().splitlines())]


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected(model, images):
    """(M, K) scores and (M, K) cosines."""
    with torch.no_grad():
        output = model(pixels_of(images, build_image_processor(model.config)))
    return output.logits.softmax(-1), output.embeddings @ model.prototypes.T


def test_rows_say_what_the_model_says(saved, photos):
    folder, model = saved
    assert [row["image"] for row in predicted(folder, "photos", top_k=3)] == [f"photos/{n}" for n in NAMES]
    rows = rows_of("predictions.csv")
    assert [*rows[0]] == ["image", "class", "score", "cosine", "class_2", "score_2", "class_3", "score_3", "error"]
    good = [row for row in rows if row["image"] != "photos/broken.png"]
    scores, cosines = expected(model, [Image.open(row["image"]) for row in good])
    for row, own, near in zip(good, scores, cosines, strict=True):
        order = own.argsort(descending=True).tolist()
        assert row["error"] == ""
        for end, c in zip(("", "_2", "_3"), order):
            assert row[f"class{end}"] == model.config.id2label[c]
            assert float(row[f"score{end}"]) == pytest.approx(own[c].item(), abs=1e-5)
        assert float(row["cosine"]) == pytest.approx(near[order[0]].item(), abs=1e-5)
    (bad,) = (row for row in rows if row["image"] == "photos/broken.png")
    assert bad.pop("image")
    assert "Error" in bad.pop("error")
    assert {*bad.values()} == {""}
    assert {path.name for path in photos.parent.iterdir()} == {"photos", "predictions.csv", ".predictions.csv.rows"}


def test_every_kind_of_output_holds_the_same(saved, photos, capsys):
    tables = {}
    for kind in ("csv", "jsonl", "parquet"):
        tables[kind] = predicted(saved[0], "photos", output=f"new/out.{kind}")
        assert capsys.readouterr().out == (f"new/out.{kind}: 5 images, 0 resumed, 1 broken\n")
    lines = [*map(json.loads, Path("new/out.jsonl").read_text().splitlines())]
    table = pq.read_table("new/out.parquet")
    assert table.to_pylist() == tables["csv"] == tables["parquet"] == lines
    assert [row["class"] for row in lines] == table["class"].to_pylist()
    assert [row["score"] for row in lines] == table["score"].to_pylist()
    assert [*lines[0]] == table.column_names
    assert lines[3]["class"] is None
    rows = rows_of("new/out.csv")
    assert [row["class"] or None for row in rows] == table["class"].to_pylist()


def test_unknown_images_keep_their_nearest_class(photos, tmp_path, capsys):
    model = save_checkpoint(tmp_path / "model", with_snapshot=False)
    near = expected(model, [noise(i) for i in (0, 2)])[1].max(1).values
    model.config.update({"rejection_threshold": near.mean().item(), "calibration_temperature": 2.0})
    model.save_pretrained(tmp_path / "model")
    table = predicted("model", "photos/a/0.png", "photos/b/2.png", sort_into="sorted")
    assert [row["unknown"] for row in table] == (near < near.mean()).tolist()
    assert ", 1 unknown\n" in capsys.readouterr().out
    rows = rows_of("predictions.csv")
    assert sorted(row["unknown"] for row in rows) == ["false", "true"]
    assert all(row["class"] for row in rows)
    scores = expected(model, [noise(i) for i in (0, 2)])[0].max(1).values  # calibrated
    assert [float(row["probability"]) for row in rows] == pytest.approx(scores.tolist(), abs=1e-5)
    model.config.calibration_temperature = 1.0
    scores = expected(model, [noise(i) for i in (0, 2)])[0].max(1).values
    assert [float(row["score"]) for row in rows] == pytest.approx(scores.tolist(), abs=1e-5)
    unknown = rows[[row["unknown"] for row in rows].index("true")]
    (link,) = (tmp_path / "sorted/unknown").iterdir()
    assert link.samefile(unknown["image"])


def test_sets_are_lists_or_joined(photos, tmp_path):
    model = save_checkpoint(tmp_path / "model", with_snapshot=False)
    named = ["photos/a/0.png", "photos/b/2.png", "photos/broken.png"]
    scores = expected(model, [noise(0), noise(2)])[0]
    bound = 1 - scores.max(1).values.mean().item()  # so that one of the sets is empty
    model.config.update({"set_score": "lac", "set_coverage": 0.9, "set_thresholds": [bound + 0.02, *[bound] * 3]})
    model.save_pretrained(tmp_path / "model")
    thresholds = torch.tensor(model.config.set_thresholds)
    sets = [
        [model.config.id2label[c] for c in row.argsort(descending=True).tolist() if 1 - row[c] <= thresholds[c]]
        for row in scores
    ]
    assert sorted(map(len, sets))[0] == 0 < len(sets[0]) + len(sets[1])
    for kind in ("csv", "jsonl", "parquet"):
        table = predicted("model", *named, output=f"out.{kind}")
        assert [row["prediction_set"] for row in table] == [*sets, None]
    assert [json.loads(line)["prediction_set"] for line in Path("out.jsonl").read_text().splitlines()] == [*sets, None]
    assert pq.read_table("out.parquet")["prediction_set"].to_pylist() == [*sets, None]
    assert [row["prediction_set"] for row in rows_of("out.csv")] == ["|".join(names) for names in (*sets, [])]
    assert hf_protosphere.predict(model, named)["prediction_set"][:] == [*sets, None]


def test_cross_entropy_models_have_cosines_to_their_weights(photos, tmp_path):
    model = save_checkpoint(tmp_path / "linear", with_snapshot=False, objective="cross_entropy")
    row = predicted("linear", "photos/a/0.png")[0]
    scores, cosines = expected(model, [noise(0)])
    assert row["class"] == model.config.id2label[scores.argmax().item()]
    assert row["cosine"] == pytest.approx(cosines[0, scores.argmax()].item(), abs=1e-5)


def test_an_image_that_cannot_be_read_may_be_an_error(saved, photos):
    with pytest.raises(DataError, match=r"^--on_bad_image error: photos/broken\.png .*Mend") as it:
        predicted(saved[0], "photos", on_bad_image="error")
    assert "\n" not in str(it.value)
    Image.open("photos/a/0.png").save("photos/broken.png")
    predicted(saved[0], "photos", on_bad_image="error", resume=True)
    assert [row["error"] for row in rows_of("predictions.csv")] == [""] * 5


@pytest.mark.slow  # processes that are killed, and go on
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_process_killed_in_the_middle_of_a_line(saved, photos, kind, python, monkeypatch):
    whole = predicted(saved[0], "photos", output=f"whole.{kind}")
    code = (
        "import os, signal, sys\n"
        "from hf_protosphere.cli import main\n"
        "from hf_protosphere.inference import predict\n"
        "dumps, made = predict.json.dumps, []\n"
        "def killed(value, **options):\n"
        "    made.extend([value] if isinstance(value, dict) and 'image' in value else [])\n"
        "    if len(made) == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return dumps(value, **options)\n"
        "predict.json.dumps = killed\n"
        "main(sys.argv[1:])\n"
    )
    argv = ["predict", "photos", "--model", saved[0], "--output", f"out.{kind}",
            "--num_workers", "0", "--batch_size", "2"]  # fmt: skip
    assert python("-c", code, *argv).returncode == -signal.SIGKILL
    assert not os.path.exists(f"out.{kind}")
    (rows,) = (photos.parent / f".out.{kind}.rows").glob("*.jsonl")
    assert rows.read_bytes().count(b"\n") == 2
    with rows.open("a") as file:
        file.write('{"image": "photos/b/2.p')
    seen = []
    monkeypatch.setattr(module, "DecodedImages", counted(seen))
    main([*argv, "--resume"])
    assert sorted(seen) == [2, 3, 4]
    if kind == "parquet":
        assert pq.read_table("out.parquet").equals(pq.read_table("whole.parquet"))
    else:
        assert Path(f"out.{kind}").read_bytes() == Path(f"whole.{kind}").read_bytes()
    assert kept(f"out.{kind}") == whole


def counted(seen):
    """`DecodedImages` that add the rows that are read to a list."""

    class Counted(DecodedImages):
        def __getitems__(self, indices):
            seen.extend(indices)
            return super().__getitems__(indices)

    return Counted


def test_another_model_goes_on_with_nothing(saved, photos, tmp_path, monkeypatch):
    with pytest.raises(DataError):
        predicted(saved[0], "photos", on_bad_image="error")
    model = save_checkpoint(tmp_path / "other", with_snapshot=False)
    model.head.weight.data.neg_()
    model.save_pretrained(tmp_path / "other")
    seen = []
    monkeypatch.setattr(module, "DecodedImages", counted(seen))
    assert len(predicted("other", "photos", resume=True)) == len(seen) == 5


def test_a_signal_leaves_what_can_be_resumed(saved, photos, monkeypatch):
    class Stopping(DecodedImages):
        def __getitems__(self, indices):
            if 2 in indices:
                signal.raise_signal(signal.SIGTERM)
            return super().__getitems__(indices)

    monkeypatch.setattr(module, "DecodedImages", Stopping)
    with pytest.raises(TrainingInterrupted, match="the same command with --resume goes on"):
        predicted(saved[0], "photos")
    assert not os.path.exists("predictions.csv")
    seen = []
    monkeypatch.setattr(module, "DecodedImages", counted(seen))
    assert len(predicted(saved[0], "photos", resume=True)) == 5
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_sorted_into_folders(saved, photos, copy):
    noise(0).save("photos/b/0.png")  # of the class of a/0.png, and of its name
    table = predicted(saved[0], "photos", sort_into="sorted", copy=copy)
    placed = sorted((photos.parent / "sorted").glob("*/*"))
    good = [row for row in table if row["error"] is None]
    assert len(placed) == len(good) == 5
    assert all(path.is_symlink() != copy for path in placed)
    label = good[0]["class"]
    assert {"0.png", "0_2.png"} <= {p.name for p in placed if p.parent.name == label}
    for row in good:
        content = Path(row["image"]).read_bytes()
        assert content in [p.read_bytes() for p in placed if p.parent.name == row["class"]]
    predicted(saved[0], "photos/a/0.png", sort_into="sorted", copy=copy)  # which is there
    assert sorted((photos.parent / "sorted").glob("*/*")) == placed
    noise(0).resize((41, 50)).save("photos/a/0.png")
    predicted(saved[0], "photos/a/0.png", sort_into="other", copy=copy)
    assert len([*(photos.parent / "other").glob("*/0.png")]) == 1


def test_where_no_links_can_be_made_images_are_copied(saved, photos, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(22, "A required privilege is not held by the client")  # as Windows says

    monkeypatch.setattr(os, "symlink", refused)
    predicted(saved[0], "photos/b/2.png", sort_into="sorted")
    (path,) = (photos.parent / "sorted").glob("*/2.png")
    assert not path.is_symlink()
    assert path.read_bytes() == (photos / "b/2.png").read_bytes()


def test_a_class_called_unknown_has_a_folder_of_its_own(photos, tmp_path):
    rows = [{"image": f"photos/{n}", "class": "unknown", "error": None} for n in NAMES[:2]]
    for of_threshold, expected_names in (({}, {"unknown"}), ({"unknown": True}, {"unknown", "%75nknown"})):
        more = [of_threshold, dict.fromkeys(of_threshold, False)]
        text = "".join(json.dumps(row | unknown) + "\n" for row, unknown in zip(rows, more))
        (tmp_path / "rows.jsonl").write_text(text)
        root = tmp_path / f"sorted{len(of_threshold)}"
        module._sort(tmp_path / "rows.jsonl", root, copy=False)
        assert {path.name for path in root.iterdir()} == expected_names
    assert (root / "unknown/0.png").samefile("photos/a/0.png")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_finished_table_is_resumed_with_new_images_only(saved, photos, kind, monkeypatch, capsys):
    options = {"output": f"out.{kind}", "resume": True, "sort_into": "sorted"}
    before = predicted(saved[0], "photos", **options)
    seen = []
    monkeypatch.setattr(module, "DecodedImages", counted(seen))
    assert predicted(saved[0], "photos", **options) == before
    assert capsys.readouterr().out.endswith(f"out.{kind}: 5 images, all there before, 1 broken\n")
    noise(9).save("photos/new.png")
    rows = predicted(saved[0], "photos", **options)
    assert capsys.readouterr().out == f"out.{kind}: 6 images, 5 resumed, 1 broken\n"
    assert (len(seen), rows[:5], rows[5]["image"]) == (1, before, "photos/new.png")
    assert len([*(photos.parent / "sorted").glob("*/*")]) == 5
    assert len(predicted(saved[0], "photos", **options | {"resume": False})) == 6
    assert len(seen) == 7


def test_names_of_classes_that_no_file_can_have(photos, tmp_path):
    names = {0: "a/b", 1: "../c", 2: "..", 3: "ü x"}
    save_checkpoint(tmp_path / "model", with_snapshot=False, id2label=names)
    root = tmp_path / "sorted"
    root.mkdir()
    rows = [{"image": "photos/a/0.png", "class": name, "error": None} for name in names.values()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module._sort(tmp_path / "rows.jsonl", root, copy=False)
    assert {path.name for path in root.iterdir()} == {"a%2fb", "%2e.%2fc", "%2e%2e", "ü x"}
    assert len([*root.glob("*/0.png")]) == 4


def test_images_by_many_names(photos, monkeypatch):
    (photos.parent / "list.txt").write_text("photos/b/2.png\n\nphotos/gone.png\r\nphotos/b/2.png\n")
    assert image_paths(["list.txt"]) == ["photos/b/2.png", "photos/gone.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/b/2.png\n"))
    assert image_paths(["-", "photos/a/0.png"]) == ["photos/b/2.png", "photos/a/0.png"]
    assert image_paths(["photos/*/*.png"]) == ["photos/a/0.png", "photos/b/2.png"]
    assert image_paths(["photos/**/*.jpg", "photos"])[0] == "photos/a/deep/0.jpg"
    assert len(image_paths(["photos", "photos/a", "list.txt"])) == 6
    Image.new("RGB", (8, 8)).save("photos/[1].png")
    assert image_paths(["photos/[1].png"]) == ["photos/[1].png"]


def test_a_file_of_a_list_that_is_gone_is_a_row(saved, photos):
    (photos.parent / "list.txt").write_text("photos/b/2.png\nphotos/gone.png\n")
    good, gone = predicted(saved[0], "list.txt")
    assert good["error"] is None
    assert gone["error"].startswith("FileNotFoundError")


@pytest.mark.parametrize("labels", [{}, {"label": ["cat", "dog"]}])
def test_a_data_set_needs_no_labels(saved, photos, labels):
    features = Features({"picture": ImageFeature()} | {name: Value("string") for name in labels})
    columns = {"picture": ["photos/a/0.png", "photos/broken.png"]} | labels
    Dataset.from_dict(columns, features).to_parquet("data/train.parquet")
    options = {"dataset_name": "data", "split": "train"}
    good, bad = predicted(saved[0], **options)
    assert (good["image"], good["error"]) == ("0", None)
    assert good["class"] == predicted(saved[0], "photos/a/0.png")[0]["class"]
    assert (bad["image"], bad["class"]) == ("1", None)
    with pytest.raises(DataError, match=r"--split tset: the data set has no such split, but train"):
        predicted(saved[0], **options | {"split": "tset"})


def test_what_is_missing_is_said_before_anything_is_written(saved, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    for images, more, message in (
        (["photoss"], {}, r"--images photoss: no such file or folder, or no images in it"),
        (["empty"], {}, r"--images empty: no such"),
        (["photos/*.gif"], {}, r"--images photos/\*\.gif: no such"),
        (["gone.txt"], {}, r"--images gone\.txt cannot be read"),
        (["photos"], {"output": "file/out.csv"}, r"--output file cannot be written"),
        (["photos"], {"sort_into": "file"}, r"--sort_into file cannot be written"),
        (["photos"], {"top_k": 5}, r"--top_k 5: the model has 4 classes"),
    ):
        with pytest.raises(ArgumentError, match=message):
            predicted(saved[0], *images, **more)
    with pytest.raises(ArgumentError, match=r"--model ./gone: there is no such folder"):
        predicted("./gone", "photos")
    assert sorted(tmp_path.iterdir()) == before


def test_from_python(saved, photos):
    folder, model = saved
    files = [photos / name for name in NAMES]
    by_name = hf_protosphere.predict(folder, photos, num_workers=0)
    assert list(by_name["image"]) == [*map(str, files)]
    model.train()
    mixed = hf_protosphere.predict(model, [files[0], noise(1), str(files[3])], top_k=2)
    assert model.training
    assert list(mixed["image"]) == [str(files[0]), "1", str(files[3])]
    assert mixed[0]["class"] == by_name[0]["class"]
    assert mixed[0]["score"] == pytest.approx(by_name[0]["score"], abs=1e-5)
    scores, _ = expected(model.eval(), [noise(1)])
    assert mixed[1]["score"] == pytest.approx(scores.max().item(), abs=1e-5)
    assert mixed[2]["class"] is None
    features = Features({"img": ImageFeature()})
    table = hf_protosphere.predict(model, Dataset.from_dict({"img": [noise(1)]}, features))
    assert table[0]["image"] == "0"
    assert table[0]["class"] == mixed[1]["class"]
    assert len(hf_protosphere.predict(model, [])) == 0
    with pytest.raises(ArgumentError, match="--top_k"):
        hf_protosphere.predict(model, photos, top_k=0)
    with pytest.raises(DataError, match=r"--on_bad_image error: .*broken\.png"):
        hf_protosphere.predict(model, photos, on_bad_image="error", num_workers=0)


def test_large_batches_are_taken_in_parts(saved, photos, monkeypatch):
    alone = predicted(saved[0], "photos", batch_size=64)
    monkeypatch.setattr(predictions, "CPU_PART", 1)
    for row, other in zip(predicted(saved[0], "photos", batch_size=64), alone, strict=True):
        assert (row["class"], row["score"]) == (other["class"], pytest.approx(other["score"], abs=1e-5))


def test_workers_change_nothing(saved, photos):
    alone = predicted(saved[0], "photos")
    assert predicted(saved[0], "photos", num_workers=2) == alone
