"""The command `search`: neighbours as a table, a picture and JSON, and how good they are."""

import json
import shutil

import pytest
from PIL import Image

import hf_protosphere.retrieval.search as job
from hf_protosphere.cli import main
from hf_protosphere.errors import ArgumentError
from hf_protosphere.retrieval.arguments import SearchArguments
from hf_protosphere.retrieval.image_index import ImageIndex
from hf_protosphere.retrieval.search import search


def test_the_command_searches_and_draws(photos, model, tmp_path, capsys):
    folder, picture = str(tmp_path / "i"), tmp_path / "neighbours.png"
    main(["index", str(photos), "--model", model, "--index_dir", folder, "--labels_from_folders"])
    queries = [str(photos / "a/0.png"), str(photos / "b")]
    capsys.readouterr()
    main(["search", folder, *queries, "--k", "2", "--picture", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [queries[0], "label", "cosine"]
    assert lines[2].split() == ["a/0.png", "a", "1.0000"]
    assert lines[-1] == str(picture)
    assert Image.open(picture).size[0] > 300
    main(["search", folder, *queries, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [len(found) for found in report.values()] == [4, 4]
    assert report[queries[1] + "/2.png"][0]["label"] == "b"


def test_retrieval_of_a_data_set_is_measured(digits_folder, model, tmp_path, capsys):
    folder = str(tmp_path / "i")
    of = ["--dataset_name", str(digits_folder)]
    main(["index", *of, "--split", "train", "--model", model, "--index_dir", folder])
    assert "120 images" in capsys.readouterr().out
    own = search(SearchArguments(index=folder, evaluate=True, recall_at=[1, 3]))
    assert (own["num_queries"], own["num_images"], own["queries"]) == (120, 120, None)
    assert 1 / 3 < own["recall_at_1"] <= own["recall_at_3"] <= 1
    main(["search", folder, "--evaluate", *of, "--split", "test", "--json"])
    out = capsys.readouterr().out
    test = json.loads(out[out.index("{") :])
    assert test["num_queries"] == 45
    loaded = ImageIndex.load(folder)
    assert loaded.name(7) == "train 7"
    assert loaded.images[7].label == "digit_0"
    assert loaded.image(7).size == (32, 32)


def test_of_so_many_pairs_a_sample_of_the_queries_is_measured(digits_folder, model, tmp_path, monkeypatch):
    folder = str(tmp_path / "i")
    ImageIndex.of_dataset(str(digits_folder), model, split="train", num_workers=0).save(folder)
    whole = search(SearchArguments(index=folder, evaluate=True))
    assert whole["num_queries"] == 120
    found = search(SearchArguments(index=folder, evaluate=True, num_queries=60))
    assert found["num_queries"] == 60
    assert found["mean_average_precision"] == pytest.approx(whole["mean_average_precision"], abs=0.1)
    monkeypatch.setattr(job, "MOST_PAIRS", 60 * 120)
    monkeypatch.setattr(job, "FEWEST", 10)
    assert search(SearchArguments(index=folder, evaluate=True)) == found
    assert search(SearchArguments(index=folder, evaluate=True, num_queries=120)) == whole


def test_a_query_of_the_indexed_folder_has_the_label_that_the_index_says(photos, model, tmp_path):
    ImageIndex.of_folder(photos, model, labels_from_folders=True).save(tmp_path / "i")
    shutil.copy(photos / "a/0.png", tmp_path / "0.png")
    given = SearchArguments(index=str(tmp_path / "i"), queries=[str(photos / "b"), str(tmp_path / "0.png")])
    paths, labels, _ = job._embedded_queries(ImageIndex.load(given.index), given)
    assert dict(zip(paths, labels)) == {photos / "b/2.png": "b", tmp_path / "0.png": None}


def test_measuring_needs_labels(built):
    with pytest.raises(ArgumentError, match=r"--evaluate needs labels"):
        search(SearchArguments(index=str(built[0]), evaluate=True))


def test_without_labels_the_table_has_no_column_of_them(photos, built, capsys):
    search(SearchArguments(index=str(built[0]), queries=[str(photos / "3.PNG")], k=2))
    header, _, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == [str(photos / "3.PNG"), "cosine"]
    assert first.split() == ["3.PNG", "1.0000"]
    assert len(second.split()) == 2


def test_what_is_not_there_is_said(photos, built, digits_folder, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ArgumentError, match=r"--queries .*none: no images there"):
        search(SearchArguments(index=str(built[0]), queries=[str(tmp_path / "none")]))
    (tmp_path / "file").write_text("")
    picture = tmp_path / "file" / "x.png"
    with pytest.raises(ArgumentError, match=r"--picture .*file cannot be written"):
        search(SearchArguments(index=str(built[0]), queries=[str(photos)], picture=str(picture)))


def test_queries_of_other_classes_alone_cannot_be_measured(photos, model, digits_folder, tmp_path):
    ImageIndex.of_folder(photos, model, labels_from_folders=True).save(tmp_path / "i")
    with pytest.raises(ArgumentError, match=r"--dataset_name .* no class in common"):
        search(SearchArguments(index=str(tmp_path / "i"), evaluate=True, dataset_name=str(digits_folder)))
