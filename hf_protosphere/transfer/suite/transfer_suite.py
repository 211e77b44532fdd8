"""A transfer suite: several models on several data sets, in one table, over a baseline.

What is done is seen from the folders alone, so that the same command always goes on.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ...errors import DataError, SuiteError, TrainingInterrupted, UserError
from ...plots.table import format_table
from ...runs.files import writable_folder, write_json, write_text
from ...runs.loading import kind_of
from ...runs.signals import interruptions
from ..finetune import finetune
from .arguments import TransferSuiteArguments
from .report import compare, format_suite, markdown, plot_improvements
from .rows import Entry, matrix


def transfer_suite(arguments: TransferSuiteArguments) -> dict[str, Any]:
    """Transfer what is missing, as `protosphere transfer-suite` does; then table.md, results.json
    and, with a baseline, improvements.png in `output_dir`.

    A data set that cannot be loaded is a row that says why, and is tried again the next time.

    Returns:
        What results.json holds (see `report.compare`); with `dry_run` nothing.

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
    # Not an Accelerator: the first one decides the precision of all others.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    state.wait_for_everyone()  # all have seen the same rows
    failures: dict[tuple[str, str], str] = {}
    try:
        with interruptions():
            for _, group in groupby(missing, key=lambda entry: entry.dataset):
                failures |= _transfer(list(group))
    except KeyboardInterrupt as interruption:
        raise TrainingInterrupted(
            "stopped; the same command goes on from here.", interruption.args[0]
        ) from None
    state.wait_for_everyone()  # the last row is written
    results = compare(entries, failures)
    if state.is_main_process:
        print(f"\n{format_suite(results)}")
        write_text(folder / "table.md", markdown(results))
        write_json(folder / "results.json", results)
        if any(row["improvement"] is not None for row in results["rows"]):
            plot_improvements(results, folder / "improvements.png")
    state.destroy_process_group()
    if failures:
        models: dict[tuple[str, str], list[str]] = {}  # that failed alike
        for (dataset, model), reason in failures.items():
            models.setdefault((dataset, reason), []).append(model)
        details = "\n\n".join(
            f"{dataset}, {', '.join(alike)}: {reason}"
            for (dataset, reason), alike in models.items()
        )
        raise SuiteError(
            f"{len(failures)} of {len(selected)} transfers failed, the others are done. The same "
            f"command tries these again.\n\n{details}"
        )
    return results


def _transfer(entries: list[Entry]) -> dict[tuple[str, str], str]:
    """Transfer models to one data set; what failed, and why."""
    failures = {}
    for entry in entries:
        try:
            finetune(entry.arguments, last=False)
        except TrainingInterrupted:
            raise
        except DataError as error:  # the same for every model
            return failures | {
                (other.dataset, other.model): str(error)
                for other in entries[entries.index(entry) :]
            }
        except UserError as error:
            failures[entry.dataset, entry.model] = str(error)
    return failures


def _print_plan(entries: list[Entry]) -> None:
    table = [["data set", "model", "done", "to do"]]
    for entry in entries:
        done, missing = ", ".join(entry.rows()) or "-", ", ".join(entry.missing()) or "nothing"
        table.append([entry.dataset, entry.model, done, missing])
    print(format_table(table, text_columns=4))
