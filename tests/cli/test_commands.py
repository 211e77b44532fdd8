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
    """What its --help all prints, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return _printed(command, capsys, "--help", "all")


def _printed(command, capsys, *argv):
    with pytest.raises(SystemExit) as stopped:
        command(argv)
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
def test_help_keeps_to_the_ten_that_most_people_need(command, page, capsys):
    short, common = _printed(command, capsys, "--help"), command.common.split()
    shown = re.findall(r"^  --(\w+)", short, re.MULTILINE)
    assert short.split("\n\n")[:3] == page.split("\n\n")[:3]
    assert shown == (common or re.findall(r"^  --(\w+)", page, re.MULTILINE))
    assert len(shown) == 10 if common else len(shown) <= 11
    assert ("--help all` explains the other" in short) == bool(common)


@EACH
def test_help_begins_with_an_example(command, page):
    usage, description, example, *_ = page.split("\n\n")
    assert usage.startswith(f"usage: protosphere {command.name} ")
    assert usage.count("\n") < 3
    assert usage.endswith(" [arguments]")
    assert " ".join(description.split()) == command.description
    assert example == f"example:\n  protosphere {command.name} {command.example}"


@EACH
def test_help_explains_every_argument_once(command, page):
    for name, text in _fields(command).items():
        assert text.endswith((".", "'{\"patch_size\": 4}'.")), name
        assert len(re.findall(rf"^  --{name}\b", page, re.MULTILINE)) == 1, name
        assert " ".join((text % ()).split()) in " ".join(page.split())
    assert page.count("  --config CONFIG ") == page.count("  --quiet ") == 1
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


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("train cifar10 --epochs 1", "train --dataset_name cifar10 --epochs 1"),
        ("evaluate run cifar10", "evaluate --model run --dataset_name cifar10"),
        ("evaluate --split dev run cifar10", "evaluate --model run --dataset_name cifar10 --split dev"),
        ("evaluate cifar10 --model run", "evaluate --model run --dataset_name cifar10"),
        ("finetune run cifar10 --mode head", "finetune --model run --dataset_name cifar10 --mode head"),
        ("calibrate run cifar10", "calibrate run --dataset_name cifar10"),
        ("predict run a.png b.png", "predict a.png b.png --model run"),
        ("predict run - --top_k 2", "predict --model run --top_k 2 -"),
        ("predict run --dataset_name cifar10", "predict --model run --dataset_name cifar10"),
        ("index run . --overwrite", "index . --model run --overwrite"),
        ("publish run user/name", "publish run --repo_id user/name"),
        ("export run cifar10 --format torch_export", "export run --dataset_name cifar10 --format torch_export"),
        ("inspect cifar10 --model run", "inspect --dataset_name cifar10 --model run"),
    ],
)
def test_words_say_what_flags_say(words, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    (name, *words), flags = words.split(), flags.split()[1:]
    assert COMMANDS[name].parse(words) == COMMANDS[name].parse(flags)


def test_the_same_words_in_every_command():
    for command in COMMANDS.values():
        names = [name for name in command.positional.split() if name in ("model", "dataset_name", "images")]
        assert names in ([], ["model"], ["dataset_name"], ["images"], ["model", "dataset_name"], ["model", "images"])
        fields = _fields(command).keys() & {"model", "dataset_name"}
        assert fields <= {*names} or command.name in ("inspect", "predict", "index", "search", "add-class")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that looks like a run with test images, called "my run"."""
    monkeypatch.chdir(tmp_path)
    Path("my run").mkdir()
    Path("my run/config.json").write_text('{"model_type": "protosphere"}')
    Path("my run/results.json").write_text('{"test": {}, "validation": {}}')
    return Path("my run")


@pytest.mark.parametrize(
    ("typed", "then"),
    [
        ("inspect a/b", "train a/b --labels outputs/inspect/images.csv --exclude outputs/inspect/exclude.csv"),
        ("inspect 'a b' --model m --output_dir o", "finetune m 'a b' --labels o/images.csv --exclude o/exclude.csv"),
        ("train d --output_dir 'my run' --label_column fine", "evaluate 'my run' d --label_column fine"),
        ("train d --output_dir 'my run' --test_split x", "evaluate 'my run' d --split x"),
        ("train d --output_dir none", None),
        ("finetune m d --output_dir 'my run'", "evaluate 'my run' d"),
        ("finetune m d --compare all", None),
        ("evaluate 'my run' d", "calibrate 'my run' d"),
        ("evaluate user/name d", None),
        ("calibrate 'my run' d", "predict 'my run' path/to/photos"),
        ("calibrate user/name d --output_dir 'my run'", "predict 'my run' path/to/photos"),
        ("predict 'my run' d", "publish 'my run' user/name"),
        ("publish 'my run' ada/clothing", "predict ada/clothing path/to/photos"),
        ("add-class 'my run' okapi a.png", "predict 'my run' path/to/photos"),
        ("index 'my run' .", "search outputs/index path/to/query.png"),
        ("plot 'my run'", None),
    ],
)
def test_what_to_type_next(typed, then, run):
    name, *words = shlex.split(typed)
    assert COMMANDS[name].following(COMMANDS[name].parse(words)) == then
    assert then is None or shlex.split(then)[0] in COMMANDS


def test_without_test_images_the_next_is_to_calibrate(run):
    train = COMMANDS["train"]
    arguments = train.parse(["d", "--output_dir", str(run)])
    for results in ('{"validation": {}}', "{"):  # which may be damaged
        (run / "results.json").write_text(results)
        assert train.following(arguments) == "calibrate 'my run' d"
    for config in ('{"model_type": "vit"}', "{}"):
        (run / "config.json").write_text(config)
        assert train.following(arguments) is None


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
