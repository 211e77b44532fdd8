"""What the losses do to transfer, to unknown classes, to a long tail and under corruptions.

    python -m scripts.study                                  # CIFAR-10 of the Hub, `make study`
    python -m scripts.study --dataset_name path/to/cifar10   # a folder of Parquet files
    python -m scripts.study --scale gpu                      # ResNet-18, all images, 100 epochs

Trains six objectives with three seeds on six of the ten classes, balanced and long-tailed, and
measures what RESULTS.md tells. Everything is written row by row: the same command goes on where it
was stopped, also when it was killed.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .measuring import measure, measure_row, rows_to_measure
from .report import write_report
from .training import CPU, GPU, SEEDS, networks_to_train, prepare_data, start_worker, train_network

SCALES = {"cpu": CPU, "gpu": GPU}


def main() -> None:
    a = _arguments()
    scale, started = SCALES[a.scale], time.perf_counter()
    data = prepare_data(a.dataset_name, a.output_dir / "data", scale)
    seeds = SEEDS[: a.seeds]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(a.jobs, context, start_worker, (a.jobs,))

    def run(job: Callable[..., None], things: Sequence[Any], folders: Any) -> None:
        tasks = [pool.submit(job, folders, a.output_dir, scale, thing) for thing in things]
        for thing, task in zip(things, tasks):
            task.result()
            print(f"{time.perf_counter() - started:5.0f} s  {thing}", flush=True)

    try:
        run(train_network, networks_to_train(a.output_dir, seeds), data["known"])
        run(measure_row, rows_to_measure(a.output_dir, seeds), data)
    finally:  # what has not begun shall not, after an error or Ctrl-C
        pool.shutdown(cancel_futures=True)
    write_report(measure(a.output_dir, seeds), seeds, a.output_dir, a.report)
    print(f"{a.report}/RESULTS.md, {time.perf_counter() - started:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m scripts.study", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--dataset_name", default="uoft-cs/cifar10", help="CIFAR-10: a Hub id or a folder.")
    add("--output_dir", type=Path, default=Path("outputs/study"), help="Networks and rows.")
    add("--report", type=Path, default=Path(__file__).parent, help="Folder of RESULTS.md.")
    add("--scale", choices=SCALES, default="gpu" if torch.cuda.is_available() else "cpu")
    add("--seeds", type=int, choices=range(1, len(SEEDS) + 1), default=len(SEEDS))
    jobs = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    add("--jobs", type=int, default=jobs, help="Rows at a time. By default one for each core.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
