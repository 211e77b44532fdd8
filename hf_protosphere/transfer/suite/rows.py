"""The rows of a transfer suite: which transfers there are, and how far each has come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ArgumentError
from ...runs.checkpoints import refuse_changed_transfer
from ..arguments import FinetuneArguments
from ..finetune import rows_on_disk
from .arguments import TransferSuiteArguments


@dataclass(frozen=True)
class Entry:
    """One model on one data set: a transfer in every mode, in `folder`."""

    dataset: str
    model: str
    metric: str
    arguments: FinetuneArguments

    @property
    def folder(self) -> Path:
        return Path(self.arguments.output_dir)

    def rows(self) -> dict[str, dict[str, Any]]:
        """What is done, by mode.

        Raises:
            ArgumentError: the folder holds a transfer with other arguments.
        """
        refuse_changed_transfer(self.folder, vars(self.arguments))
        rows = rows_on_disk(self.folder)
        modes = self.arguments.modes
        return {mode: rows[mode, None, 0] for mode in modes if (mode, None, 0) in rows}

    def missing(self) -> list[str]:
        """The modes that are to do."""
        rows = self.rows()
        return [mode for mode in self.arguments.modes if mode not in rows]


def matrix(arguments: TransferSuiteArguments) -> list[Entry]:
    """All models on all data sets, data set by data set.

    Raises:
        ArgumentError: naming the data set whose arguments cannot work, or two models whose results
            would lie in the same folder.
    """
    entries = [
        Entry(dataset, model, arguments.metric(dataset), arguments.finetuning(dataset, model))
        for dataset in arguments.datasets
        for model in arguments.models
    ]
    by_folder: dict[Path, Entry] = {}
    for entry in entries:
        first = by_folder.setdefault(entry.folder, entry)
        if first is not entry:
            raise ArgumentError(
                f"--models {first.model} and {entry.model} would both lie in {entry.folder}: "
                "rename one."
            )
    return entries
