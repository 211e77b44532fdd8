"""Imports the modules of version 0.1.0 by their old paths, until version 0.3.0; `moved.json` says
where they are now.

A module that is imported by its old path holds what its new ones hold, and a warning names them.
Classes and functions are the same objects. Nothing in the package imports by old paths.
"""

import importlib
import json
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = __package__.rpartition(".")[0]
# {"finishing": ["training.finish"], ...}; some were divided.
MODULES = json.loads(Path(__file__).with_name("moved.json").read_text(encoding="utf-8"))


class OldPaths(MetaPathFinder, Loader):
    """Imports the modules of `MODULES`; asked after all others, it makes no other import slower."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == PACKAGE and name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.rpartition(".")[2]
        places = [f"{PACKAGE}.{place}" for place in MODULES[name]]
        message = f"{module.__name__} is now {' and '.join(places)}; the old path works until"
        warnings.warn(f"{message} version 0.3.0.", FutureWarning, stacklevel=2)
        for place in places:
            names = vars(importlib.import_module(place)).items()
            vars(module).update({key: value for key, value in names if not key.startswith("__")})
