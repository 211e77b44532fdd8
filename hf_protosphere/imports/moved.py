"""Imports the modules of version 0.1.0 by their old paths, until version 0.3.0; `moved.json` says where they are now.

A module that is imported by its old path holds what its new ones hold, and a warning names them.
Classes and functions are the same objects. Nothing in the package imports by old paths."""

import json
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from .places import PACKAGE, is_here, module_at

# {"finishing": ["training.finish"], ...}; some were divided, and some are of the repository now, not of the package.
MODULES = json.loads(Path(__file__).with_name("moved.json").read_text(encoding="utf-8"))


class OldPaths(MetaPathFinder, Loader):
    """Imports the modules of `MODULES`; asked after all others, it makes no other import slower."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        found = package == PACKAGE and any(map(is_here, MODULES.get(name, ())))
        return ModuleSpec(fullname, self, is_package=True) if found else None  # "release" had modules of its own

    def exec_module(self, module: ModuleType) -> None:
        modules = [module_at(place) for place in MODULES[module.__name__.partition(".")[2]] if is_here(place)]
        message = f"{module.__name__} is now {' and '.join(new.__name__ for new in modules)}; the old path works until"
        warnings.warn(f"{message} version 0.3.0.", FutureWarning, stacklevel=2)
        for new in modules:
            vars(module).update({key: value for key, value in vars(new).items() if not key.startswith("__")})
