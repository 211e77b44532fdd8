"""Everything that `protosphere evaluate` says of a checkpoint on a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor

from ..data.dataset import ImageDataset, load_data
from ..data.loaders import evaluation_loader
from ..inference.predictions import training_class_means
from ..metrics.snapshot import SnapshotCollector
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..open_set.plots import plot_unknown
from ..open_set.scores import Detection, detect_unknown, format_detection, load_unknown_images
from ..plots.text import say
from ..robustness.measure import corruption_errors, format_robustness
from ..robustness.plots import draw_robustness
from ..runs.files import replacing_files, writable_folder, write_json
from ..runs.folders import held_for_all
from ..runs.loading import load_classifier
from ..runs.plot import draw_snapshot
from ..runs.processes import check_processes, main_process_first, own_accelerate_state
from ..runs.snapshots import SNAPSHOT, save_snapshot
from .arguments import EvaluateArguments
from .classifier_metrics import evaluate_model
from .report import format_report

# What --pictures may leave.
PICTURE_FILES = (
    SNAPSHOT, "cosines.png", "margins.png", "sphere.png", "corruptions.png",
    "corrupted_images.png", "unknown.png",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on its device, and the images that it is measured on, as split "test", whatever
    it is called; and "train" where class means or distances are taken from it, and there is one."""

    arguments: EvaluateArguments
    accelerator: Accelerator
    model: ProtoSphereForImageClassification
    processor: BaseImageProcessor
    images: ImageDataset
    measured: Dataset
    train: Dataset | None
    unknown_images: Dataset | None  # of --ood_dataset

    @classmethod
    def start(cls, arguments: EvaluateArguments) -> Evaluation:
        accelerator = Accelerator()
        check_processes(accelerator)
        model, processor = load_classifier(arguments.model)
        model.to(accelerator.device)
        unknown = None
        with_train = arguments.class_means or arguments.ood_dataset is not None
        with main_process_first(accelerator):
            images = load_data(
                arguments, test_split=arguments.split,
                flags={"test": "--split"}, validation_fraction=0.0, need_train=False,
                need_all_classes=False, label_names=model.config.class_names,
                roles={"test", "train"} if with_train else {"test"},
            )  # fmt: skip
            if arguments.ood_dataset is not None:
                unknown = load_unknown_images(arguments)
        measured, train = images.splits["test"], images.splits.get("train")
        return cls(arguments, accelerator, model, processor, images, measured, train, unknown)

    def loader(self, split: Dataset) -> DataLoader:
        sizes = self.arguments.batch_size, self.arguments.num_workers
        return evaluation_loader(split, self.processor, *sizes, self.accelerator)


@own_accelerate_state()
def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Evaluate a checkpoint on a split of a data set, as `protosphere evaluate` does.

    Returns:
        The report, as --output holds it: "model", "dataset", "split", what `evaluate_predictions`
        returns, and where they were asked for "robustness", as `corruption_errors` returns it, and
        "ood", as `detect_unknown` reports it, with its "dataset".

    Raises:
        ArgumentError: no such checkpoint, or a folder that cannot be written.
        DataError: no such data set or split, or images that cannot be decoded.
    """
    for flag, path in (("pictures", arguments.pictures), ("output", arguments.output)):
        if path is not None:  # before the work
            writable_folder(Path(path) if flag == "pictures" else Path(path).parent, f"--{flag}")
    evaluation = Evaluation.start(arguments)
    with held_for_all(evaluation.accelerator, arguments.pictures, "--pictures", PICTURE_FILES):
        return _measure(evaluation)


def _measure(evaluation: Evaluation) -> dict[str, Any]:
    arguments = evaluation.arguments
    snapshot = SnapshotCollector(evaluation.model.prototypes) if arguments.pictures else None
    named = {"model": arguments.model, "dataset": arguments.dataset_name, "split": arguments.split}
    report = named | _metrics(evaluation, snapshot)
    if arguments.measures_robustness:
        report["robustness"] = _robustness(evaluation)
    detection: Detection | None = None
    if evaluation.unknown_images is not None:
        detection = detect_unknown(
            evaluation.model, evaluation.loader, evaluation.measured, evaluation.unknown_images,
            evaluation.train, evaluation.accelerator,
        )  # fmt: skip
        report["ood"] = {"dataset": arguments.ood_dataset, **detection.report}
    if evaluation.accelerator.is_main_process:
        if arguments.output:
            write_json(Path(arguments.output), report)
        say(json.dumps(report, indent=2) if arguments.json else _tables(evaluation, report))
        if snapshot is not None:
            for path in _draw(evaluation, report, snapshot, detection):
                say(path)
    return report


def _metrics(evaluation: Evaluation, snapshot: SnapshotCollector | None) -> dict[str, Any]:
    model, accelerator, images = evaluation.model, evaluation.accelerator, evaluation.images
    means, wanted = None, evaluation.arguments.class_means and evaluation.train is not None
    if wanted and not images.classes_without_images("train"):
        means = training_class_means(model, evaluation.loader(evaluation.train), accelerator)
    return evaluate_model(
        model, evaluation.loader(evaluation.measured), accelerator, means=means, snapshot=snapshot
    )


def _robustness(evaluation: Evaluation) -> dict[str, Any]:
    arguments, baseline = evaluation.arguments, None
    if arguments.baseline is not None:
        baseline = load_classifier(arguments.baseline, "--baseline")
    report = corruption_errors(
        evaluation.model, evaluation.measured, evaluation.processor, evaluation.accelerator,
        corruptions=arguments.corruptions or "all", severities=arguments.severities,
        baseline=baseline, corrupted_dataset=arguments.corrupted_dataset,
        max_images=arguments.max_eval_samples, batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )  # fmt: skip
    if baseline is not None:
        report["baseline"]["model"] = arguments.baseline
    return report


def _tables(evaluation: Evaluation, report: dict[str, Any]) -> str:
    """The report for people, with what it lacks and why."""
    arguments = evaluation.arguments
    title, names = f"{arguments.dataset_name}, {arguments.split}", evaluation.images.label_names
    lines = [format_report(report, title, class_names=names)]
    if arguments.class_means and "class_means_accuracy" not in report:
        what = "no" if evaluation.train is None else "a class has no images in the"
        lines.append(f"({what} split {arguments.train_split!r} to take class means from)")
    if "robustness" in report:
        lines.append(f"\n{format_robustness(report['robustness'])}")
    if "ood" in report:
        lines.append(f"\n{format_detection(report['ood'])}")
    return "\n".join(lines)


def _draw(
    evaluation: Evaluation, report: dict[str, Any], snapshot: SnapshotCollector,
    detection: Detection | None,
) -> list[Path]:  # fmt: skip
    """Into the folder of --pictures: everything that was measured."""
    folder = Path(evaluation.arguments.pictures)
    taken = snapshot.snapshot(evaluation.images.label_names, evaluation.arguments.split)
    with replacing_files(folder) as new:
        save_snapshot(taken, new / SNAPSHOT)
        pictures = draw_snapshot(new, new)
        if "robustness" in report:
            pictures += draw_robustness(
                report["robustness"], evaluation.measured, evaluation.processor, new
            )
        if detection is not None:
            pictures.append(new / "unknown.png")
            threshold = evaluation.model.config.rejection_threshold
            plot_unknown(detection, pictures[-1], threshold)
    return [folder / path.name for path in pictures]
