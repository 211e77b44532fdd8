"""Modules by where they are: in the package, or in scripts/ of the repository, which no wheel holds."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

PACKAGE = __package__.rpartition(".")[0]
ROOT = Path(__file__).parents[2]  # what holds the package: in a clone, the repository


def is_here(place: str) -> bool:
    """Whether there is a module such as "training.train" or, of the repository, "scripts.theory"."""
    return not place.startswith("scripts.") or (ROOT / f"{place.replace('.', '/')}.py").is_file()


def module_at(place: str) -> ModuleType:
    """The module; that of a script finds the others from then on."""
    if not place.startswith("scripts."):
        return import_module(f"{PACKAGE}.{place}")
    if sys.path[:1] != [str(ROOT)]:
        sys.path.insert(0, str(ROOT))  # before others that are called scripts
    return import_module(place)
