"""An index of images on disk: what is embedded, kept, dropped, refused and found."""

import json
import os
import shutil
import signal

import pytest
import torch
from datasets import load_dataset
from PIL import Image

from hf_protosphere.cli import main
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.retrieval.arguments import IndexArguments, SearchArguments
from hf_protosphere.retrieval.embedding import Embedder
from hf_protosphere.retrieval.image_index import FILE_NAME, ImageIndex
from hf_protosphere.retrieval.index import index
from hf_protosphere.retrieval.search import search
from tests.open_set.test_threshold import noise, save_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, with_snapshot=False)
    return str(folder)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i, name in enumerate(("a/0.png", "a/deep/1.jpg", "b/2.png", "3.PNG")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def built(photos, model, tmp_path):
    return tmp_path / "index", index(arguments(photos, model, tmp_path / "index"))


def arguments(photos, model, folder, **more):
    return IndexArguments(images=str(photos), model=model, index_dir=str(folder), **more)


def test_images_at_any_depth_are_embedded_as_the_model_does(photos, model, built):
    made = built[1]
    assert [image.path for image in made.images] == ["3.PNG", "a/0.png", "a/deep/1.jpg", "b/2.png"]
    embedder = Embedder.load(model)
    for image, embedding in zip(made.images, made.embeddings):
        alone = embedder([Image.open(photos / image.path)])[0]
        assert torch.allclose(embedding, alone, atol=1e-5)
    assert torch.allclose(made.embeddings.norm(dim=1), torch.ones(4))


def test_an_index_comes_back_as_it_was_and_datasets_reads_it(built):
    folder, made = built
    loaded = ImageIndex.load(folder)
    assert torch.equal(loaded.embeddings, made.embeddings)
    assert (loaded.images, loaded.origin) == (made.images, made.origin)
    table = load_dataset(str(folder), split="train")
    assert torch.equal(torch.tensor(table[:]["embedding"]), made.embeddings)


def test_search_finds_the_image_itself_first(photos, built):
    folder, _ = built
    loaded = ImageIndex.load(folder)
    found = loaded.search([Image.open(photos / "b/2.png")], k=50)
    assert found.rows.shape == (1, 4)
    assert loaded.name(found.rows[0, 0]) == "b/2.png"
    assert found.cosines[0, 0] == pytest.approx(1, abs=1e-5)
    assert torch.equal(loaded.search(loaded.embeddings, k=1).rows[:, 0], torch.arange(4))


def test_only_what_is_new_is_embedded(photos, model, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "index"
    made = index(arguments(photos, model, folder))
    assert "4 embedded, 0 as they were, 0 dropped" in capsys.readouterr().out
    (photos / "3.PNG").unlink()
    noise(9).save(photos / "new.png")
    noise(8).save(photos / "a/0.png")  # another image of the same size
    os.utime(photos / "a/0.png", ns=(1, 1))
    embedded = []
    embed_all = Embedder.embed_all

    def counted(self, images, **options):
        embedded.extend(images)
        return embed_all(self, images, **options)

    monkeypatch.setattr(Embedder, "embed_all", counted)
    again = index(arguments(photos, model, folder))
    assert sorted(path.name for path in embedded) == ["0.png", "new.png"]
    assert "4 images of 96 dimensions; 2 embedded, 2 as they were, 2 dropped" in (
        capsys.readouterr().out
    )
    fresh = ImageIndex.of_folder(photos, model)
    assert again.images == fresh.images
    assert torch.allclose(again.embeddings, fresh.embeddings, atol=1e-5)
    assert not torch.allclose(again.embeddings[0], made.embeddings[1], atol=1e-3)


def test_another_model_is_refused(photos, tmp_path, built):
    folder, made = built
    other = tmp_path / "other"
    checkpoint = save_checkpoint(other, with_snapshot=False)
    checkpoint.head.weight.data.neg_()
    checkpoint.save_pretrained(other)  # another head: the embeddings are the same
    made.check_model(Embedder.load(str(other)))
    next(checkpoint.protosphere.parameters()).data.mul_(1.01)
    checkpoint.save_pretrained(other)
    query = SearchArguments(index=str(folder), queries=[str(photos / "3.PNG")], model=str(other))
    for job, given in ((search, query), (index, arguments(photos, str(other), folder))):
        with pytest.raises(ArgumentError, match=r"not what the index was built with"):
            job(given)
    index(arguments(photos, str(other), folder, overwrite=True))
    search(query)


def test_an_index_of_other_images_is_not_replaced(photos, model, built, tmp_path):
    shutil.copytree(photos, tmp_path / "others")
    with pytest.raises(ArgumentError, match=r"index of other images, .*photos"):
        index(arguments(tmp_path / "others", model, built[0]))


def test_images_that_cannot_be_decoded(photos, model, tmp_path, caplog):
    (photos / "cut.png").write_bytes((photos / "3.PNG").read_bytes()[:200])
    with pytest.raises(DataError, match=r"1 of the images cannot be decoded: .*cut\.png"):
        index(arguments(photos, model, tmp_path / "i"))
    made = index(arguments(photos, model, tmp_path / "i", on_bad_image="skip"))
    assert len(made) == 4
    assert "Left out 1 images" in caplog.text


def test_a_folder_without_images_is_said(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match=r"--images .*empty holds no image"):
        index(arguments(tmp_path / "empty", model, tmp_path / "i"))


@pytest.mark.parametrize("how", ["cut", "changed", "other"])
def test_a_damaged_index_is_refused(built, how):
    folder, _ = built
    path = folder / FILE_NAME
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[:-100]
    elif how == "changed":  # a bit of an embedding
        content[len(content) // 2] ^= 1
    else:
        content = b"something else"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=r"is damaged or no index"):
        ImageIndex.load(folder)


def test_no_index(tmp_path):
    with pytest.raises(ArgumentError, match=r"is no index: `protosphere index` writes one"):
        ImageIndex.load(tmp_path)


def test_a_process_killed_while_it_writes_leaves_the_old_index(photos, model, built, python):
    folder, made = built
    noise(9).save(photos / "new.png")
    code = (
        "import os, signal, sys, pyarrow.parquet as pq\n"
        "from hf_protosphere.cli import main\n"
        "write = pq.write_table\n"
        "def killed(*args, **options):\n"
        "    write(*args, **options)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pq.write_table = killed\n"
        "main(sys.argv[1:])\n"
    )
    argv = ["index", str(photos), "--model", model, "--index_dir", str(folder)]
    ended = python("-c", code, *argv)
    assert ended.returncode == -signal.SIGKILL
    assert ImageIndex.load(folder).images == made.images
    main(argv)
    assert len(ImageIndex.load(folder)) == 5
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_index_and_images_can_be_moved_together(photos, model, tmp_path):
    index(arguments(photos, model, photos / "index"))
    photos.rename(tmp_path / "moved")
    loaded = ImageIndex.load(tmp_path / "moved/index")
    assert loaded.image(1).size == (50, 40)
    (tmp_path / "moved/a/0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png cannot be decoded"):
        loaded.image(1)


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


def test_measuring_needs_labels(built):
    with pytest.raises(ArgumentError, match=r"--evaluate needs labels"):
        search(SearchArguments(index=str(built[0]), evaluate=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give --queries, images to look for, or --evaluate"),
        ({"queries": ["nowhere.png"]}, r"--queries nowhere.png: there is no such"),
        ({"evaluate": True, "picture": "x.png"}, r"--evaluate takes no"),
        ({"evaluate": True, "recall_at": [0]}, r"--recall_at must be"),
        ({"evaluate": True, "k": 0}, r"k must be"),
    ],
)
def test_arguments_of_search_are_checked(given, message):
    with pytest.raises(ArgumentError, match=message):
        SearchArguments(index="i", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give one of --images"),
        ({"images": "nowhere"}, r"--images nowhere: there is no such folder"),
        ({"dataset_name": "x", "labels_from_folders": True}, r"--labels_from_folders is for"),
        ({"dataset_name": "x", "on_bad_image": "ignore"}, r"--on_bad_image must be"),
    ],
)
def test_arguments_of_index_are_checked(given, message):
    with pytest.raises(ArgumentError, match=message):
        IndexArguments(model="m", **given)
