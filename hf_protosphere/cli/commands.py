"""The commands of `commands.yaml`: the module of each, its arguments, and what it is for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import ArgumentError
from ..imports.places import is_here, module_at


@dataclass(frozen=True)
class Command:
    """A job and its arguments, by name: imported when the command runs, so that `--help` answers
    without loading data sets, Accelerate and so on."""

    name: str
    arguments: str  # room.module:Class, of the package or of scripts/ beside it
    job: str  # likewise room.module:function, the module of the command's own name
    summary: str
    description: str
    example: str  # what stands behind the name
    positional: str = ""  # arguments that need no flag; the last one takes all that are left
    common: str = ""  # arguments that --help begins with, where there are many

    def parse(self, argv: Sequence[str]) -> Any:
        from ..arguments.parsing import parse_arguments

        return parse_arguments(
            _imported(self.arguments), argv, f"protosphere {self.name}", self.description,
            positional=self.positional.split(), common=self.common.split(), example=self.example,
        )  # fmt: skip

    def __call__(self, argv: Sequence[str]) -> Any:
        arguments = self.parse(argv)  # before the job, whose module may be slow to import
        if "WORLD_SIZE" in os.environ:
            _imported("runs.processes:join_processes")()
        return _imported(self.job)(arguments)


def _imported(path: str) -> Any:
    module, name = path.split(":")
    if not is_here(module):
        folder = module.rpartition(".")[0].replace(".", "/")
        raise ArgumentError(
            f"this command is in {folder}/ of the repository, which is not beside the package here: clone the "
            "repository and install it by `pip install -e .` there."
        )
    return getattr(module_at(module), name)


_FILE = Path(__file__).with_name("commands.yaml")
COMMANDS = {
    name: Command(name, **command) for name, command in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()
}
