"""A finished run, read from the files that `protosphere train` left in its folder."""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from ..configuration_protosphere import ProtoSphereConfig
from ..errors import ArgumentError, errors_in_one_line
from .files import sweep
from .loading import load_config
from .reading import read_json, read_yaml

RELIABILITY = "reliability.png"  # drawn by `protosphere calibrate`
# What other commands read of a run's arguments.
KINDS: dict[str, Any] = {
    "dataset_name": str, "backbone": str, "seed": int, "validation_fraction": int | float,
    **dict.fromkeys(("train_split", "on_bad_image"), str), "check_images": bool,
    **dict.fromkeys(("validation_split", "image_column", "label_column"), str | None),
}  # fmt: skip
# In calibration.json as in the configuration, unless the model has changed since.
CALIBRATED = ("rejection_threshold", "false_rejection_rate", "calibration_temperature")


class NotRecorded(ArgumentError, AttributeError):
    """An argument that the version which wrote a run's arguments.yaml did not have."""


class RecordedArguments(SimpleNamespace):
    """The arguments of a run as it wrote them, unchecked: what that machine and version had need not be here."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotRecorded(f"the arguments of the run do not say its {name}.")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{name} is what the run was given: it cannot be changed.")


def read_run_arguments(folder: str | Path) -> RecordedArguments | None:
    """What arguments.yaml in a run's folder holds; None where there is no such file."""
    path = Path(folder) / "arguments.yaml"
    if not path.is_file():
        return None
    values = read_yaml(path, again := _again(folder))
    for name, kinds in KINDS.items():
        if name in values and not isinstance(values[name], kinds):
            raise ArgumentError(f"{path} has {name}: {values[name]!r:.60}, which is none: {again}")
    return RecordedArguments(**values)


def _again(folder: str | Path) -> str:
    return f"`protosphere train --output_dir {folder} ...` writes it at the end of a run, with --resume if it stopped."


@dataclass(frozen=True)
class FinishedRun:
    """Configuration, arguments and results, for what comes after training: cards, publishing."""

    folder: Path
    config: ProtoSphereConfig
    arguments: RecordedArguments
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "FinishedRun":
        folder = Path(folder)
        if not folder.is_dir():
            raise ArgumentError(f"{folder}: there is no such folder.")
        sweep(folder)
        again = _again(folder)
        for name in ("config.json", "arguments.yaml", "results.json"):
            if not (folder / name).is_file():
                raise ArgumentError(f"{folder} has no {name}: {again}")
        results = read_json(folder / "results.json", again)
        if not isinstance(results.get("provenance"), dict):
            raise ArgumentError(f"{folder}/results.json has no provenance: {again}")
        return cls(folder, load_config(str(folder), "folder"), read_run_arguments(folder), results)

    def reading(self) -> AbstractContextManager[None]:
        """Around what reads values that anybody may have edited: what is missing or wrong is an `ArgumentError`."""
        return errors_in_one_line(f"{self.folder} does not hold what training writes", _again(self.folder))

    @property
    def provenance(self) -> dict[str, Any]:
        return self.results["provenance"]

    @property
    def class_names(self) -> list[str]:
        """Of the classes that it was trained on, in the order of its metrics."""
        return [name for name in self.config.class_names if name not in self.added_classes]

    @property
    def added_classes(self) -> dict[str, int]:
        """Classes that came without training, and how many images their prototypes are made of."""
        return self.results.get("added_classes", {})

    @cached_property
    def calibration(self) -> dict[str, Any] | None:
        """What `protosphere calibrate` measured of the model as it is, without paths; None where it has not."""
        path = self.folder / "calibration.json"
        if not path.is_file():
            return None
        report = read_json(path, f"`protosphere calibrate {self.folder} ...` writes it again.")
        if any(report.get(name) != getattr(self.config, name) for name in CALIBRATED):
            return None
        del report["model"]
        report["source"] = report["source"].replace(self.arguments.dataset_name, self.dataset_name)
        return report

    @property
    def classifier(self) -> str:
        return self.config.prototypes if self.config.has_prototypes else "linear"

    @property
    def held_out(self) -> list[str]:
        """The evaluated splits; "train" where there were no others."""
        return [split for split in ("validation", "test", "train") if split in self.results]

    @property
    def reported(self) -> str:
        """The split that speaks for the model."""
        return self.held_out[-1]

    def is_drawn_from_training(self, split: str) -> bool:
        splits = self.provenance["splits"]
        return splits[split]["from"] == splits["train"]["from"]

    @property
    def dataset_id(self) -> str | None:
        """On the Hub; None for a local one."""
        return self.provenance["dataset"]

    @property
    def dataset_name(self) -> str:
        """Of a local path only the last part, as it is: not safe to print."""
        return self.dataset_id or re.split(r"[/\\]", self.arguments.dataset_name.rstrip("/\\"))[-1]

    @property
    def default_name(self) -> str:
        """For a repository: ASCII letters, digits, - and _."""
        return "-".join(filter(None, map(slug, (self.dataset_name, self.config.backbone, self.config.objective))))


def slug(text: str) -> str:
    """The text as a part of a repository's name: ASCII letters, digits, - and _, at most 28."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)[:28].strip("-_")
