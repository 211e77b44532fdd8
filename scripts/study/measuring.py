"""What the networks of the study are measured for, a JSON file for each row."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from hf_protosphere.assessment import evaluate
from hf_protosphere.checkpoints import read_metrics
from hf_protosphere.evaluation_arguments import EvaluateArguments
from hf_protosphere.transfer import finetune
from hf_protosphere.transfer_arguments import FinetuneArguments

from .training import OBJECTIVES, Scale, network_folder

TRANSFER_MODES = "prototypes,linear_probe,full"
SHOTS = "5,50"
CORRUPTED_IMAGES, SEVERITY = 600, 3
# Figures of neural collapse whose value at the end of cross-entropy the other losses race to.
RACE = ("nc1_cdnv", "nc2_equiangular", "nc3_self_duality")
Row = dict[str, Any]


def measure(
    data: dict[str, Path], output_dir: Path, scale: Scale, seeds: tuple[int, ...]
) -> dict[str, dict[tuple[str, int], Row]]:
    """Every row that is not on the disk yet is measured and written; all are returned.

    Returns:
        {stage: {(objective, seed): row}}.
    """
    stages: dict[str, Callable[[str, int], Row]] = {
        "known": lambda objective, seed: _results(output_dir, objective, seed, False),
        "long_tailed": lambda objective, seed: _results(output_dir, objective, seed, True),
        "race": partial(_race, output_dir),
        "unknown": partial(_unknown, data, output_dir),
        "corruptions": partial(_corruptions, data, output_dir),
        "transfer": partial(_transfer, data, output_dir, scale),
    }
    rows: dict[str, dict[tuple[str, int], Row]] = {stage: {} for stage in stages}
    for seed in seeds:
        for objective in OBJECTIVES:
            for stage, run in stages.items():
                path = output_dir / "rows" / stage / f"{objective}-{seed}.json"
                if not path.exists():
                    print(f"{stage}: {objective}, seed {seed}", flush=True)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.with_suffix(".log").open("w") as log, redirect_stdout(log):
                        row = run(objective, seed)
                    unfinished = path.with_suffix(".unfinished")
                    unfinished.write_text(json.dumps(row, indent=2) + "\n")
                    unfinished.replace(path)
                rows[stage][objective, seed] = json.loads(path.read_text())
    return rows


def _results(output_dir: Path, objective: str, seed: int, long_tailed: bool) -> Row:
    folder = network_folder(output_dir, objective, seed, long_tailed)
    return json.loads((folder / "results.json").read_text())


def _race(output_dir: Path, objective: str, seed: int) -> Row:
    """The first step at which each figure is at least as near its optimum as cross-entropy's at
    the end of its training, on the validation images; None if never."""
    key = "validation_neural_collapse"

    def records(name: str) -> list[Row]:
        path = network_folder(output_dir, name, seed) / "metrics.jsonl"
        return [record for record in read_metrics(path) if key in record]

    goal = records("cross_entropy")[-1][key]["attained"]
    race: Row = {"goal": {name: goal[name] for name in RACE}}
    for name in RACE:
        steps = (
            record["step"]
            for record in records(objective)
            if record[key]["attained"][name] >= goal[name]
        )
        race[name] = next(steps, None)
    return race


def _unknown(data: dict[str, Path], output_dir: Path, objective: str, seed: int) -> Row:
    """The test images of the known classes against those of the unknown ones."""
    report = evaluate(
        EvaluateArguments(
            model=str(network_folder(output_dir, objective, seed)), dataset_name=str(data["known"]),
            ood_dataset=str(data["unknown"]), num_workers=0, check_images=False, class_means=True,
        )
    )  # fmt: skip
    return report["ood"]


def _corruptions(data: dict[str, Path], output_dir: Path, objective: str, seed: int) -> Row:
    report = evaluate(
        EvaluateArguments(
            model=str(network_folder(output_dir, objective, seed)), dataset_name=str(data["known"]),
            corruptions=["all"], severities=str(SEVERITY), max_eval_samples=CORRUPTED_IMAGES,
            class_means=False, num_workers=2, check_images=False,
        )
    )  # fmt: skip
    return report["robustness"]


def _transfer(
    data: dict[str, Path], output_dir: Path, scale: Scale, objective: str, seed: int
) -> Row:
    """To the classes that it was not trained on: all training images, and few of them."""
    folder = output_dir / "transfer" / f"{objective}-{seed}"
    options: dict[str, Any] = {
        "model": str(network_folder(output_dir, objective, seed)),
        "dataset_name": str(data["unknown"]),
        "compare": TRANSFER_MODES,
        "seed": seed,
        "num_workers": 0,
        "batch_size": scale.batch_size,
        "augmentation": "crop",
        "mixed_precision": scale.mixed_precision,
        "report_to": ["none"],
        "check_images": False,
        "pictures": False,
        "resume": True,
    }
    everything = finetune(
        FinetuneArguments(**options, epochs=3, nc_every=0, output_dir=str(folder / "all"))
    )
    # The seeds of the networks are the trials: the images are drawn by them.
    few = finetune(
        FinetuneArguments(
            **options, epochs=1, min_steps=60, shots=SHOTS, trials=1,
            output_dir=str(folder / "few"),
        )
    )  # fmt: skip
    return {"rows": everything["rows"] + few["rows"]}
