"""A release: a matrix of recipes, objectives and seeds, trained and published row by row.

What is done is seen from the folders and the Hub alone, so that the same command always goes on.
Every row is trained by a process of its own: what ends one leaves the others.
"""

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import IO

from filelock import FileLock

from hf_protosphere.errors import ArgumentError, UserError
from hf_protosphere.hub.arguments import PublishArguments
from hf_protosphere.hub.comparison import overall_collapse
from hf_protosphere.hub.publish import publish
from hf_protosphere.plots.table import format_table
from hf_protosphere.plots.text import say
from hf_protosphere.runs.files import writable_folder, write_yaml
from hf_protosphere.runs.finished_run import FinishedRun
from hf_protosphere.runs.signals import interruptions

from .arguments import ReleaseArguments
from .collection import account, is_published, publish_collection
from .rows import FINISHED, MISSING, TO_RESUME, Row, matrix


class ReleaseError(UserError):
    """Some models of a release could not be trained or published; all others were."""


def release(arguments: ReleaseArguments) -> None:
    """Train and publish what is missing, as `protosphere release` does.

    A model is published once all models of its recipe are finished, since their cards compare them.

    Raises:
        ArgumentError: before anything is done.
        PublishError: nobody is logged in; before anything is done.
        ReleaseError: at the end, with what failed, where its log is and how to repeat it.
        TrainingInterrupted: after SIGINT or SIGTERM.
    """
    rows = matrix(arguments)
    selected = [row for row in rows if (arguments.only or "") in row.name]
    if not selected:
        raise ArgumentError(f"--only {arguments.only}: no model has this in its name; one is called {rows[0].name}.")
    states = {row.name: row.state() for row in rows}
    user = account() if arguments.publish else None
    namespace = user and (arguments.namespace or user)
    if arguments.dry_run:
        _print_plan(arguments, rows, selected, states, namespace)
        return
    writable_folder(arguments.output_dir, "--output_dir")
    failures: dict[str, str] = {}
    with interruptions():
        for _, group in groupby(rows, key=lambda row: row.recipe):
            siblings = list(group)
            wanted = [row for row in siblings if row in selected]
            for row in wanted:
                if reason := _train(row, f"{selected.index(row) + 1}/{len(selected)}"):
                    failures[row.name] = reason
            if namespace:
                failures |= _publish(arguments, siblings, wanted, namespace)
    table = [["model", "state", "accuracy", "neural collapse"]]
    for row in selected:
        finished = row.state() == FINISHED
        state = "failed" if row.name in failures else FINISHED if finished else MISSING
        table.append([row.name, state, *(_metrics(row) if finished else ("", ""))])
    say(f"\n{format_table(table, text_columns=2)}")
    if failures:
        details = "\n\n".join(f"{name}: {reason}" for name, reason in failures.items())
        raise ReleaseError(f"{len(failures)} failed, the others are done.\n\n{details}")


def _train(row: Row, place: str) -> str | None:
    """Train the row if it is not finished; why that failed, if it did."""
    say(f"{place} {row.name}:", end=" ", flush=True)
    # When a release was killed and started again, it waits for the one that is still training.
    with row.log.open("a") as log, lock_for_children(log):
        code = 0 if row.state() == FINISHED else _run(row, log)
    if code == 0 and row.state() == FINISHED:
        say(f"finished, {_metrics(row)[0]} accuracy")
        return None
    say("failed")
    last = row.log.read_text(errors="replace").strip().split("\n")[-1].split("\r")[-1]
    how = f"ended by signal {-code}" if code < 0 else f"ended with {code}"
    return f"{how}: {last}\n  log:       {row.log}\n  to repeat: {shlex.join(row.command)}"


def _run(row: Row, log: IO[str]) -> int:
    """Train the row; how its process ended. Interruptions are passed on, its end waited for."""
    write_yaml(row.config, row.arguments.given)
    say("training ...", end=" ", flush=True)
    process = subprocess.Popen(row.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt as interruption:
        say("stopping ...", flush=True)
        if os.name == "posix":  # the processes that it started too
            os.killpg(process.pid, interruption.args[0])
        else:
            process.terminate()
        process.wait()
        raise


@contextmanager
def lock_for_children(file: IO[str]) -> Iterator[None]:
    """Wait until nobody else holds the file, and hold it; also for processes that are started with
    it as their output, until the last of them ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where children do not inherit a lock: it is this process's only
        with FileLock(f"{file.name}.lock"):
            yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _publish(arguments: ReleaseArguments, siblings: list[Row], wanted: list[Row], namespace: str) -> dict[str, str]:
    """Publish the wanted of these siblings, if all of them are finished; what failed, and why."""
    unfinished = [row.name for row in siblings if row.state() != FINISHED]
    if unfinished:
        say(f"{siblings[0].recipe}: not published before {', '.join(unfinished)} finished.")
        return {}
    failures, published = {}, []
    for row in wanted:
        options = _publish_arguments(arguments, row, siblings, namespace)
        try:
            publish(options)
            published.append(options.repo_id)
        except UserError as error:
            failures[row.name] = str(error)
    if arguments.collection and published:
        try:
            address = publish_collection(
                arguments.collection, published, namespace=namespace,
                description=arguments.description, private=arguments.private,
            )  # fmt: skip
            say(address)
        except UserError as error:
            failures[f"the collection, {siblings[0].recipe}"] = str(error)
    return failures


def _publish_arguments(arguments: ReleaseArguments, row: Row, siblings: list[Row], namespace: str) -> PublishArguments:
    return PublishArguments(
        folder=str(row.folder), repo_id=f"{namespace}/{row.name}", private=arguments.private,
        revision=arguments.revision, license=arguments.license,
        compare_with=[str(other.folder) for other in siblings if other is not row],
    )  # fmt: skip


def _print_plan(
    arguments: ReleaseArguments, rows: list[Row], selected: list[Row], states: dict[str, str], namespace: str | None
) -> None:
    table = [["model", "state", "to do"]]
    for row in selected:
        siblings = [other for other in rows if other.recipe == row.recipe]
        state = states[row.name]
        steps = {FINISHED: [], TO_RESUME: ["resume training"], MISSING: ["train"]}[state]
        if namespace and all(states[other.name] == FINISHED for other in siblings):
            state = "published" if is_published(_publish_arguments(arguments, row, siblings, namespace)) else state
        will_finish = all(other in selected or states[other.name] == FINISHED for other in siblings)
        if namespace and will_finish and state != "published":
            steps.append(f"publish as {namespace}/{row.name}")
        table.append([row.name, state, ", ".join(steps) or "nothing"])
    say(format_table(table, text_columns=3))


def _metrics(row: Row) -> tuple[str, str]:
    run = FinishedRun.read(row.folder)
    with run.reading():
        collapse = overall_collapse(run)
        shown = "not defined" if collapse is None else f"{collapse:.1f} %"
        return f"{run.results[run.reported]['accuracy']:.2%}", shown
