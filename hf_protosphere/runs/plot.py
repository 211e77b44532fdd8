"""All pictures of a run, drawn from its finished files: no model, no images, no training."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..errors import ArgumentError, errors_in_one_line
from ..metrics.monitoring import COLLAPSE
from ..plots.curves import Records, plot_collapse, plot_curves
from ..plots.sphere import plot_cosines, plot_margins, plot_sphere
from ..plots.text import say
from .arguments import PlotArguments
from .files import replacing_files, whole_file, writable_folder
from .folders import PICTURES, claim
from .metrics_log import read_metrics
from .snapshots import SNAPSHOT, load_snapshot

TRAINER_RECORDS = "neural_collapse.jsonl"  # what `NeuralCollapseCallback` writes
RECORDS = ("metrics.jsonl", TRAINER_RECORDS)


def draw_run(
    run: Path, folder: Path | None = None, suffix: str = ".png", *,
    classes: Sequence[str] | None = None, target: float = 95.0,
) -> list[Path]:  # fmt: skip
    """Draw what the files of a run allow; also of one that goes on.

    Args:
        run: with metrics.jsonl (or neural_collapse.jsonl) and, once training is over, a snapshot.
        folder: for the pictures, which are returned; by default the run's.
        suffix: of the pictures, .png, .svg or .pdf.
    """
    records, names = _records(run), []
    with replacing_files(folder or run) as new:
        if any("train_loss" in record for record in records):
            names.append(f"curves{suffix}")
            plot_curves(records, new / names[-1])
        if any(key.endswith(COLLAPSE) for record in records for key in record):
            names.append(f"neural_collapse{suffix}")
            plot_collapse({run.name: records}, new / names[-1], target)
        if (run / SNAPSHOT).exists():
            names += [path.name for path in draw_snapshot(run, new, suffix, classes)]
    if not names:
        raise ArgumentError(
            f"{run} holds nothing to draw: it must be the --output_dir of a run, with {' or '.join(RECORDS)}, or have "
            f"{SNAPSHOT}, which `protosphere evaluate --pictures` writes."
        )
    return [(folder or run) / name for name in names]


def draw_snapshot(run: Path, folder: Path, suffix: str = ".png", classes: Sequence[str] | None = None) -> list[Path]:
    """The sphere, the cosines between classes and the margins, from the snapshot in `run`."""
    snapshot = load_snapshot(run / SNAPSHOT)
    drawings = {"cosines": plot_cosines, "margins": plot_margins, "sphere": partial(plot_sphere, classes=classes)}
    for name, draw in drawings.items():
        draw(snapshot, folder / f"{name}{suffix}")
    return [folder / f"{name}{suffix}" for name in drawings]


def plot(arguments: PlotArguments) -> list[Path]:
    """Draw the pictures of runs again, as `protosphere plot` does."""
    runs = [Path(run) for run in arguments.runs]
    for run in runs:
        if not run.is_dir():
            raise ArgumentError(f"--runs {run}: there is no such folder.")
    folder = writable_folder(arguments.output_dir or runs[0], "--output_dir")
    suffix, target = f".{arguments.format}", arguments.nc_target
    compared = f"neural_collapse_compared{suffix}"
    claim(folder, "--output_dir", (*(f"{name}{suffix}" for name in PICTURES), compared))
    with errors_in_one_line(f"--runs {' '.join(map(str, runs))} cannot be drawn"):
        if len(runs) == 1:
            pictures = draw_run(runs[0], folder, suffix, classes=arguments.classes, target=target)
        else:
            pictures, names = [folder / compared], [run.resolve().name for run in runs]
            names = names if len({*names}) == len(runs) else map(str, runs)
            with whole_file(pictures[0]) as unfinished:
                plot_collapse(dict(zip(names, map(_records, runs))), unfinished, target)
    for path in pictures:
        say(path)
    return pictures


def _records(run: Path) -> Records:
    return next((records for name in RECORDS if (records := read_metrics(run / name))), [])
