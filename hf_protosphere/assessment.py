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

from .assembly import load_data
from .checkpoints import writable_folder
from .data import ImageDataset
from .evaluation import evaluate_model, training_class_means
from .evaluation_arguments import EvaluateArguments
from .labels import some
from .loaders import evaluation_loader
from .loading import load_classifier
from .modeling_protosphere import ProtoSphereForImageClassification
from .ood import Detection, detect_unknown, format_detection, load_unknown_images
from .open_set_plots import plot_unknown
from .pictures import draw_snapshot
from .processes import check_processes, main_process_first
from .reporting import format_report, format_robustness
from .robustness import corruption_errors, draw_robustness
from .snapshots import FILE_NAME as SNAPSHOT
from .snapshots import SnapshotCollector


@dataclass(frozen=True)
class Assessment:
    """A checkpoint on its device, and the images that it is measured on: split "test", and "train"
    where class means are wanted and there is one."""

    arguments: EvaluateArguments
    accelerator: Accelerator
    model: ProtoSphereForImageClassification
    processor: BaseImageProcessor
    images: ImageDataset  # with --ood_dataset, that is its split "unknown"

    @classmethod
    def start(cls, arguments: EvaluateArguments) -> Assessment:
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
                label_names=[model.config.id2label[i] for i in range(model.config.num_labels)],
            )
            if arguments.ood_dataset is not None:
                images.splits["unknown"] = load_unknown_images(arguments)
        return cls(arguments, accelerator, model.to(accelerator.device), processor, images)

    @property
    def split(self) -> str:
        """The split that is measured, by its role."""
        return "train" if self.arguments.split == self.arguments.train_split else "test"

    def loader(self, split: str) -> DataLoader:
        arguments = self.arguments
        return evaluation_loader(
            self.images, split, self.processor, arguments.batch_size, arguments.num_workers,
            self.accelerator,
        )  # fmt: skip


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Evaluate a checkpoint on a split of a data set, as `protosphere evaluate` does."""
    for flag, path in (("pictures", arguments.pictures), ("output", arguments.output)):
        if path is not None:  # before the work
            writable_folder(Path(path) if flag == "pictures" else Path(path).parent, f"--{flag}")
    assessment = Assessment.start(arguments)
    model, accelerator = assessment.model, assessment.accelerator
    means, classes_without_images = None, assessment.images.classes_without_images
    has_train = arguments.class_means and "train" in assessment.images.splits
    if has_train and not classes_without_images("train"):
        means = training_class_means(model, assessment.loader("train"), accelerator)
    snapshot = SnapshotCollector(model.prototypes) if arguments.pictures else None
    loader = assessment.loader(assessment.split)
    missing = classes_without_images(assessment.split)
    report = {
        "model": arguments.model,
        "dataset": arguments.dataset_name,
        "split": arguments.split,
        **evaluate_model(
            model, loader, accelerator, means=means, snapshot=snapshot, neural_collapse=not missing
        ),
    }
    if arguments.measures_robustness:
        images = assessment.images.splits[assessment.split]
        report["robustness"] = _robustness(assessment, images)
    detection: Detection | None = None
    if arguments.ood_dataset is not None:
        detection = detect_unknown(
            model, assessment.loader, assessment.images, assessment.split, accelerator
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
            snapshot.snapshot(assessment.images.label_names, arguments.split).save(
                folder / SNAPSHOT
            )
            for path in draw_snapshot(folder, folder):
                print(path)
            if "robustness" in report:
                for path in draw_robustness(
                    report["robustness"], images, assessment.processor, folder
                ):
                    print(path)
            if detection is not None:
                plot_unknown(detection, folder / "unknown.png", model.config.rejection_threshold)
                print(folder / "unknown.png")
        if arguments.output:
            Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _robustness(assessment: Assessment, images: Dataset) -> dict[str, Any]:
    arguments, baseline = assessment.arguments, None
    if arguments.baseline is not None:
        baseline = load_classifier(arguments.baseline, "--baseline")
    report = corruption_errors(
        assessment.model,
        images,
        assessment.processor,
        assessment.accelerator,
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
