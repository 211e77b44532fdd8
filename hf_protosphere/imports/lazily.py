"""Names that a package offers, imported only when they are asked for; and what waits for other packages."""

import importlib
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lazily(package: str, **modules: str) -> Callable[[str], Any]:
    """`__getattr__` of a package: names that it offers, and the module of it that each is in."""

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return __getattr__


def after_import(name: str, then: Callable[[], None]) -> None:
    """Call a function once a module has been imported, at once if it has been."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _AfterImport(name, then))


class _AfterImport(MetaPathFinder):
    """Finds the one module as all others together do, and adds to what its import does."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        if (spec := next(filter(None, found), None)) is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)  # now: an import that failed may be tried again
                self.then()

            spec.loader.exec_module = exec_module
        return spec
