"""Rows of a study: measured one by one, each a file, so that what is done is not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_protosphere.runs.files import write_json

Measured = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One training, and what is measured of it."""

    task: str  # what is asked of it
    data: str  # which images
    method: str
    seed: int

    def path(self, folder: Path) -> Path:
        method = self.method.replace(" ", "_").replace("/", "-")
        return folder / self.task / self.data / f"{method}-{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.task}, {self.data}, {self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Work:
    """What every row of a stage is given."""

    data: Mapping[str, str]  # names of data sets, and where each is: a Hub id or a folder
    folder: Path  # of the stage's rows
    options: Mapping[str, Any]


def measure(
    rows: Sequence[Row], function: Callable[[Row, Work], Measured], work: Work, jobs: int
) -> dict[Row, Measured]:
    """Measure those that are not on the disk yet, so many at a time, and read all of them."""
    missing = [row for row in rows if not row.path(work.folder).exists()]
    if missing:
        started, context = time.perf_counter(), multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, context, _start_worker, (jobs,))
        try:
            tasks = [pool.submit(_measure_row, row, function, work) for row in missing]
            for i, (row, task) in enumerate(zip(missing, tasks), start=1):
                task.result()
                print(f"{time.perf_counter() - started:6.0f} s  {i}/{len(missing)}  {row}", flush=True)
        finally:  # what has not begun shall not, after an error or Ctrl-C
            pool.shutdown(cancel_futures=True)
    return {row: json.loads(row.path(work.folder).read_text()) for row in rows}


def _measure_row(row: Row, function: Callable[[Row, Work], Measured], work: Work) -> None:
    """Measure it and write it down, whole or not at all."""
    path = row.path(work.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        result = function(row, work)
    write_json(path, result)


def _start_worker(jobs: int) -> None:
    """In each process of the pool."""
    # The parent tells them to end; each would otherwise print a traceback of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, cores() // jobs))


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
