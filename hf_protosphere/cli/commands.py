"""The commands of `commands.yaml`: the module of each, its arguments, and what it is for."""

import gc
import json
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..arguments.parsing import parse_arguments, parser_of
from ..errors import ArgumentError
from ..imports.places import is_here, module_at

PARENTS = {os.getpid(): os.getppid()}  # of this process before the imports, in which its launcher may end
OF_DATA = ("dataset_config", "dataset_revision", "image_column", "label_column", "labels", "exclude")


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
    positional: str = ""  # arguments that need no flag; the last one may be several
    common: str = ""  # ten that --help keeps to, where there are more
    next: Sequence[str] = ()  # what to type then: the first of which all {values} are there, see `following`

    def parser(self) -> Any:
        return parser_of(
            _imported(self.arguments), prog=f"protosphere {self.name}", description=self.description,
            positional=self.positional.split(), common=self.common.split(), example=self.example,
        )  # fmt: skip

    def parse(self, argv: Sequence[str]) -> Any:
        return parse_arguments(_imported(self.arguments), argv, self.parser())

    def __call__(self, argv: Sequence[str]) -> Any:
        gc.disable()  # it takes a fifth of the time of all imports
        try:
            arguments = self.parse(argv)  # before the job, whose module is slow to import
            if "WORLD_SIZE" in os.environ:
                _imported("runs.processes:join_processes")(PARENTS.get(os.getpid(), os.getppid()))
            job = _imported(self.job)
        finally:
            gc.enable()
        report = job(arguments)
        is_asked = not any(getattr(arguments, name, False) for name in ("dry_run", "json"))
        if is_asked and (line := self.following(arguments)):
            _imported("runs.processes:announce")(f"next: protosphere {line}")
        return report

    def following(self, arguments: Any) -> str | None:
        """What to type next, with the arguments of this command; with "data", what is given of the data set;
        "kept", the folder of the model that is there now; and "test", nothing, where its run has test images."""
        values = {name: shlex.quote(str(value)) for name, value in vars(arguments).items() if value}
        of_data = (name for name in OF_DATA if name in values and name in arguments.given)
        values["data"] = " ".join([values.get("dataset_name", ""), *(f"--{name} {values[name]}" for name in of_data)])
        folders = [getattr(arguments, name, None) for name in ("output_dir", "model", "folder")]
        for folder in reversed([folder for folder in folders if folder]):
            with suppress(OSError, ValueError, KeyError):  # another's, or none
                if json.loads(Path(folder, "config.json").read_text())["model_type"] == "protosphere":
                    values["kept"] = shlex.quote(folder)
                    values |= {"test": ""} if "test" in json.loads(Path(folder, "results.json").read_text()) else {}
        for line in self.next:
            with suppress(KeyError):
                return line.format_map(values)
        return None


def _imported(path: str) -> Any:
    module, name = path.split(":")
    if not is_here(module):
        folder = module.rpartition(".")[0].replace(".", "/")
        raise ArgumentError(
            f"this command is in {folder}/ of the repository: clone that, and install it by `pip install -e .` there."
        )
    return getattr(module_at(module), name)


ENTRIES = yaml.safe_load(Path(__file__).with_name("commands.yaml").read_text("utf-8"))
TEXTS = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text("utf-8"))
COMMANDS = {name: Command(name, **command) for name, command in ENTRIES.items()}
