"""The rows of a suite: every model on every data set, and what is done of it."""

import json

import pytest
import yaml

from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs.files import write_yaml
from hf_protosphere.transfer.finetune import ROWS
from hf_protosphere.transfer.suite.arguments import TransferSuiteArguments
from hf_protosphere.transfer.suite.rows import matrix
from tests import ROOT


def suite(folder, **options):
    defaults = {
        "models": ["runs/first", "runs/second"], "modes": ["knn", "prototypes"],
        "datasets": {"pets": {"dataset_name": "user/pets"}, "food": {"dataset_name": "food"}},
    }  # fmt: skip
    return TransferSuiteArguments(**defaults | options, output_dir=str(folder))


def test_every_model_on_every_data_set(tmp_path):
    entries = matrix(suite(tmp_path))
    assert [(entry.dataset, entry.model) for entry in entries] == [
        ("pets", "runs/first"), ("pets", "runs/second"),
        ("food", "runs/first"), ("food", "runs/second"),
    ]  # fmt: skip
    assert entries[1].folder == tmp_path / "pets" / "runs-second"
    with pytest.raises(ArgumentError, match=r"--models a/b and a-b would both lie in .*: rename"):
        matrix(suite(tmp_path, models=["a/b", "a-b"]))


def test_what_is_done_is_read_from_the_folder(tmp_path):
    entry, other, *_ = matrix(suite(tmp_path))
    assert entry.missing() == ["knn", "prototypes"]
    entry.folder.mkdir(parents=True)
    write_yaml(entry.folder / "transfer.yaml", vars(entry.arguments))
    done = [
        {"mode": mode, "shots": shots, "trial": 0, "accuracy": accuracy}
        for mode, shots, accuracy in (("knn", None, 0.5), ("knn", 5, 0.4), ("full", None, 0.9))
    ]
    lines = [json.dumps(row) + "\n" for row in done]
    (entry.folder / ROWS).write_text("".join(lines) + '{"mode": "prototypes", "sh')  # cut short
    assert entry.rows() == {"knn": done[0]}
    assert entry.missing() == ["prototypes"]
    assert other.rows() == {}
    changed, *_ = matrix(suite(tmp_path, arguments={"neighbors": 3}))
    with pytest.raises(ArgumentError, match="--neighbors was 20, is 3"):
        changed.rows()


def test_the_suite_of_the_paper(tmp_path):
    file = str(ROOT / "scripts" / "transfer" / "paper.yaml")
    suite = parse_arguments(TransferSuiteArguments, ["--config", file], "transfer-suite", "")
    entries = matrix(suite)  # every one of them valid arguments
    assert len(entries) == 8 * 5
    assert "cross_entropy" in suite.models[0]
    release = yaml.safe_load((ROOT / "scripts" / "releases" / "paper.yaml").read_text())
    for model in suite.models:
        folder, name = model.rsplit("/", 1)
        assert folder == release["output_dir"]
        assert name.removeprefix("imagenet1k-resnet50-").split("-")[0] in release["objectives"]
    food = next(entry.arguments for entry in entries if entry.dataset == "food")
    assert (food.dataset_name, food.test_split) == ("ethz/food101", "validation")
    assert {e.dataset for e in entries if e.metric == "mean_class_accuracy"} == {
        "aircraft", "flowers", "pets"
    }  # fmt: skip
