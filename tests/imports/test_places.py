"""A module of the package, or of the repository where it is beside the package."""

import os
import subprocess
import sys

from hf_protosphere.imports import places
from hf_protosphere.imports.places import is_here, module_at
from tests import ROOT


def test_a_place_is_of_the_package_or_of_the_repository():
    assert module_at("imports.places") is places
    assert module_at("scripts.releases.rows").__file__ == str(ROOT / "scripts" / "releases" / "rows.py")


def test_a_script_is_here_in_a_clone_only(tmp_path, monkeypatch):
    assert is_here("scripts.releases.rows")
    assert is_here("imports.places")
    assert not is_here("scripts.releases.wings")
    monkeypatch.setattr(places, "ROOT", tmp_path)
    assert not is_here("scripts.releases.rows")
    assert is_here("imports.places")


def test_scripts_of_the_working_directory_are_not_taken_for_those_of_the_repository(tmp_path):
    (tmp_path / "scripts").mkdir()
    for own in ("__init__.py", "train.py"):
        (tmp_path / "scripts" / own).write_text("raise SystemExit('not this one')")
    code = "from hf_protosphere.imports.places import module_at; print(module_at('scripts.train').__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.stdout == f"{ROOT / 'scripts' / 'train.py'}\n"
