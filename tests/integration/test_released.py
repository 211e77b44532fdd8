"""What was released to model_cards/ loads, and its card says what was measured."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

import hf_protosphere  # noqa: F401  (registers its models with the Auto classes)
from hf_protosphere.arguments.parsing import read_yaml
from hf_protosphere.training.arguments import TrainArguments
from tests import ROOT

FOLDER = ROOT / "model_cards" / "airnet-cifar10"


def test_it_classifies_by_the_pipeline():
    sky = np.full((32, 32, 3), (120, 170, 230), np.uint8)
    sky[14:18, 4:28] = 250  # something bright and long in it
    scores = pipeline("image-classification", str(FOLDER), top_k=10)(Image.fromarray(sky))
    assert sum(score["score"] for score in scores) == pytest.approx(1, abs=1e-5)
    assert {"airplane", "ship"} & {score["label"] for score in scores[:3]}


def test_its_prototypes_are_as_far_apart_as_its_card_says():
    model = AutoModelForImageClassification.from_pretrained(FOLDER)
    cosines = (model.prototypes @ model.prototypes.T)[~torch.eye(10, dtype=torch.bool)]
    assert cosines.mean().item() == pytest.approx(-1 / 9, abs=0.01)
    metrics, card = json.loads((FOLDER / "metrics.json").read_text()), (FOLDER / "README.md").read_text()
    assert f"**{metrics['test']['accuracy']:.2%} accuracy**".replace("%", " %") in card
    attained = metrics["test"]["neural_collapse"]["attained"]["nc1_cdnv"]
    assert re.search(rf"NC1 CDNV \| .* \| {attained:.1f} %", card)


def test_its_arguments_train_it_again():
    arguments = TrainArguments(**read_yaml(str(FOLDER / "training_arguments.yaml"), TrainArguments))
    assert (arguments.backbone, arguments.optimizer, arguments.epochs) == ("airnet", "muon", 16)
