"""A small checkpoint, a folder of images, and an index of them."""

import pytest

from hf_protosphere.retrieval.image_index import ImageIndex
from tests.open_set.test_threshold import noise, save_checkpoint


@pytest.fixture(scope="session")
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
    """A folder with an index, and the index."""
    made = ImageIndex.of_folder(photos, model)
    made.save(tmp_path / "index")
    return tmp_path / "index", made
