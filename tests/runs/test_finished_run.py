"""Finished runs, read from their files."""

import importlib.util
import json
import shutil

import pytest
import yaml

from hf_protosphere.configuration_protosphere import ProtoSphereConfig
from hf_protosphere.errors import ArgumentError
from hf_protosphere.hub.card import render_card
from hf_protosphere.runs.finished_run import FinishedRun, read_run_arguments, slug
from tests import FIXTURES

ARGUMENTS = {"dataset_name": "/data/of/someone/my pets/", "validation_fraction": 0.1, "seed": 3}


@pytest.fixture
def folder(tmp_path):
    ProtoSphereConfig(id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    (tmp_path / "arguments.yaml").write_text(yaml.safe_dump(ARGUMENTS))
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
    assert run.default_name == "my-pets-resnet18-ntce"


@pytest.mark.parametrize("name", ["config.json", "arguments.yaml", "results.json"])
def test_what_a_run_has_not_written_yet_is_said(folder, name):
    (folder / name).unlink()
    again = rf"has no {name}: `protosphere train --output_dir .* with --resume if it stopped"
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


def test_arguments_are_read_as_they_were_written_and_stay(folder):
    arguments = FinishedRun.read(folder).arguments
    assert vars(arguments) == ARGUMENTS
    assert (arguments.seed, arguments.validation_fraction) == (3, 0.1)
    assert arguments == read_run_arguments(folder)
    with pytest.raises(AttributeError, match="seed is what the run was given"):
        arguments.seed = 4
    with pytest.raises(AttributeError, match="temperature"):
        _ = arguments.temperature  # which that version did not write


def test_a_folder_without_arguments_has_none(folder):
    (folder / "arguments.yaml").unlink()
    assert read_run_arguments(folder) is None
    assert read_run_arguments(folder / "nowhere") is None


@pytest.mark.parametrize("text", ["", "[1, 2]", "epochs", "a: [", "\x00"])
def test_arguments_that_are_no_mapping_are_refused_with_the_way_out(folder, text):
    (folder / "arguments.yaml").write_text(text)
    with pytest.raises(ArgumentError, match=r"(?s)arguments.yaml (cannot be read).*--resume"):
        read_run_arguments(folder)


def test_arguments_of_another_kind_are_refused(folder):
    values = yaml.safe_load((folder / "arguments.yaml").read_text())
    for changes in ({"seed": "x"}, {"dataset_name": None}, {"validation_split": 3}):
        (folder / "arguments.yaml").write_text(yaml.safe_dump(values | changes))
        with pytest.raises(ArgumentError, match=rf"has {next(iter(changes))}: .*--resume"):
            read_run_arguments(folder)


def test_results_of_another_kind_are_refused_where_they_are_read(folder):
    run = FinishedRun.read(folder)
    message = r"does not hold what training writes: KeyError: 'accuracy'. `protosphere train"
    with pytest.raises(ArgumentError, match=message), run.reading():
        run.results["test"]["accuracy"]


def test_what_a_run_needed_on_its_machine_need_not_be_here(tmp_path, monkeypatch):
    folder = shutil.copytree(FIXTURES / "version_0_1_0" / "finished", tmp_path / "run")
    arguments = yaml.safe_load((folder / "arguments.yaml").read_text())
    needed = {"report_to": ["trackio"], "lora_rank": 4, "option_of_a_later_version": 1}
    (folder / "arguments.yaml").write_text(yaml.safe_dump(arguments | needed))
    find_spec = importlib.util.find_spec
    missing = ("trackio", "tensorboard", "wandb", "peft")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in missing else find_spec(name, *more),
    )
    run = FinishedRun.read(folder)
    assert vars(run.arguments) == arguments | needed
    assert "class_0, class_1, class_2" in str(render_card(folder))


def test_names_of_repositories_are_ascii():
    assert slug("my pets/ä (v2)") == "my-pets-v2"
    assert len(slug("x" * 100)) == 28
