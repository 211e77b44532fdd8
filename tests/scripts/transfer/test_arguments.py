"""The file of a suite: what it says, what flags change of it, and what is wrong with it."""

import pytest
import yaml

from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.errors import ArgumentError
from scripts.transfer.arguments import TransferSuiteArguments

MODELS = ["runs/first", "runs/second"]
OPTIONS = {
    "models": MODELS,
    "modes": ["knn", "prototypes"],
    "arguments": {"neighbors": 5, "epochs": 7},
    "datasets": {
        "lower": {"dataset_name": "user/lower", "epochs": 3},
        "upper": {"dataset_name": "user/upper", "metric": "mean_class_accuracy"},
    },
}


def test_the_arguments_of_a_transfer(tmp_path):
    suite = TransferSuiteArguments(**OPTIONS, output_dir=str(tmp_path))
    lower, upper = (suite.finetuning(name, "../runs/a b") for name in ("lower", "upper"))
    assert (lower.dataset_name, lower.epochs, lower.neighbors) == ("user/lower", 3, 5)
    assert (upper.dataset_name, upper.epochs, upper.neighbors) == ("user/upper", 7, 5)
    assert lower.modes == ["knn", "prototypes"]
    assert lower.resume
    assert lower.output_dir == str(tmp_path / "lower" / "runs-a-b")
    assert [suite.metric(name) for name in suite.datasets] == ["accuracy", "mean_class_accuracy"]
    # Of long names the end is kept, which tells them apart.
    assert suite.finetuning("lower", "x" * 200 + "/last").output_dir.endswith("x-last")


def test_the_baseline_comes_first_and_flags_win(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(OPTIONS))

    def parsed(*flags):
        argv = ["--config", str(file), *flags]
        return parse_arguments(TransferSuiteArguments, argv)

    assert parsed().models == MODELS
    assert parsed("--baseline", MODELS[1]).models == MODELS[::-1]
    assert parsed("--baseline", "a", "--models", "b", "c").models == ["a", "b", "c"]
    assert parsed("--modes", "full", "--only", "upper").modes == ["full"]
    assert parsed().finetuning("upper", "user/name").neighbors == 5


def test_a_folder_in_place_of_a_data_set(tmp_path):
    lower = {
        "dataset_name": "user/lower", "dataset_config": "small", "label_column": "digit",
        "test_split": "validation", "max_eval_samples": 7,
    }  # fmt: skip
    options = OPTIONS | {"datasets": OPTIONS["datasets"] | {"lower": lower}}
    images, tables = tmp_path / "images", tmp_path / "tables"
    for file in (images / "train" / "cat" / "0.png", tables / "train.parquet"):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
    suite = TransferSuiteArguments(**options, data=[f"lower={images}"])
    assert suite.datasets["lower"] == {"dataset_name": str(images), "max_eval_samples": 7}
    suite = TransferSuiteArguments(**options, data=[f"lower={tables}"])
    assert suite.datasets["lower"] == {
        "dataset_name": str(tables), "label_column": "digit", "test_split": "validation", "max_eval_samples": 7,
    }  # fmt: skip
    assert suite.datasets["upper"] == OPTIONS["datasets"]["upper"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"datasets": {}}, "needs a file with data sets"),
        ({"datasets": {"a/b": {"dataset_name": "x"}}}, "'a/b' is to be a folder too"),
        ({"datasets": {"a": {"label_column": "x"}}}, "a: must be such as {dataset_name"),
        ({"datasets": {"a": {"dataset_name": "x", "label_colum": "y"}}}, "Did .* 'label_column'"),
        ({"datasets": {"a": {"dataset_name": "x", "metric": "acuracy"}}}, "Did .* 'accuracy'"),
        ({"arguments": {"epoch": 3}}, r"cannot set 'epoch'\. Did you mean 'epochs'"),
        ({"datasets": {"a": {"dataset_name": "x", "mixed_precision": "bf16"}}}, "cannot set 'mix"),
        ({"arguments": {"shots": "1,2"}}, "cannot set 'shots'"),
        ({"arguments": ["epochs"]}, "arguments must be a mapping, such as"),
        ({"models": None}, "--models: give one or several"),
        ({"models": [1]}, "--models must be a list, and each of it text"),
        ({"modes": ["linear-probe"]}, "Did you mean 'linear_probe'"),
        ({"only": ["lowr"]}, "--only: the file has no data set 'lowr'. Did you mean 'lower'"),
        ({"data": ["lower"]}, "--data takes NAME=FOLDER, but got 'lower'"),
        ({"data": ["loer=."]}, "no data set 'loer'. Did you mean 'lower'"),
        ({"data": ["lower=nowhere"]}, "--data lower=nowhere: there is no such folder"),
    ],
)
def test_what_is_wrong_is_said_with_what_was_meant(more, message):
    with pytest.raises(ArgumentError, match=message):
        TransferSuiteArguments(**OPTIONS | more)


def test_a_data_set_that_cannot_work_is_named():
    lower = OPTIONS["datasets"]["lower"] | {"epochs": 0}
    suite = TransferSuiteArguments(**OPTIONS | {"datasets": {"lower": lower}})
    with pytest.raises(ArgumentError, match="datasets, lower: --epochs must be"):
        suite.finetuning("lower", "user/name")
