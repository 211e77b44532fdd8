"""The wheel holds the package and nothing else, and trains where only it is installed."""

import json
import os
import subprocess
import sys
import venv
from zipfile import ZipFile

import pytest

from tests import FIXTURES, ROOT

PACKAGE = "hf_protosphere"
PROJECT = (PACKAGE, "tests", "scripts", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
# By the name that the wheel gives the command: one step of training, then the card of the run.
JOURNEY = f"""
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import {PACKAGE}

assert Path({PACKAGE}.__file__).is_relative_to(sys.prefix), {PACKAGE}.__file__
assert version("{PACKAGE}") == {PACKAGE}.__version__
(command,) = entry_points(group="console_scripts", name="protosphere")
command.load()(["train", *sys.argv[1:]])

from {PACKAGE}.hub.card import write_card

write_card("run")
"""
TRAIN = [
    "--dataset_name", str(FIXTURES / "version_0_1_0" / "blobs"), "--output_dir", "run",
    "--backbone", "resnet", "--backbone_source", "transformers", "--backbone_kwargs",
    '{"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}',
    "--image_size", "32", "--num_workers", "0", "--report_to", "none", "--no_pictures",
    "--epochs", "1", "--batch_size", "32", "--warmup_epochs", "0", "--max_train_samples", "32",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by what pip and uv call too, in a folder that links to the project: it writes there."""
    project = tmp_path_factory.mktemp("project")
    for name in PROJECT:
        (project / name).symlink_to(ROOT / name)
    built = subprocess.run([sys.executable, "-c", BUILD, str(project)], cwd=project, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    return project / built.stdout.strip().split("\n")[-1]


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    files = [path.relative_to(ROOT) for path in (ROOT / PACKAGE).rglob("*") if path.is_file()]
    # A room's page is for those who read the repository.
    pages = {path for path in files if path.name == "README.md" and len(path.parts) == 3}
    package = {path.as_posix() for path in {*files} - pages if "__pycache__" not in path.parts}
    assert f"{PACKAGE}/hub/model_card_template.md" in package
    assert f"{PACKAGE}/metrics/evaluate_modules/neural_collapse/README.md" in package
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
        assert names - metadata == package
        for name in package:
            assert archive.read(name) == (ROOT / name).read_bytes()
    assert {name.split("/", 1)[1] for name in metadata} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"
    }  # fmt: skip


@pytest.fixture(scope="module")
def run_installed(wheel, tmp_path_factory):
    """Python code in an environment where only the wheel is installed, in a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Its dependencies are those of here. Their own .pth files, as of an editable install, are not read from there.
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(folders))

    def run(code, *words):
        return subprocess.run(
            [environment / "bin" / "python", "-I", "-c", code, *words],
            cwd=folder, capture_output=True, text=True,
            env=os.environ | {"HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return run, folder


@pytest.mark.slow  # an environment of its own, and a training in it: 11 s
def test_where_only_the_wheel_is_installed_it_trains(run_installed):
    run, folder = run_installed
    result = run(JOURNEY, *TRAIN)
    assert result.returncode == 0, result.stderr[-3000:]
    (epoch,) = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(epoch)["step"] == 1
    assert "3 classes (class_0, class_1, class_2)" in (folder / "run" / "README.md").read_text()


@pytest.mark.parametrize(("command", "room"), [("release", "releases"), ("transfer-suite", "transfer")])
def test_what_is_of_the_repository_is_refused_in_one_line(command, room, run_installed):
    run, _ = run_installed
    refused = run(f"from {PACKAGE}.cli import main; main()", command, "--help")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"protosphere {command}: error: this command is in scripts/{room}/ of the repository: clone that, and "
        "install it by `pip install -e .` there.\n"
    )
