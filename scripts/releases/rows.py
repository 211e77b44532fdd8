"""The rows of a release: which runs there are, with which arguments, and how far each has come."""

import shlex
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

from hf_protosphere.arguments.parsing import read_yaml
from hf_protosphere.errors import ArgumentError, UserError
from hf_protosphere.runs.checkpoints import changed_arguments, newest_checkpoint
from hf_protosphere.runs.finished_run import FinishedRun, slug
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.setup import resolve

from .arguments import ReleaseArguments

FINISHED, TO_RESUME, MISSING = "finished", "to resume", "missing"


@dataclass(frozen=True)
class Row:
    """One model of a release: a run in `folder`, a repository of the same name."""

    name: str
    recipe: str
    arguments: TrainArguments
    launch: str | None

    @property
    def folder(self) -> Path:
        return Path(self.arguments.output_dir)

    @property
    def config(self) -> Path:
        """What `protosphere train` is given, written before it starts."""
        return self.folder.with_name(f"{self.name}.yaml")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.name}.log")

    @property
    def command(self) -> list[str]:
        launcher = ["-m", "accelerate.commands.launch", *shlex.split(self.launch or "")]
        module = ["-m", "hf_protosphere.cli", "train", "--config", str(self.config)]
        return [sys.executable, *(launcher if self.launch else []), *module]

    def state(self) -> str:
        """An `ArgumentError` where the folder holds a run with other arguments, or results that are not whole."""
        results = (self.folder / "results.json").exists()
        if not results and newest_checkpoint(self.folder / "checkpoints") is None:
            return MISSING
        if changed := changed_arguments(self.folder, vars(resolve(self.arguments)[0])):
            raise ArgumentError(
                f"{self.folder} holds a run of other arguments: {'; '.join(changed)}. Remove that "
                "folder, or give another --output_dir."
            )
        if not results:
            return TO_RESUME
        FinishedRun.read(self.folder)
        return FINISHED


def matrix(arguments: ReleaseArguments) -> list[Row]:
    """All rows of a release, recipe by recipe.

    Raises:
        ArgumentError: naming the row whose arguments cannot work, or what does not fit together.
    """
    rows = [
        _row(arguments, Path(recipe), objective, seed)
        for recipe in arguments.recipes
        for objective in arguments.objectives
        for seed in arguments.seeds
    ]
    by_name: dict[str, Row] = {}
    for row in rows:
        if (first := by_name.setdefault(row.name, row)) is not row:
            raise ArgumentError(f"recipes: {first.recipe} and {row.recipe} both give {row.name}: rename one.")
    for pattern in (*arguments.skip, *arguments.overrides, *arguments.launch):
        if not any(fnmatchcase(name, pattern) for name in by_name):
            raise ArgumentError(
                f"skip, overrides, launch: {pattern!r} matches no model; one is called {rows[0].name}."
            )
    for recipe, siblings in groupby(rows, key=lambda row: row.recipe):
        data = {row.arguments.dataset_name for row in siblings}
        if len(data) > 1:
            raise ArgumentError(
                f"{recipe}: its models are compared, but they are on several data sets, "
                f"{', '.join(sorted(data))}: give these recipes of their own."
            )
    kept = [row for row in rows if not any(fnmatchcase(row.name, each) for each in arguments.skip)]
    if not kept:
        raise ArgumentError(f"skip: {' '.join(arguments.skip)} leaves no model to train.")
    return kept


def _row(arguments: ReleaseArguments, recipe: Path, objective: str, seed: int) -> Row:
    variant = recipe.with_name(f"{recipe.stem}-{objective}{recipe.suffix}")
    values = read_yaml(str(variant if variant.exists() else recipe), TrainArguments)
    name = "-".join([slug(recipe.stem), slug(values.get("backbone", "resnet18")), objective, f"seed{seed}"])
    launch = None
    for pattern, more in arguments.overrides.items():
        values |= more if fnmatchcase(name, pattern) else {}
    for pattern, options in arguments.launch.items():
        launch = options if fnmatchcase(name, pattern) else launch
    folder = str(Path(arguments.output_dir) / name)
    values |= {"objective": objective, "seed": seed, "output_dir": folder, "resume": True}
    values |= {"overwrite": False, "dry_run": False}
    try:
        return Row(name, str(recipe), TrainArguments(**values), launch)
    except (UserError, TypeError) as error:  # TypeError: no dataset_name
        raise ArgumentError(f"{recipe}, {name}: {error}") from error
