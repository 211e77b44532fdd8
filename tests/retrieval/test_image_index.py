"""An index of images on disk: what it holds, how it comes back, and what is found in it."""

import dataclasses
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import load_dataset
from PIL import Image

import hf_protosphere.retrieval
from hf_protosphere.data.arguments import LabelledImages
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.retrieval.embedding import Embedder
from hf_protosphere.retrieval.image_index import INDEX, KEY, ImageIndex, IndexedImages


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


def forge(folder, change):
    """Write what `change` makes of the batch in an index, with the checksum of a whole file."""
    path = folder / INDEX
    batch = change(pa.ipc.open_file(pa.py_buffer(path.read_bytes())).get_batch(0))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
        file.flush()
        content = path.read_bytes()
        writer.write_batch(batch.slice(0, 0), {"bytes": str(len(content)), "crc32": str(zlib.crc32(content))})


def test_a_loaded_index_is_mapped_and_what_is_written_into_it_stays_in_memory(built):
    folder, made = built
    loaded = ImageIndex.load(folder)
    if (maps := Path("/proc/self/maps")).exists():
        spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if str(folder / INDEX) in line]
        place = loaded.embeddings.data_ptr()
        assert any(int(first, 16) <= place < int(last, 16) for first, last in spans)
    loaded.embeddings[0] = 0
    assert torch.equal(ImageIndex.load(folder).embeddings, made.embeddings)


@pytest.mark.parametrize("how", ["cut", "changed", "label", "other"])
def test_a_damaged_index_is_refused(built, how):
    folder, made = built
    path = folder / INDEX
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[:-100]
    elif how == "changed":  # a bit of an embedding
        content[content.index(made.embeddings[0].numpy().tobytes()[:8])] ^= 1
    elif how == "label":  # a letter of a path
        content[content.index(b"deep")] ^= 1
    else:
        content = b"something else"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=r"is damaged or no index"):
        ImageIndex.load(folder)


def images(**values):
    given = {name: [value] * 4 for name, value in values.items()}
    return lambda index: {"images": IndexedImages.of(4, **index.images.columns.to_pydict() | given)}


def origin(**values):
    return lambda index: {"origin": dataclasses.replace(index.origin, **values)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (images(path="../secret.png"), "path='../secret.png', .* is no path in the folder"),
        (images(path="a/../../secret.png"), "is no path in the folder"),
        (images(path="..\\\\secret.png"), "is no path in the folder"),
        (images(path="/etc/secret.png"), "is no path in the folder"),
        (images(path="a\0b.png"), "is no path in the folder"),
        (images(path=None), "path=None, .* is no path in the folder"),
        (images(path=None, row=3), "path=None, .* is no path in the folder"),
        (origin(folder=None), "does not say of what"),
        (
            origin(folder=None, dataset={"dataset_name": "x", "split": "y"}),
            "is no row of the split",
        ),
        (
            origin(dataset={"dataset_name": "x", "trust_remote_code": "y"}),
            "does not say of what",
        ),
        (origin(dataset={"split": 3}), "does not say of what"),
        (origin(folder=["x"]), "does not say of what"),
        (origin(model=None), "does not say of what"),
        (origin(model=5), "does not say of what"),
        (lambda index: {"embeddings": index.embeddings * torch.nan}, "not finite"),
        (lambda index: {"embeddings": index.embeddings * torch.inf}, "not finite"),
        (lambda index: {"embeddings": index.embeddings * 2}, "not of unit norm"),
        (lambda index: {"embeddings": index.embeddings[:0], "images": IndexedImages.of(0)}, "are none"),
        (lambda index: {"embeddings": index.embeddings.double()}, "has the columns"),
    ],
)
def test_what_an_index_says_is_not_believed(built, change, message):
    folder, made = built
    changes = change(made)
    if isinstance(getattr(changes.get("origin"), "folder", ""), list):
        said = json.dumps(dataclasses.asdict(changes["origin"]))  # as `save` would not write this
        forge(folder, lambda batch: batch.replace_schema_metadata({KEY: said}))
    else:
        dataclasses.replace(made, **changes).save(folder)
    with pytest.raises(ArgumentError, match=rf"is damaged or no index: .*{message}"):
        ImageIndex.load(folder)


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (pa.array([[1.0], [1.0, 0.0], [], None], pa.list_(pa.float32())), "has the columns"),
        (pa.nulls(4, pa.list_(pa.float32(), 2)), "is damaged or no index"),
    ],
)
def test_ragged_and_empty_embeddings_are_refused(built, embedding, message):
    folder, _ = built
    forge(folder, lambda batch: batch.set_column(batch.schema.get_field_index("embedding"), "embedding", embedding))
    with pytest.raises(ArgumentError, match=message):
        ImageIndex.load(folder)


def test_no_index(tmp_path):
    with pytest.raises(ArgumentError, match=r"is no index: `protosphere index` writes one"):
        ImageIndex.load(tmp_path)


def test_index_and_images_can_be_moved_together(photos, model, tmp_path):
    ImageIndex.of_folder(photos, model).save(photos / "index")
    photos.rename(tmp_path / "moved")
    loaded = ImageIndex.load(tmp_path / "moved/index")
    assert loaded.image(1).size == (50, 40)
    (tmp_path / "moved/a/0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png cannot be decoded"):
        loaded.image(1)


def test_a_split_is_indexed_with_its_labels(digits_folder, model, tmp_path):
    columns = LabelledImages().columns  # all that a command may give
    made = ImageIndex.of_dataset(str(digits_folder), model, split="test", columns=columns, num_workers=0)
    rows = load_dataset(str(digits_folder), split="test")
    names = rows.features["label"].names
    assert [image.label for image in made.images] == [names[label] for label in rows["label"]]
    assert [image.row for image in made.images] == list(range(45))
    assert made.name(7) == "test 7"
    made.save(tmp_path / "i")
    assert np.array_equal(ImageIndex.load(tmp_path / "i").image(7), rows[7]["image"])


def test_labels_of_folders_are_the_classes_of_training(photos, model, capsys):
    (photos / ".hidden").mkdir()
    shutil.copy(photos / "3.PNG", photos / ".hidden")
    (photos / "c").symlink_to(photos / "b")
    made = ImageIndex.of_folder(photos, model, labels_from_folders=True)
    labels = {image.path: image.label for image in made.images}
    assert labels == {"3.PNG": "photos", "a/0.png": "a", "a/deep/1.jpg": "a", "b/2.png": "b", "c/2.png": "c"}
    said = capsys.readouterr().err
    assert "5 images (3.PNG" in said
    assert "1 hidden (.hidden), 1 of other kinds (notes.txt)" in said


def test_of_a_previous_index_files_that_stayed_are_taken(photos, model, built):
    (photos / "3.PNG").unlink()
    images, embeddings = built[1].images, built[1].embeddings + 1  # not what the model says
    previous = dataclasses.replace(built[1], embeddings=embeddings)
    again = ImageIndex.of_folder(photos, model, previous=previous)
    assert [*again.images] == [*images][1:]
    assert torch.equal(again.embeddings, embeddings[1:])


def test_an_index_of_another_model_is_refused(photos, model, built):
    made = dataclasses.replace(built[1], origin=dataclasses.replace(built[1].origin, fingerprint="another"))
    with pytest.raises(ArgumentError, match=r"is not what the index was built with, which was"):
        made.search([Image.open(photos / "3.PNG")])
    with pytest.raises(ArgumentError, match=r"is not what the index was built with"):
        ImageIndex.of_folder(photos, model, previous=made)
    assert made.search(made.embeddings, k=1).rows.tolist() == [[0], [1], [2], [3]]


def test_the_room_offers_what_is_documented():
    assert hf_protosphere.retrieval.ImageIndex is ImageIndex
    assert hf_protosphere.retrieval.Embedder is Embedder
    with pytest.raises(AttributeError, match="has no attribute 'Index'"):
        hf_protosphere.retrieval.Index  # noqa: B018


def test_faiss_of_datasets_finds_the_same_in_the_file(built, tmp_path):
    faiss = pytest.importorskip("faiss")
    folder, made = built
    images = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    images.add_faiss_index("embedding", string_factory="Flat", metric_type=faiss.METRIC_INNER_PRODUCT)
    exact = made.search(made.embeddings, k=4)
    for embedding, rows, expected in zip(made.embeddings.numpy(), exact.rows.tolist(), exact.cosines.tolist()):
        cosines, found = images.get_nearest_examples("embedding", embedding, k=4)
        assert found["path"] == [made.name(row) for row in rows]
        assert cosines.tolist() == pytest.approx(expected, abs=1e-5)
