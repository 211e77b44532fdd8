"""The arguments of training: defaults that follow from others, and what cannot work."""

import os

import pytest

from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs.files import write_yaml
from hf_protosphere.training.arguments import TrainArguments

FROZEN = {"freeze_backbone": True}


def parse(*argv):
    return parse_arguments(TrainArguments, argv)


def test_written_yaml_gives_the_arguments_back(tmp_path):
    arguments = parse("--dataset_name", "x", "--backbone_kwargs", '{"patch_size": 4}')
    write_yaml(tmp_path / "arguments.yaml", vars(arguments))
    assert parse("--config", str(tmp_path / "arguments.yaml")) == arguments
    assert arguments.backbone_options == {"patch_size": 4}


def test_defaults_that_follow_from_others():
    assert TrainArguments(dataset_name="x", objective="scl").views == 2
    assert TrainArguments(dataset_name="x").views == 1
    assert TrainArguments(dataset_name="x", batch_size=8).eval_batch_size == 16
    assert TrainArguments(dataset_name="x", epochs=1).warmup_epochs == 0.5
    assert TrainArguments(dataset_name="x", mixed_precision=False).mixed_precision == "no"  # YAML


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0.0}, "--temperature must be positive and finite, but got 0.0"),
        ({"temperature": -1}, "--temperature must be positive"),
        ({"temperature": float("nan")}, "--temperature must be positive"),
        ({"learning_rate": "1e-3"}, r"write 1.0e-4, not 1e-4"),
        ({"epochs": -1}, "--epochs must be a whole number of at least 0"),
        ({"batch_size": 2.5}, "--batch_size must be a whole number"),
        ({"num_workers": -1}, "--num_workers must be a whole number of at least 0"),
        ({"epochs": 2, "warmup_epochs": 2}, "--warmup_epochs 2 must be less than --epochs 2"),
        ({"warmup_epochs": -1}, r"--warmup_epochs must be in \[0, inf\)"),
        ({"momentum": -0.9}, r"--momentum must be in \[0, 1\), but got -0.9"),
        ({"momentum": 0.8, "optimizer": "adamw"}, "--momentum 0.8 is not for --optimizer adamw"),
        ({"momentum": 0.8, "optimizer": "lion", "learning_rate": 1e-4}, "0.8 is not for .* lion"),
        ({"nesterov": False, "optimizer": "adamw"}, "--nesterov False is for --optimizer sgd only"),
        ({"optimizer": "mouon"}, r"sgd, adamw or .*list_optimizers\(\), not 'mouon'.*'muon'"),
        ({"optimizer": "kron", "learning_rate": 1e-3}, r"list_optimizers\(\), not 'kron'"),
        ({"optimizer": "muon"}, "muon has no usual --learning_rate: try"),
        ({"schedule": "step"}, "--milestones, .* got None for step"),
        ({"milestones": [3]}, r"--milestones, for --schedule step .* got \[3\] for cosine"),
        ({"schedule": "step", "milestones": [9, 3]}, r"must rise .* 100, but got \[9, 3\]"),
        ({"schedule": "step", "milestones": [0]}, "must rise between 0 and"),
        ({"schedule": "step", "milestones": [100]}, "must rise between 0 and"),
        ({"schedule": "step", "milestones": ["3"]}, "--milestones must be .*a number"),
        ({"gamma": 0.2}, "--gamma 0.2 is for --schedule step only"),
        ({"min_lr_rate": 0.2, "schedule": "constant"}, "--min_lr_rate 0.2 is for --schedule cos"),
        ({"warmup_lr_rate": 0.2, "warmup_epochs": 0.0}, "--warmup_lr_rate 0.2 is for --warmup_ep"),
        ({"weight_decay": -1e-4}, r"--weight_decay must be in \[0, inf\), but got -0.0001"),
        ({"weight_decay": "1e-4"}, r"--weight_decay .* got '1e-4' \(in YAML write 1.0e-4"),
        ({"seed": 1.0}, "--seed must be a whole number of at least 0, but got 1.0"),
        ({"seed": -1}, "--seed must be a whole number of at least 0"),
        ({"seed": 2**32}, r"--seed must be in \[0, 4294967296\), but got 4294967296"),
        ({"num_channels": 4}, "--num_channels must be one of 1, 3"),
        ({"shuffle_buffer": 5}, "--shuffle_buffer 5 is for --streaming only"),
        ({"imbalance_factor": 0.5}, "--imbalance_factor 0.5 is for --imbalance only"),
        ({"objective": "triplet"}, "--objective must be one of nonl"),
        ({"prototypes": "random"}, "--prototypes must be one of learned"),
        ({"validation_fraction": 1.0}, r"--validation_fraction must be in \[0, 1\)"),
        ({"crop_scale": 0.2, "augmentation": "crop"}, "--crop_scale 0.2 is for --augmentation res"),
        ({"feature_views": 2, "blur": 0.5, **FROZEN}, "--blur 0.5 changes images"),
        (
            {"feature_views": 8, "cutmix": 1.0, "objective": "cross_entropy", **FROZEN},
            "--cutmix 1.0 changes images",
        ),
        ({"crop_scale": 0.0}, r"--crop_scale must be in \(0, 1\]"),
        ({"rand_augment": 31}, r"--rand_augment must be in \[0, 30\], but got 31"),
        ({"cutmix": 1.0}, "--cutmix 1.0 is for --objective cross_entropy, but got ntce"),
        ({"resume": True, "overwrite": True}, "--resume keeps .* --overwrite deletes"),
        ({"objective": "scl", "views": 1}, "--views must be 2 or more"),
        ({"objective": "sincere", "views": 1}, "--objective sincere contrasts views"),
        (
            {"objective": "scl", "queue_size": 9},
            "--queue_size 9 is for --objective nonl and ntce, but",
        ),
        (
            {"objective": "ntce", "logit_adjustment": 1.0},
            r"cross_entropy, but got ntce, .* or cancels \(give --class_weights balanced\)",
        ),
        ({"streaming": True, "class_weights": "balanced"}, "--streaming .* --class_weights needs"),
        ({"streaming": True, "exclude": "images.csv"}, "--streaming .* --exclude needs"),
        (
            {"learn_temperature": True, "objective": "nonl"},
            "is for --objective ntce and .*but got nonl.*fall for ever",
        ),
        ({"margin": 0.2}, "--margin 0.2 is for --objective normface, but got ntce"),
        (
            {"objective": "normface", "margin_type": "arcface"},
            "--margin_type arcface is for --margin: give it",
        ),
        (
            {"reserve_classes": 9, "prototypes": "learned"},
            "--reserve_classes 9 is for a fixed simplex ETF, not for --prototypes learned and",
        ),
        (
            {"reserve_classes": 9, "objective": "scl"},
            "--reserve_classes 9 is for a fixed simplex ETF, not for .* --objective scl",
        ),
        ({"backbone_kwargs": "{patch"}, "--backbone_kwargs must be JSON"),
        ({"backbone_kwargs": "[1]"}, "--backbone_kwargs must be a JSON object"),
        ({"partial_weights": True}, "--partial_weights is for --pretrained WHERE: give a file or folder"),
        ({"partial_weights": True, "pretrained": True}, "--partial_weights is for --pretrained WHERE"),
        ({"finetune_from": "a", "pretrained": "w.pth"}, "--finetune_from a and --pretrained both"),
    ],
)
def test_errors_name_flag_and_value(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        TrainArguments(dataset_name="x", **kwargs)


def test_names_that_are_unknown_missing_or_none(monkeypatch):
    def trackers(names):
        return TrainArguments(dataset_name="x", report_to=names).report_to

    assert trackers("none") == trackers(["none"]) == []
    assert trackers(None) == ["tensorboard"]
    with pytest.raises(ArgumentError, match=r"--report_to takes tensorboard, .* got 'mlflow'"):
        trackers(["mlflow"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert trackers(None) == []
    with pytest.raises(ArgumentError, match=r"wandb is not installed: pip install wandb"):
        trackers(["wandb"])


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("", False),
        ("--pretrained", True),
        ("--pretrained true", True),
        ("--pretrained False", False),
        ("--pretrained w.pth --partial_weights", "w.pth"),
        ("--pretrained local-dir:a/folder", "a/folder"),
        ("--pretrained ~/w.pth", os.path.expanduser("~/w.pth")),
    ],
)
def test_pretrained_is_a_switch_or_a_place(words, value):
    arguments = parse("--dataset_name", "x", *words.split())
    assert arguments.pretrained == value
    assert arguments.starts_from_weights == bool(value)
