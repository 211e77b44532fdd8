"""Fixtures for all tests: no network, caches in temporary folders, small real images."""

import os

# Before any library reads them: nothing here may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers.utils import logging

from tests.hub_server.fixture import hub  # noqa: F401

logging.disable_progress_bar()

collect_ignore = ["fixtures"]  # they hold checkpoints, with their code


@pytest.fixture(autouse=True)
def _few_threads():
    # Two pytest workers on two cores: more threads would only get in each other's way.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _temporary_caches(tmp_path_factory):
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets_cache")
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """An imagefolder of scikit-learn's digits: train 40 and test 15 images of each of 0, 1, 2."""
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
