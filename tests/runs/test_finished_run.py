"""Finished runs, read from their files."""

import json

import pytest

from hf_protosphere.arguments.parsing import write_yaml
from hf_protosphere.configuration_protosphere import ProtoSphereConfig
from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs.finished_run import FinishedRun
from hf_protosphere.training.arguments import TrainArguments


@pytest.fixture
def folder(tmp_path):
    ProtoSphereConfig(id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    arguments = TrainArguments(dataset_name="/data/of/someone/my pets/")
    write_yaml(vars(arguments), tmp_path / "arguments.yaml")
    splits = {"train": {"from": "train"}, "validation": {"from": "train"}, "test": {"from": "val"}}
    results = {"provenance": {"dataset": None, "splits": splits}, "validation": {}, "test": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_what_a_run_is_called_and_was_measured_on(folder):
    run = FinishedRun.read(str(folder))
    assert run.class_names == ["cat", "dog"]
    assert run.classifier == "learned"
    assert run.held_out == ["validation", "test"]
    assert run.reported == "test"
    assert run.is_drawn_from_training("validation")
    assert not run.is_drawn_from_training("test")
    assert (run.dataset_id, run.dataset_name) == (None, "my pets")
    assert run.default_name == "my-pets-resnet18-nonl"


@pytest.mark.parametrize("name", ["config.json", "arguments.yaml", "results.json"])
def test_what_a_run_has_not_written_yet_is_said(folder, name):
    (folder / name).unlink()
    again = rf"has no {name}: `protosphere train --output_dir .* with --resume ends one"
    with pytest.raises(ArgumentError, match=again):
        FinishedRun.read(folder)


@pytest.mark.parametrize("name", ["config.json", "arguments.yaml", "results.json"])
def test_files_cut_short_are_named(folder, name):
    (folder / name).write_text('{"provenance": [')
    with pytest.raises(ArgumentError, match=name):
        FinishedRun.read(folder)


def test_other_folders_are_told_apart(folder):
    with pytest.raises(ArgumentError, match=r"nowhere: there is no such folder"):
        FinishedRun.read(folder / "nowhere")
    (folder / "results.json").write_text("{}")
    with pytest.raises(ArgumentError, match=r"results.json has no provenance: `protosphere train"):
        FinishedRun.read(folder)
