"""A transfer suite: several models on several data sets, in one table, over a baseline.

What is done is seen from the folders alone, so that the same command always goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

from hf_protosphere.errors import ArgumentError, DataError, TrainingInterrupted, UserError
from hf_protosphere.plots.table import format_table
from hf_protosphere.plots.text import say
from hf_protosphere.runs.checkpoints import refuse_changed_transfer
from hf_protosphere.runs.files import whole_file, writable_folder, write_json, write_text
from hf_protosphere.runs.folders import held_for_all
from hf_protosphere.runs.loading import kind_of
from hf_protosphere.runs.processes import own_accelerate_state
from hf_protosphere.runs.signals import interruptions
from hf_protosphere.transfer.arguments import FinetuneArguments
from hf_protosphere.transfer.finetune import finetune, rows_on_disk, transfer_images

from .arguments import TransferSuiteArguments
from .report import Results, format_suite, markdown, plot_improvements

SUITE_FILES = ("table.md", "results.json", "improvements.png")


class SuiteError(UserError):
    """Some transfers of a suite could not be done; all others were."""


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
        """What is done, by mode; an `ArgumentError` where the folder holds another transfer."""
        refuse_changed_transfer(self.folder, vars(self.arguments))
        rows = rows_on_disk(self.folder)
        return {m: rows[m, None, 0] for m in self.arguments.modes if (m, None, 0) in rows}

    def missing(self) -> list[str]:
        """The modes that are to do."""
        done = self.rows()
        return [mode for mode in self.arguments.modes if mode not in done]


@own_accelerate_state()
def transfer_suite(arguments: TransferSuiteArguments) -> Results:
    """Transfer what is missing, as `protosphere transfer-suite` does; then table.md, results.json
    and, with a baseline, improvements.png in `output_dir`.

    A data set that cannot be loaded is a row that says why, and is tried again the next time.

    Returns:
        What results.json holds (see `compare`); with `dry_run` nothing.

    Raises:
        ArgumentError: before any work; also for a folder that holds results of other arguments.
        SuiteError: at the end, with what failed and why.
        TrainingInterrupted: after SIGINT or SIGTERM; the same command goes on.
    """
    entries = matrix(arguments)
    selected = [entry for entry in entries if not arguments.only or entry.dataset in arguments.only]
    for entry in entries:  # all of them: the table holds also what is not to do now
        entry.rows()
    missing = [entry for entry in selected if entry.missing()]
    if arguments.dry_run:
        _print_plan(selected)
        return {}
    for model in dict.fromkeys(entry.model for entry in missing):
        kind_of(model, "--models")
    folder = writable_folder(arguments.output_dir, "--output_dir")
    # Not an Accelerator, whose precision is that of the data set's transfers.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    state.wait_for_everyone()  # all have seen the same rows
    with held_for_all(state, folder, "--output_dir", SUITE_FILES):
        failures: dict[tuple[str, str], str] = {}
        with interruptions():
            for _, group in groupby(missing, key=lambda entry: entry.dataset):
                failures |= _transfer(list(group))
        state.wait_for_everyone()  # the last row is written
        results = compare(entries, failures)
        if state.is_main_process:
            write_text(folder / "table.md", markdown(results))
            write_json(folder / "results.json", results)
            if any(row["improvement"] is not None for row in results["rows"]):
                with whole_file(folder / "improvements.png") as unfinished:
                    plot_improvements(results, unfinished)
            say(f"\n{format_suite(results)}")
    state.destroy_process_group()
    if failures:
        models: dict[tuple[str, str], list[str]] = {}  # that failed alike
        for (dataset, model), reason in failures.items():
            models.setdefault((dataset, reason), []).append(model)
        details = "\n\n".join(f"{dataset}, {', '.join(of)}: {reason}" for (dataset, reason), of in models.items())
        raise SuiteError(
            f"{len(failures)} of {len(selected)} transfers failed, the others are done. The same "
            f"command tries these again.\n\n{details}"
        )
    return results


def _transfer(entries: list[Entry]) -> dict[tuple[str, str], str]:
    """Transfer models to one data set, loaded once; what failed, and why."""
    failures, first = {}, entries[0].arguments
    try:
        images = transfer_images(first, Accelerator())
    except DataError as error:
        return {(entry.dataset, entry.model): str(error) for entry in entries}
    for entry in entries:
        try:
            finetune(entry.arguments, images=images, last=False)
        except TrainingInterrupted:
            raise
        except UserError as error:
            failures[entry.dataset, entry.model] = str(error)
    return failures


def matrix(arguments: TransferSuiteArguments) -> list[Entry]:
    """All models on all data sets, data set by data set. An `ArgumentError` names one whose
    arguments cannot work, or two models whose results would lie in the same folder."""
    entries = [
        Entry(dataset, model, arguments.metric(dataset), arguments.finetuning(dataset, model))
        for dataset in arguments.datasets
        for model in arguments.models
    ]
    by_folder: dict[Path, Entry] = {}
    for entry in entries:
        if (first := by_folder.setdefault(entry.folder, entry)) is not entry:
            raise ArgumentError(
                f"--models {first.model} and {entry.model} would both lie in {entry.folder}: rename one."
            )
    return entries


def compare(entries: Sequence[Entry], failures: Mapping[tuple[str, str], str]) -> Results:
    """All metrics and their relative improvements over the baseline, which is the first model.

    Args:
        entries: every model on every data set, with what is done on the disk.
        failures: {(data set, model): why it is not done}.

    Returns:
        {"baseline": None of a single model, "models", "modes", "datasets": {name: metric}, "rows":
        [{"mode", "dataset", "model", "metric", "value", "improvement", "split", "num_images"}],
        "means": [{"mode", "model", "value", "improvement", "datasets"}], "failures": [{"dataset",
        "model", "reason"}]}. Values are fractions; an improvement is (value - baseline) / baseline,
        None of the baseline and without one. Means are over the data sets that every model has;
        the mean improvement is that of their improvements.
    """
    models = list(dict.fromkeys(entry.model for entry in entries))
    modes = entries[0].arguments.modes
    datasets = {entry.dataset: entry.metric for entry in entries}
    done = [(entry, entry.rows()) for entry in entries]
    rows = [
        {
            "mode": mode, "dataset": entry.dataset, "model": entry.model, "metric": entry.metric,
            "value": row[entry.metric], "improvement": None,
            "split": row["split"], "num_images": row["num_images"],
        }
        for mode in modes for entry, of_entry in done if (row := of_entry.get(mode)) is not None
    ]  # fmt: skip
    cells = {(row["mode"], row["dataset"], row["model"]): row for row in rows}
    for (mode, dataset, model), row in cells.items():
        baseline = cells.get((mode, dataset, models[0]), {}).get("value")
        if model != models[0] and baseline:
            row["improvement"] = (row["value"] - baseline) / baseline
    means = []
    for mode in modes:
        common = [d for d in datasets if all((mode, d, model) in cells for model in models)]
        for model in models if common else []:
            own = [cells[mode, dataset, model] for dataset in common]
            over = [row["improvement"] for row in own]
            means.append({
                "mode": mode, "model": model, "value": fmean(row["value"] for row in own),
                "improvement": None if None in over else fmean(over), "datasets": common,
            })  # fmt: skip
    return {
        "baseline": models[0] if len(models) > 1 else None,
        "models": models, "modes": modes, "datasets": datasets, "rows": rows, "means": means,
        "failures": [
            {"dataset": dataset, "model": model, "reason": reason}
            for (dataset, model), reason in failures.items()
        ],
    }  # fmt: skip


def _print_plan(entries: list[Entry]) -> None:
    header = ["data set", "model", "done", "to do"]
    rows = [[e.dataset, e.model, ", ".join(e.rows()) or "-", ", ".join(e.missing()) or "nothing"] for e in entries]
    say(format_table([header, *rows], text_columns=4))
