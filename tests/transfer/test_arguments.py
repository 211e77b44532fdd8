"""What to start from and how to adapt it: the arguments of training that follow from it."""

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.transfer.arguments import (
    LADDER,
    MODES,
    TRAINED_MODES,
    AddClassArguments,
    FinetuneArguments,
)


def finetuning(**options):
    return FinetuneArguments(model="x", dataset_name="y", report_to="none", **options)


def test_modes_and_shots_are_read_from_what_is_typed():
    assert finetuning().modes == list(LADDER)
    assert finetuning(shots=5).modes == ["auto"]
    assert finetuning(mode="knn").modes == ["knn"]
    assert finetuning(compare="head, full,head").modes == ["head", "full"]
    assert finetuning(compare="all").modes == list(MODES)
    assert finetuning().shot_counts == []
    assert finetuning(shots="10,1").shot_counts == [10, 1]
    assert finetuning(shots=5).shot_counts == [5]  # from YAML


def test_what_a_mode_is_to_training():
    arguments = finetuning(compare="all", decay=0.5, rank=4, objective="ntce", epochs=7)
    training = {mode: arguments.training(mode) for mode in TRAINED_MODES}
    adapted = {
        mode: (of_mode.freeze_backbone, of_mode.layer_decay, of_mode.lora_rank) for mode, of_mode in training.items()
    }
    assert adapted == {
        "full": (False, None, None),
        "head": (True, None, None),
        "layerwise": (False, 0.5, None),
        "lora": (False, None, 4),
    }
    assert {(t.objective, t.epochs, t.imprint) for t in training.values()} == {("ntce", 7, True)}
    assert arguments.training("full", epochs=3, objective="scl").epochs == 3
    assert finetuning().training("full").temperature is None  # training's own default


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": "full,magic"}, "--compare takes all or some of full, .* but got 'magic'"),
        ({"shots": "1,x"}, "--shots takes whole numbers"),
        ({"shots": "0"}, "--shots takes whole numbers"),
        ({"shots": "1", "images_per_class": 2}, "--shots and --images_per_class"),
        ({"trials": 0}, "--trials must be a whole number"),
        ({"decay": 1.5}, r"--decay must be in \(0, 1\]"),
        ({"mode": "magic"}, "--mode must be one of"),
        ({"mode": "full", "compare": "head"}, "--mode and --compare both say how"),
        ({"mode": "full", "decay": 0.5}, "--decay is for --mode layerwise, but got full"),
        ({"mode": "full", "rank": 8}, "--rank is for --mode lora, but got full"),
        ({"mode": "lora", "neighbors": 5}, "--neighbors is for --mode knn, but got lora"),
        ({"trials": 3}, "--trials 3 is for --shots only"),
        ({"min_steps": 3}, "--min_steps 3 is for --shots only"),
        ({"shots": 1, "pictures": True}, "--pictures True is not for --shots"),
        ({"shots": 1, "evaluate_every": 1}, "--evaluate_every 1 is not for --shots"),
        ({"shots": 1, "seed": 2**32 - 3}, r"--seed must be in .*, but got 4294967302"),
        ({"batch_size": 0}, "--batch_size must be a whole number"),
    ],
)
def test_arguments_that_cannot_work(options, message):
    with pytest.raises(ArgumentError, match=message):
        finetuning(**options)


def test_options_of_a_linear_head_wait_for_the_checkpoint_to_be_known():
    assert finetuning(mixup=0.2, label_smoothing=0.1).mixup == 0.2
    with pytest.raises(ArgumentError, match=r"--mixup 0\.2 is for --objective cross_entropy"):
        finetuning(mixup=0.2, objective="nonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a checkpoint, the name of the class and its images, .* or --dataset_name"),
        ({"name": "okapi"}, "give a checkpoint, the name of the class and its images"),
        ({"images": ["okapi.jpg"]}, "give a checkpoint, the name of the class and its images"),
        ({"dataset_name": "x", "name": "okapi"}, "--dataset_name gives names and images"),
        ({"dataset_name": "x", "images": ["okapi.jpg"]}, "--dataset_name gives names and images"),
        ({"dataset_name": "x", "batch_size": 0}, "--batch_size must be a whole number"),
        ({"dataset_name": "x", "shrinkage": -1}, "--shrinkage must be in \\[0, inf\\), but got -1"),
        ({"dataset_name": "x", "shrinkage": float("nan")}, "--shrinkage must be in \\[0, inf\\)"),
    ],
)
def test_new_classes_that_cannot_be_added(options, message):
    with pytest.raises(ArgumentError, match=message):
        AddClassArguments(folder="run", **options)


def test_new_classes():
    AddClassArguments(folder="run", name="okapi", images=["okapi.jpg"], shrinkage=10)
    AddClassArguments(folder="run", dataset_name="x")
