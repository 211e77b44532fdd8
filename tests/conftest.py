"""Fixtures for all tests: no network, caches in temporary folders, small real images."""

import os

# Before any library reads them: nothing here may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The same figures on every machine; integration/test_gpu.py is run by `make test-gpu`.
if "PROTOSPHERE_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import gc
from pathlib import Path

import pytest

# Libraries are imported in the fixtures: pytest-xdist's controller, which runs no test, has no use for them.

collect_ignore = ["fixtures"]  # they hold checkpoints, with their code


def pytest_collection_finish():
    # What has been imported by now stays: searching it for garbage takes half a second, and
    # Accelerate searches at the end of every training.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # or extension modules report leaks at the exit


@pytest.fixture(autouse=True)
def _few_threads():
    # Two pytest workers on two cores: more threads would only get in each other's way.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _temporary_caches(tmp_path_factory):
    import datasets
    from transformers.utils import logging

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets_cache")
    datasets.disable_progress_bars()
    logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    # A fifth of the time of a short training: what a test leaves need not outlive the machine. That
    # files are synchronised has tests of its own, and other processes do it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved, to be asked for its lines, images and texts."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig

    def remember(figure, *args, **options):
        saved.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A Hub of its own for this test; huggingface_hub, datasets and transformers use it."""
    from huggingface_hub import HfFileSystem

    from tests.hub_server import HubServer
    from tests.hub_server.clients import use

    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        use(server.variables, monkeypatch)
        yield server
    HfFileSystem.clear_instance_cache()  # with what they remember of this Hub


@pytest.fixture(scope="session")
def forkserver(tmp_path_factory):
    """Processes that find torch and transformers imported: `tests.forked`."""
    from tests import forked

    with forked.server(tmp_path_factory.mktemp("home")):
        yield forked.CONTEXT


@pytest.fixture(scope="session")
def python(forkserver):
    """`python("-c", code, ...)`: what a fresh Python does, without this package's imports."""
    from tests import forked

    return forked.run


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A small checkpoint of five classes, which has learned nothing. Tests damage copies of it."""
    import torch

    from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification

    torch.manual_seed(0)
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=5)
    folder = tmp_path_factory.mktemp("saved")
    ProtoSphereForImageClassification(config).save_pretrained(folder)  # with an image processor
    return folder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """An imagefolder of scikit-learn's digits: train 40 and test 15 images of each of 0, 1, 2."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for label in range(3):
        images = digits.images[digits.target == label][:55]
        for i, pixels in enumerate(images):
            split = "train" if i < 40 else "test"
            path = folder / split / f"digit_{label}" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            array = np.kron(pixels, np.ones((4, 4))) * 255 / 16
            Image.fromarray(array.round().astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def browser():
    """Headless Chromium: the system's, or the one that playwright installs."""
    import shutil

    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        executable = shutil.which("chromium") or playwright.chromium.executable_path
        if not os.path.exists(executable):
            pytest.skip("needs Chromium: apt install chromium, or playwright install chromium")
        # Without a sandbox it also runs as root, as in containers; it only sees our own pages.
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()
