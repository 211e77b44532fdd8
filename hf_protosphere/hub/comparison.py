"""A finished run beside its siblings: the same recipe with other objectives and seeds."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..errors import ArgumentError
from ..metrics.neural_collapse import METRICS, MetricInfo
from ..runs.finished_run import FinishedRun

# What each objective is, in words, for cards and tables.
WORDS = yaml.safe_load(Path(__file__).with_name("objectives.yaml").read_text(encoding="utf-8"))


class ComparedObjective:
    """The runs with one objective, by seed, and the mean ± standard deviation of their metrics."""

    def __init__(self, title: str, runs: list[FinishedRun]) -> None:
        self.title, self.runs = title, runs
        self.accuracy = spread([100 * run.results[run.reported]["accuracy"] for run in runs], 2)
        collapse = [overall_collapse(run) for run in runs]
        self.neural_collapse = "not defined" if None in collapse else spread(collapse, 1)


def compare(run: FinishedRun, siblings: Sequence[FinishedRun]) -> list[ComparedObjective]:
    """The run and its siblings by objective. The run itself may be one of the siblings.

    Raises:
        ArgumentError: siblings that were measured on other images, and two with the same objective and seed.
    """
    family = {run.folder.resolve(): run} | {other.folder.resolve(): other for other in siblings}
    seen: dict[tuple[str, int], FinishedRun] = {}
    for other in family.values():
        if (other.dataset_name, other.reported) != (run.dataset_name, run.reported):
            raise ArgumentError(
                f"--compare_with {other.folder} was measured on {other.reported} images of {other.dataset_name}, "
                f"{run.folder} on {run.reported} images of {run.dataset_name}: leave it out."
            )
        if (first := seen.setdefault((other.config.objective, other.arguments.seed), other)) is not other:
            both = f"--compare_with: {first.folder} and {other.folder}"
            raise ArgumentError(f"{both} have the same objective and seed: leave out one.")
    by_seed = sorted(seen.values(), key=lambda run: run.arguments.seed)
    groups = {name: [r for r in by_seed if r.config.objective == name] for name in WORDS}
    return [ComparedObjective(WORDS[name]["title"], g) for name, g in groups.items() if g]


def spread(values: Sequence[float], digits: int) -> str:
    """
    >>> spread([95.0, 96.0], 1), spread([95.0], 1)
    ('95.5 ± 0.7 %', '95.0 %')
    """
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation} %"


def overall_collapse(run: FinishedRun) -> float | None:
    """The least attained, in %, of the metrics that apply to the classifier; None where a class had no images."""
    attained = run.results[run.reported]["neural_collapse"]["attained"]
    if "overall" not in attained:
        return None
    return min(attained[m.name] for m in applicable_metrics(run) if m.min_classes <= run.config.num_labels)


def applicable_metrics(run: FinishedRun) -> list[MetricInfo]:
    """The metrics of neural collapse that apply to the run's classifier and images."""
    attained = run.results[run.reported]["neural_collapse"]["attained"]
    return [m for m in METRICS if m.name in attained and not (run.classifier == "linear" and m.needs_prototypes)]
