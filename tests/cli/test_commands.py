"""The table of commands: each is a module of its own name and explains itself."""

import dataclasses
import inspect
import re
import shlex
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from PIL import Image

from hf_protosphere.arguments.fields import PathName
from hf_protosphere.arguments.help import groups_of
from hf_protosphere.cli.commands import COMMANDS, _imported
from hf_protosphere.errors import ArgumentError
from tests import SCRIPTS

EACH = pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)


@pytest.fixture
def page(command, monkeypatch, capsys):
    """What its --help prints, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        command(["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.fixture
def example(command, tmp_path, monkeypatch):
    """The arguments of its example."""
    monkeypatch.chdir(tmp_path)
    Path("scripts").symlink_to(SCRIPTS)
    for folder in ("path/to/photos", "outputs/run"):
        Path(folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("path/to/query.png")
    return command.parse(shlex.split(command.example))


@EACH
def test_a_command_is_a_module_of_its_own_name(command):
    module, function = command.job.split(":")
    assert module.split(".")[-1] == command.name.replace("-", "_")
    job = _imported(command.job)
    assert (job.__module__.removeprefix("hf_protosphere."), job.__name__) == (module, function)
    arguments, *options = inspect.signature(job).parameters.values()
    assert all(option.default is not option.empty for option in options)
    assert get_type_hints(job)[arguments.name] is _imported(command.arguments)


@EACH
def test_help_begins_with_what_most_people_need(command, page):
    usage, description, example, first, *_ = page.split("\n\n")
    assert usage.startswith(f"usage: protosphere {command.name} ")
    assert usage.count("\n") < 3
    assert usage.endswith(" [arguments]")
    assert " ".join(description.split()) == command.description
    assert example == f"example:\n  protosphere {command.name} {command.example}"
    assert len(re.findall(r"^  --", first, re.MULTILINE)) <= 11
    assert set(command.common.split()) <= {*_fields(command), "config"}


@EACH
def test_help_explains_every_argument_once(command, page):
    for name, text in _fields(command).items():
        assert text.endswith((".", "'{\"patch_size\": 4}'.")), name
        assert len(re.findall(rf"^  --{name}\b", page, re.MULTILINE)) == 1, name
        assert " ".join((text % ()).split()) in " ".join(page.split())
    assert page.count("  --config CONFIG ") == 1
    for noise in ("default: None", "default: False", "default: True", "show this help"):
        assert noise not in page


@EACH
def test_the_example_can_be_typed(command, example):
    assert type(example) is _imported(command.arguments)


def test_words_without_a_flag():
    new_class = COMMANDS["add-class"].parse(["run", "okapi", "a.png", "b.png", "--shrinkage", "1"])
    assert (new_class.folder, new_class.name) == ("run", "okapi")
    assert (new_class.images, new_class.shrinkage) == (["a.png", "b.png"], 1)
    assert COMMANDS["plot"].parse(["a", "b"]).runs == ["a", "b"]


def _fields(command):
    """The help of every argument that has a flag; what only a file says has none."""
    fields = dataclasses.fields(_imported(command.arguments))
    groups = groups_of(_imported(command.arguments))
    flags = {f.name: f.metadata["help"] for group in groups for f in dataclasses.fields(group) if "help" in f.metadata}
    assert {field.name for field in fields} - flags.keys() <= {
        *("datasets", "arguments", "skip"),
        *("recipes", "objectives", "seeds", "overrides", "launch"),
    }  # fmt: skip
    return flags


@EACH
def test_arguments_do_not_change_once_they_are_given(command):
    assert _imported(command.arguments).__dataclass_params__.frozen


@EACH
def test_every_argument_is_checked_by_its_kind(command, example):
    for name, hint in get_type_hints(type(example)).items():
        wrong = [object(), 1.0, "1", True] if int in (hint, *get_args(hint)) else [object()]
        for value in wrong:
            with pytest.raises(ArgumentError, match=rf"^(--)?{name} must be [^\n]+, but got "):
                example.but(**{name: value})


@EACH
def test_nothing_is_abbreviated(command):
    with pytest.raises(ArgumentError, match=r"^unrecog.* Did you mean '--config'\? --help"):
        command.parse([*shlex.split(command.example), "--conf", "x"])


PATHS = {
    "backbone", "baseline", "compare", "compare_with", "corrupted_dataset", "dataset_name", "exclude",
    "finetune_from", "folder", "images", "index", "index_dir", "labels", "model", "models", "notes", "ood_dataset",
    "output", "output_dir", "picture", "pictures", "pretrained", "queries", "recipes", "resume_from", "runs",
    "sort_into", "space",
}  # fmt: skip


def test_the_home_folder_is_known_to_every_path():
    found = {}
    for command in COMMANDS.values():
        for name, hint in get_type_hints(_imported(command.arguments), include_extras=True).items():
            if hint in (PathName, PathName | None, list[PathName], list[PathName] | None):
                found[name] = command
    assert found.keys() == PATHS
