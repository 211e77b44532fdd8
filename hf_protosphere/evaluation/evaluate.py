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
from ..data.labels import some
from ..data.loaders import evaluation_loader
from ..inference.predictions import training_class_means
from ..metrics.snapshot import SnapshotCollector
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..open_set.plots import plot_unknown
from ..open_set.scores import Detection, detect_unknown, format_detection, load_unknown_images
from ..robustness.errors import corruption_errors, draw_robustness
from ..robustness.report import format_robustness
from ..runs.files import writable_folder
from ..runs.loading import load_classifier
from ..runs.plot import draw_snapshot
from ..runs.processes import check_processes, main_process_first
from ..runs.snapshots import SNAPSHOT, save_snapshot
from .arguments import EvaluateArguments
from .classifier_metrics import evaluate_model
from .report import format_report


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on its device, and the images that it is measured on: split "test", and "train"
    where class means are wanted and there is one."""

    arguments: EvaluateArguments
    accelerator: Accelerator
    model: ProtoSphereForImageClassification
    processor: BaseImageProcessor
    images: ImageDataset
    unknown_images: Dataset | None  # of --ood_dataset

    @classmethod
    def start(cls, arguments: EvaluateArguments) -> Evaluation:
        accelerator = Accelerator()
        check_processes(accelerator)
        model, processor = load_classifier(arguments.model)
        on_train = arguments.split == arguments.train_split
        with main_process_first(accelerator):
            images = load_data(
                arguments,
                test_split=None if on_train else arguments.split,
                validation_fraction=0.0,
                need_train=on_train,
                need_all_classes=False,
                label_names=model.config.class_names,
            )
            unknown = load_unknown_images(arguments) if arguments.ood_dataset is not None else None
        return cls(arguments, accelerator, model.to(accelerator.device), processor, images, unknown)

    @property
    def split(self) -> str:
        """The split that is measured, by its role."""
        return "train" if self.arguments.split == self.arguments.train_split else "test"

    def loader(self, split: Dataset) -> DataLoader:
        arguments = self.arguments
        return evaluation_loader(
            split, self.processor, arguments.batch_size, arguments.num_workers,
            self.accelerator,
        )  # fmt: skip


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Evaluate a checkpoint on a split of a data set, as `protosphere evaluate` does."""
    for flag, path in (("pictures", arguments.pictures), ("output", arguments.output)):
        if path is not None:  # before the work
            writable_folder(Path(path) if flag == "pictures" else Path(path).parent, f"--{flag}")
    evaluation = Evaluation.start(arguments)
    model, accelerator = evaluation.model, evaluation.accelerator
    means, classes_without_images = None, evaluation.images.classes_without_images
    has_train = arguments.class_means and "train" in evaluation.images.splits
    if has_train and not classes_without_images("train"):
        means = training_class_means(
            model, evaluation.loader(evaluation.images.splits["train"]), accelerator
        )
    snapshot = SnapshotCollector(model.prototypes) if arguments.pictures else None
    loader = evaluation.loader(evaluation.images.splits[evaluation.split])
    missing = classes_without_images(evaluation.split)
    report = {
        "model": arguments.model,
        "dataset": arguments.dataset_name,
        "split": arguments.split,
        **evaluate_model(
            model, loader, accelerator, means=means, snapshot=snapshot, neural_collapse=not missing
        ),
    }
    if arguments.measures_robustness:
        images = evaluation.images.splits[evaluation.split]
        report["robustness"] = _robustness(evaluation, images)
    detection: Detection | None = None
    if arguments.ood_dataset is not None:
        detection = detect_unknown(
            model,
            evaluation.loader,
            evaluation.images.splits[evaluation.split],
            evaluation.unknown_images,
            evaluation.images.splits.get("train"),
            accelerator,
        )
        report["ood"] = {"dataset": arguments.ood_dataset, **detection.report}
    if accelerator.is_main_process:
        if arguments.json:
            print(json.dumps(report, indent=2))
        else:
            print(format_report(report, f"{arguments.dataset_name}, {arguments.split}"))
            if missing:
                print(f"(no image of {some(missing)}: neural collapse is not defined)")
            if arguments.class_means and means is None:
                what = "a class has no images in the" if has_train else "no"
                print(f"({what} split {arguments.train_split!r} to take class means from)")
            if "robustness" in report:
                print(f"\n{format_robustness(report['robustness'])}")
            if detection is not None:
                print(f"\n{format_detection(report['ood'])}")
        if snapshot is not None:
            folder = Path(arguments.pictures)
            save_snapshot(
                snapshot.snapshot(evaluation.images.label_names, arguments.split),
                folder / SNAPSHOT,
            )
            for path in draw_snapshot(folder, folder):
                print(path)
            if "robustness" in report:
                for path in draw_robustness(
                    report["robustness"], images, evaluation.processor, folder
                ):
                    print(path)
            if detection is not None:
                plot_unknown(detection, folder / "unknown.png", model.config.rejection_threshold)
                print(folder / "unknown.png")
        if arguments.output:
            Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _robustness(evaluation: Evaluation, images: Dataset) -> dict[str, Any]:
    arguments, baseline = evaluation.arguments, None
    if arguments.baseline is not None:
        baseline = load_classifier(arguments.baseline, "--baseline")
    report = corruption_errors(
        evaluation.model,
        images,
        evaluation.processor,
        evaluation.accelerator,
        corruptions=arguments.corruptions or "all",
        severities=arguments.severities,
        baseline=baseline,
        corrupted_dataset=arguments.corrupted_dataset,
        max_images=arguments.max_eval_samples,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
    if baseline is not None:
        report["baseline"]["model"] = arguments.baseline
    return report
