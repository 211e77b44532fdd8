"""What the networks of the study are measured for, a JSON file for each row."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.labels import labels_of
from hf_protosphere.data.pixels import pixels_of
from hf_protosphere.data.subsets import drawn
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.modeling_protosphere import ProtoSphereForImageClassification
from hf_protosphere.runs.files import write_json
from hf_protosphere.runs.loading import load_classifier
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.runs.snapshots import snapshot_of
from hf_protosphere.transfer.arguments import FinetuneArguments
from hf_protosphere.transfer.finetune import finetune

from .training import OBJECTIVES, Network, Scale

TRANSFER_MODES = "prototypes,linear_probe,full"
SHOTS = "5,50"
CORRUPTED_IMAGES, SEVERITY = 600, 3
NEW_CLASS_IMAGES = 20  # of each class that is added
# Metrics of neural collapse whose value at the end of cross-entropy the other losses race to.
RACE = ("nc1_cdnv", "nc2_equiangular", "nc3_self_duality")
Row = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One stage of one network."""

    stage: str
    objective: str
    seed: int

    def path(self, output_dir: Path) -> Path:
        return output_dir / "rows" / self.stage / f"{self.objective}-{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.stage} of {self.objective}, seed {self.seed}"


def rows_to_measure(output_dir: Path, seeds: Sequence[int]) -> list[Measurement]:
    """Those that are not on the disk yet."""
    rows = [
        Measurement(stage, objective, seed)
        for seed in seeds
        for objective in OBJECTIVES
        for stage in MEASURED
    ]
    return [row for row in rows if not row.path(output_dir).exists()]


def measure_row(data: dict[str, Path], output_dir: Path, scale: Scale, row: Measurement) -> None:
    """Measure it and write it down, whole or not at all."""
    path = row.path(output_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        result = MEASURED[row.stage](data, output_dir, scale, row.objective, row.seed)
    write_json(path, result)


def measure(output_dir: Path, seeds: Sequence[int]) -> dict[str, dict[tuple[str, int], Row]]:
    """{stage: {(objective, seed): row}} of finished rows and networks."""
    pairs = [(objective, seed) for objective in OBJECTIVES for seed in seeds]
    rows = {
        stage: {
            pair: json.loads(Measurement(stage, *pair).path(output_dir).read_text())
            for pair in pairs
        }
        for stage in MEASURED
    }
    for stage, long_tailed in (("known", False), ("long_tailed", True)):
        folders = {pair: Network(*pair, long_tailed).folder(output_dir) for pair in pairs}
        rows[stage] = {
            pair: json.loads((folder / "results.json").read_text())
            for pair, folder in folders.items()
        }
    rows["race"] = {pair: _race(output_dir, *pair) for pair in pairs}
    return rows


def _race(output_dir: Path, objective: str, seed: int) -> Row:
    """The first step at which each metric is at least as near its optimum as cross-entropy's at
    the end of its training, on the validation images; None if never."""
    key = "validation_neural_collapse"

    def records(name: str) -> list[Row]:
        path = Network(name, seed).folder(output_dir) / "metrics.jsonl"
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


def _unknown(
    data: dict[str, Path], output_dir: Path, scale: Scale, objective: str, seed: int
) -> Row:
    """The test images of the known classes against those of the unknown ones."""
    report = evaluate(
        EvaluateArguments(
            model=str(Network(objective, seed).folder(output_dir)), dataset_name=str(data["known"]),
            ood_dataset=str(data["unknown"]), num_workers=0, check_images=False, class_means=True,
        )
    )  # fmt: skip
    return report["ood"]


def _corruptions(
    data: dict[str, Path], output_dir: Path, scale: Scale, objective: str, seed: int
) -> Row:
    """Errors on corrupted test images."""
    report = evaluate(
        EvaluateArguments(
            model=str(Network(objective, seed).folder(output_dir)), dataset_name=str(data["known"]),
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
        "model": str(Network(objective, seed).folder(output_dir)),
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
        FinetuneArguments(
            **options, epochs=scale.transfer_epochs, nc_every=0, output_dir=str(folder / "all")
        )
    )
    # The seeds of the networks are the trials: the images are drawn by them.
    few = finetune(
        FinetuneArguments(
            **options, epochs=1, min_steps=60, shots=SHOTS, trials=1,
            output_dir=str(folder / "few"),
        )
    )  # fmt: skip
    return {"rows": everything["rows"] + few["rows"]}


def _new_classes(
    data: dict[str, Path], output_dir: Path, scale: Scale, objective: str, seed: int
) -> Row | None:
    """Accuracy among all ten classes once the other four were added from a few images each, with
    and without centring; None of cross-entropy, which has no prototypes."""
    if objective == "cross_entropy":
        return None
    folder = str(Network(objective, seed).folder(output_dir))
    network, processor = load_classifier(folder)
    images = {
        part: load_image_dataset(str(path), validation_fraction=0, check_images=False)
        for part, path in data.items()
    }
    new = images["unknown"]
    rows = drawn(labels_of(new.splits["train"]), [NEW_CLASS_IMAGES] * new.num_labels, seed)
    few = new.splits["train"].select(rows)
    by_class: dict[str, list[Any]] = {name: [] for name in new.label_names}
    for image, label in zip(few["image"], few["label"]):
        by_class[new.label_names[label]].append(image)

    def accuracy(model: ProtoSphereForImageClassification, part: str) -> float:
        split, right = images[part].splits["test"], 0
        names = images[part].label_names
        for start in range(0, len(split), 250):
            batch = split[start : start + 250]
            with torch.no_grad():
                predicted = model(pixels_of(batch["image"], processor)).logits.argmax(1)
            wanted = [model.config.label2id[names[label]] for label in batch["label"]]
            right += (predicted == torch.tensor(wanted)).sum().item()
        return right / len(split)

    row: Row = {"before": accuracy(network.eval(), "known")}
    center = snapshot_of(folder).center
    for name, options in (("plain", {}), ("centred", {"center": center})):
        model = copy.deepcopy(network)
        model.add_classes(by_class, processor, **options)
        row[name] = {part: accuracy(model, part) for part in ("known", "unknown")}
    return row


MEASURED: dict[str, Callable[[dict[str, Path], Path, Scale, str, int], Row]] = {
    "unknown": _unknown,
    "corruptions": _corruptions,
    "transfer": _transfer,
    "new_classes": _new_classes,
}
