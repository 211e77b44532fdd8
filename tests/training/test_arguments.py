"""Flags, YAML and Python give the same arguments, and the same errors."""

import pytest

from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.runs.files import write_yaml
from hf_protosphere.runs.plot import PlotArguments
from hf_protosphere.training.arguments import TrainArguments


def parse(*argv, cls=TrainArguments):
    return parse_arguments(cls, argv, "protosphere", "test")


def test_flags_win_over_yaml_over_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: beans\nepochs: 7\nobjective: ntce\n")
    arguments = parse("--config", str(recipe), "--epochs", "9")
    assert (arguments.dataset_name, arguments.epochs, arguments.objective) == ("beans", 9, "ntce")
    assert arguments.batch_size == TrainArguments(dataset_name="x").batch_size


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


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0.0}, "--temperature must be positive and finite, but got 0.0"),
        ({"temperature": -1}, "--temperature must be positive"),
        ({"temperature": float("nan")}, "--temperature must be positive"),
        ({"learning_rate": "1e-3"}, r"write 1.0e-4, not 1e-4"),
        ({"epochs": 0}, "--epochs must be a whole number of at least 1"),
        ({"batch_size": 2.5}, "--batch_size must be a whole number"),
        ({"num_workers": -1}, "--num_workers must be a whole number of at least 0"),
        ({"objective": "triplet"}, "--objective must be one of nonl"),
        ({"prototypes": "random"}, "--prototypes must be one of learned"),
        ({"validation_fraction": 1.0}, r"--validation_fraction must be in \[0, 1\)"),
        ({"resume": True, "overwrite": True}, "--resume keeps .* --overwrite deletes"),
        ({"objective": "scl", "views": 1}, "--views must be 2 or more"),
        ({"backbone_kwargs": "{patch"}, "--backbone_kwargs must be JSON"),
        ({"backbone_kwargs": "[1]"}, "--backbone_kwargs must be a JSON object"),
    ],
)
def test_errors_name_flag_and_value(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        TrainArguments(dataset_name="x", **kwargs)


def test_yaml_errors(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_nam: beans\n")
    with pytest.raises(ArgumentError, match=r"unknown argument 'dataset_nam'.*'dataset_name'"):
        parse("--config", str(recipe))
    recipe.write_text("[1, 2]")
    with pytest.raises(ArgumentError, match="'name: value' lines"):
        parse("--config", str(recipe))
    with pytest.raises(ArgumentError, match="cannot be read"):
        parse("--config", str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--objective", "hope"), "argument --objective: invalid choice: 'hope'.*--help"),
        (("--epochs", "many"), "argument --epochs: invalid int value: 'many'"),
        (("--wings", "2"), "unrecognized arguments: --wings 2"),
    ],
)
def test_flags_that_cannot_be_read(flags, message, capsys):
    with pytest.raises(ArgumentError, match=message):
        parse("--dataset_name", "x", *flags)
    assert capsys.readouterr().err == ""  # no page of usage


@pytest.mark.parametrize("cls", [TrainArguments, EvaluateArguments, PlotArguments])
def test_help_explains_every_argument(cls, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help", cls=cls)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"\n{cls._argument_group_name}:\n" in text
    for name, field in cls.__dataclass_fields__.items():
        assert f"--{name}" in text
        assert field.metadata["help"].endswith((".", "'{\"patch_size\": 4}'.")), name


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
