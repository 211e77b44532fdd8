"""What the losses are good for, and what they are not: stages of measured rows, each one command.

    python -m scripts.study frozen_features --model path/to/efficientnet_lite0 \\
        --data clothing=path/to/clothing cifar10=path/to/cifar10
    python -m scripts.study small_network --data cifar10=path/to/cifar10
    python -m scripts.study temperature --model ... --data cifar10=...

A data set is an id on the Hub or a folder. Everything is written row by row: the same command goes
on where it was stopped, also when it was killed. The tables of a stage go into its RESULTS.md.
"""

import argparse
import importlib
import time
from pathlib import Path

from .rows import Work, cores, measure
from .tables import Results

STAGES = ("temperature", "frozen_features", "small_network", "full_cifar10")


def main() -> None:
    a = _arguments()
    stage = importlib.import_module(f".{a.stage}.stage", __package__)
    data = dict(item.split("=", 1) for item in a.data)
    work = Work(data, a.output_dir / a.stage, {"model": a.model})
    started = time.perf_counter()
    seeds = stage.SEEDS if a.seeds is None else stage.SEEDS[: a.seeds]
    rows = [
        row
        for row in stage.rows(list(data), seeds)
        if (a.tasks is None or row.task in a.tasks) and (a.methods is None or row.method in a.methods)
    ]
    results = measure(rows, stage.measure, work, a.jobs)
    if a.methods is None:
        report = importlib.import_module(f".{a.stage}.report", __package__)
        report.write(Results(results), a.report or Path(__file__).parent / a.stage)
    print(f"{len(rows)} rows, {time.perf_counter() - started:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m scripts.study", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("stage", choices=STAGES)
    add("--data", nargs="+", required=True, metavar="NAME=WHERE", help="clothing, cifar10.")
    add("--model", help="The pretrained backbone: a timm model or a folder saved by timm.")
    add("--output_dir", type=Path, default=Path("outputs/study"), help="Folder of the rows.")
    add("--report", type=Path, help="Folder of RESULTS.md; by default the stage's own.")
    add("--seeds", type=int, help="So many; by default five of heads, three of networks.")
    add("--tasks", nargs="+", help="Of the stage: these alone, and their tables.")
    add("--methods", nargs="+", help="Measure these alone, without a report.")
    add("--jobs", type=int, default=cores(), help="Rows at a time; one for each core.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
