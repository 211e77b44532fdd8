"""How fast runs collapse: the epochs at which metrics of the validation images first attain a share of their optimum.

    python scripts/release.py scripts/releases/airnet.yaml --no_publish
    python -m scripts.study.full_cifar10.speed outputs/airnet/*/

Runs have to be measured in every epoch, as they are by default.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hf_protosphere.metrics.monitoring import COLLAPSE, first_reached
from hf_protosphere.metrics.neural_collapse import METRICS
from hf_protosphere.runs.finished_run import FinishedRun
from hf_protosphere.runs.metrics_log import read_metrics

from ...markdown import markdown_table

# Each at what most runs attain, and at nearly all of it.
TARGETS = {
    "nc1_cdnv": (50, 80),
    "nc2_equiangular": (70, 90),
    "nc3_self_duality": (70, 95),
    "class_alignment": (20, 95),
}
ACCURACY = 0.85


def speeds(folders: Sequence[Path]) -> str:
    """A table of epochs, a row for each run; "-" where it never came so far, and what it ended with."""
    titles = {info.name: info.title for info in METRICS}
    header = ["", f"accuracy {ACCURACY:.0%}".replace("%", " %")]
    header += [f"{titles[name]} {target} %" for name, targets in TARGETS.items() for target in targets]
    rows = [[*header, "CDNV at the end (%)"]]
    for folder in folders:
        run, records = FinishedRun.read(folder), read_metrics(folder / "metrics.jsonl")
        accurate = (r["epoch"] for r in records if r.get("validation_accuracy", 0) >= ACCURACY)
        cells = [run.config.objective, str(next(accurate, "-"))]
        for name, targets in TARGETS.items():
            reached = (first_reached(records, target).get("validation", {}).get(name, {}) for target in targets)
            cells += [str(at.get("epoch", "-")) for at in reached]
        last = records[-1][f"validation{COLLAPSE}"]["attained"]["nc1_cdnv"]
        rows.append([*cells, f"{last:.1f}"])
    return markdown_table(rows)


if __name__ == "__main__":
    print(speeds([*map(Path, sys.argv[1:])]))
