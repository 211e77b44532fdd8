"""One file is one image, whoever reads it: every kind of picture, through every reader."""

import runpy
from functools import cache

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_protosphere import rgb
from hf_protosphere.data.arguments import BatchOptions
from hf_protosphere.data.image_cache import cached_pixels
from hf_protosphere.data.pixels import undecoded
from hf_protosphere.data.streaming import EvaluationStream
from hf_protosphere.data.transforms import EvaluationImages, TrainingImages, TrainTransform
from hf_protosphere.hub.demo import _uploaded
from hf_protosphere.open_set.threshold import OpenSetClassifier
from hf_protosphere.retrieval.embedding import Embedder
from hf_protosphere.retrieval.image_index import ImageIndex, IndexedImages, Origin
from hf_protosphere.robustness.corrupted_data import ResizedImages
from tests.open_set.test_threshold import save_checkpoint
from tests.pictures import PICTURES, SENSELESS, write_picture


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """{name: function of a file that returns what a model gets of it, (3, 32, 32) in [0, 255]}."""
    folder, seen = tmp_path_factory.mktemp("checkpoint"), []
    as_they_are = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    save_checkpoint(folder, with_snapshot=False, rejection_threshold=0.5, **as_they_are)
    classifier = OpenSetClassifier.load(str(folder))
    model, processor, config = classifier.model, classifier.processor, classifier.model.config
    model.protosphere.register_forward_pre_hook(
        lambda _, args, options: seen.append(args[0] if args else options["pixel_values"]),
        with_kwargs=True,
    )
    embedder = Embedder(str(folder), model.protosphere, processor, "fingerprint")
    found = ImageIndex(
        torch.zeros(1, embedder.dim), IndexedImages.of(1, path=["x"]), Origin(str(folder), "fingerprint")
    )
    task = "open-set-image-classification"
    classify = pipeline(task, model=model, image_processor=processor)
    transform = TrainTransform(config, BatchOptions())
    export = runpy.run_path(rgb.__file__)["rgb"]

    @cache
    def split(path):
        label = datasets.ClassLabel(names=["a"])
        features = datasets.Features(image=datasets.Image(), label=label)
        return datasets.Dataset.from_dict({"image": [str(path)], "label": [0]}, features)

    def stream(path):
        of_one = EvaluationStream(undecoded(split(path)).to_iterable_dataset(), processor)
        return 255 * next(iter(of_one))["pixel_values"]

    def by_model(read):
        def reader(path):
            seen.clear()
            read(path)
            return 255 * seen[-1][0]

        return reader

    def add_classes(path):
        model.add_classes({"new": [Image.open(path)]}, processor)
        model.remove_classes(["new"])

    return {
        "training": lambda p: 255 * TrainingImages(split(p), transform)[0]["pixel_values"],
        "evaluation": lambda p: 255 * EvaluationImages(split(p), processor)[0]["pixel_values"],
        "cache": lambda p: torch.tensor(cached_pixels(split(p), processor, 0, "train")[0]),
        "stream": stream,
        "robustness": lambda p: ResizedImages(split(p), processor)[0]["pixel_values"],
        "index": by_model(lambda p: embedder.embed_all([p])),
        "search": by_model(lambda p: found.search([Image.open(p)], model=embedder)),
        "open set": by_model(lambda p: classifier(Image.open(p))),
        "page": by_model(lambda p: classifier(_uploaded(p))),
        "pipeline of a file": by_model(lambda p: classify(str(p))),
        "pipeline of an image": by_model(lambda p: classify(Image.open(p))),
        "new classes": by_model(add_classes),
        "export": lambda p: torch.tensor(np.asarray(export(Image.open(p)))).permute(2, 0, 1),
    }  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_every_reader_sees_what_a_file_shows(readers, tmp_path, name):
    path, shown = write_picture(tmp_path, name)
    expected = torch.from_numpy(shown.copy()).permute(2, 0, 1).float()
    differences = {of: (read(path) - expected).abs().max().item() for of, read in readers.items()}
    assert {of: value for of, value in differences.items() if not value < 1.01} == {}


@pytest.mark.parametrize(("picture", "message"), SENSELESS.values(), ids=SENSELESS)
def test_every_reader_refuses_what_cannot_be_colours(readers, tmp_path, picture, message):
    picture.save(tmp_path / "a.tif")
    for read in readers.values():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "a.tif")
