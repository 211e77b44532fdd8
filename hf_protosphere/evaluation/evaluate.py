"""Everything that `protosphere evaluate` says of a checkpoint on a data set."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor

from ..data.dataset import load_data
from ..data.image_cache import FeatureSplit
from ..data.labels import map_labels
from ..data.loaders import evaluation_loader
from ..inference.features import passed_once
from ..inference.predictions import training_class_means
from ..metrics.snapshot import Snapshot, SnapshotCollector
from ..open_set.detection import Detection, detect_unknown, format_detection, load_unknown_images, outputs_of
from ..open_set.plots import plot_unknown
from ..plots.text import say
from ..robustness.measure import corruption_errors, format_robustness
from ..robustness.plots import draw_robustness
from ..runs.files import replacing_files, writable_folder, write_json
from ..runs.folders import held_for_all
from ..runs.loading import load_classifier
from ..runs.plot import draw_snapshot
from ..runs.processes import check_processes, main_process_first, own_accelerate_state
from ..runs.snapshots import SNAPSHOT, save_snapshot
from .any_classifier import load_any
from .arguments import EvaluateArguments
from .classifier_metrics import collapse_by_layer, evaluate_model
from .outcomes import by_class, calibration, compare, interval, outcome_table
from .page import PAGE_FILES, nearest_images, write_page
from .report import format_accuracy, format_classes, format_layers, format_report

# What --pictures may leave.
PICTURE_FILES = (
    SNAPSHOT, "cosines.png", "margins.png", "sphere.png", "corruptions.png",
    "corrupted_images.png", "unknown.png", *PAGE_FILES,
)  # fmt: skip


class Evaluation:
    """A checkpoint on its device, and the images that it is measured on, whatever their split is
    called; and those for training where class means or distances are taken from them."""

    def __init__(self, arguments: EvaluateArguments) -> None:
        self.arguments, self.accelerator = arguments, Accelerator()
        check_processes(self.accelerator)
        self.model, self.processor = load_any(arguments.model)
        other = load_any(arguments.compare, "--compare") if arguments.compare else None
        self.model.to(self.accelerator.device)
        with_train = arguments.class_means or arguments.ood_dataset is not None
        with main_process_first(self.accelerator):
            self.images = load_data(
                arguments, test_split=arguments.split, flags={"test": "--split"}, validation_fraction=0.0,
                need_train=False, need_all_classes=False, label_names=self.model.config.class_names,
                roles={"test", "train"} if with_train else {"test"},
            )  # fmt: skip
            self.splits = dict(self.images.splits)
            if arguments.ood_dataset is not None:
                self.splits["unknown"] = load_unknown_images(arguments)
        self.measured, self.train, self.other = self.splits["test"], self.splits.get("train"), None
        if other is not None:
            role = f"{arguments.split} (--compare {arguments.compare})"
            self.other = other[0], map_labels(self.measured, role, other[0].config.class_names), other[1]

    def loader(self, split: Dataset | FeatureSplit, processor: BaseImageProcessor | None = None) -> DataLoader:
        sizes = self.arguments.batch_size, self.arguments.num_workers
        return evaluation_loader(split, processor or self.processor, *sizes, self.accelerator)

    def report(self) -> dict[str, Any]:
        """Measure, and write, print and draw it."""
        arguments, names = self.arguments, self.images.label_names
        snapshot = SnapshotCollector(self.model.prototypes) if arguments.pictures else None
        report = {"model": arguments.model, "dataset": arguments.dataset_name, "split": arguments.split}
        if arguments.by_layer:  # first: a network may have no layers to show
            report["by_layer"] = collapse_by_layer(self.model, self.loader(self.measured), self.accelerator)
        self.on_features, self.seen = passed_once(self.model, self.processor, self.splits, self.accelerator, arguments)
        ours, theirs, means = [], [], None
        if arguments.class_means and self.train is not None and not self.images.classes_without_images("train"):
            means = training_class_means(self.on_features, self.loader(self.seen["train"]), self.accelerator)
        options = {"means": means, "snapshot": snapshot, "outcomes": ours}
        report |= evaluate_model(self.on_features, self.loader(self.seen["test"]), self.accelerator, **options)
        outcomes = outcome_table(ours, names)
        report["accuracy_interval"] = interval(round(report["accuracy"] * len(outcomes)), len(outcomes))
        report["expected_calibration_error"] = calibration(outcomes).expected_calibration_error
        report["classes"] = by_class(outcomes, names)
        if self.other is not None:
            model, loader = self.other[0].to(self.accelerator.device), self.loader(*self.other[1:])
            evaluate_model(model, loader, self.accelerator, neural_collapse=False, outcomes=theirs)
            table = outcome_table(theirs, model.config.class_names)[["predicted", "confidence"]]
            outcomes = outcomes.join(table.add_prefix("other_"))
            report["comparison"] = {"model": arguments.compare, **compare(outcomes)}
        if arguments.measures_robustness:
            report["robustness"] = self._robustness()
        detection: Detection | None = None
        if "unknown" in self.seen:
            splits = (self.seen.get(role) for role in ("test", "unknown", "train"))
            detection = detect_unknown(self.on_features, self.loader, *splits, self.accelerator)
            report["ood"] = {"dataset": arguments.ood_dataset, **detection.report}
        # Among the images that are measured, each would be nearest to itself.
        apart = self.images.sources.get("train") not in (None, self.images.sources["test"])
        images = (self.seen["test"], self.seen["train"]) if arguments.pictures and apart else None
        nearest = nearest_images(self._embed, *images, outcomes) if images else ()
        if self.accelerator.is_main_process:
            if arguments.output:
                write_json(Path(arguments.output), report)
            say(json.dumps(report, indent=2) if arguments.json else self._tables(report))
            if snapshot is not None:
                taken = snapshot.snapshot(names, arguments.split)
                paths = self._draw(report, taken, detection, outcomes=outcomes, nearest=nearest)
                for path in () if arguments.json else paths:
                    say(path)
        return report

    def _embed(self, images: Dataset | FeatureSplit) -> Tensor:
        return outputs_of(self.on_features, self.loader(images), self.accelerator, "nearest images").embeddings

    def _robustness(self) -> dict[str, Any]:
        arguments = self.arguments
        baseline = None if arguments.baseline is None else load_classifier(arguments.baseline, "--baseline")
        report = corruption_errors(
            self.model, self.measured, self.processor, self.accelerator, corruptions=arguments.corruptions or "all",
            severities=arguments.severities, baseline=baseline, corrupted_dataset=arguments.corrupted_dataset,
            max_images=arguments.max_eval_samples, batch_size=arguments.batch_size, num_workers=arguments.num_workers,
        )  # fmt: skip
        if baseline is not None:
            report["baseline"]["model"] = arguments.baseline
        return report

    def _tables(self, report: dict[str, Any]) -> str:
        """The report for people, with what it lacks and why."""
        arguments = self.arguments
        title, names = f"{arguments.dataset_name}, {arguments.split}", self.images.label_names
        lines = [format_report(report, title, class_names=names), format_accuracy(report)]
        if arguments.class_means and "class_means_accuracy" not in report:
            what = "no" if self.train is None else "a class has no images in the"
            lines.append(f"({what} split {arguments.train_split!r} to take class means from)")
        tables = {"classes": format_classes, "by_layer": format_layers}
        tables |= {"robustness": format_robustness, "ood": format_detection}
        lines += [f"\n{table(report[name])}" for name, table in tables.items() if name in report]
        return "\n".join(lines)

    def _draw(self, report: dict[str, Any], taken: Snapshot, detection: Detection | None, **page: Any) -> list[Path]:
        """Into the folder of --pictures: everything that was measured; `page` is for `write_page`."""
        folder = Path(self.arguments.pictures)
        with replacing_files(folder) as new:
            save_snapshot(taken, new / SNAPSHOT)
            pictures = draw_snapshot(new, new)
            if "robustness" in report:
                pictures += draw_robustness(report["robustness"], self.measured, self.processor, new)
            if detection is not None:
                pictures.append(new / "unknown.png")
                plot_unknown(detection, pictures[-1], self.model.config)
            pictures += write_page(new, report, snapshot=taken, images=self.measured, train=self.train, **page)
        return [folder / path.name for path in pictures]


@own_accelerate_state()
def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Evaluate a checkpoint on a split of a data set, as `protosphere evaluate` does.

    Returns:
        The report, as --output holds it: "model", "dataset", "split", what `evaluate_predictions` returns,
        "accuracy_interval", "expected_calibration_error", "classes", as `by_class` returns them, and where they were
        asked for "comparison", as `compare` returns it, "by_layer", as `collapse_by_layer` does, "robustness", as
        `corruption_errors` does, and "ood", as `detect_unknown` reports it, with its "dataset".

    Raises:
        ArgumentError: no such checkpoint, or a folder that cannot be written.
        DataError: no such data set or split, or images that cannot be decoded.
    """
    for flag, path in (("pictures", arguments.pictures), ("output", arguments.output)):
        if path is not None:  # before the work
            writable_folder(Path(path) if flag == "pictures" else Path(path).parent, f"--{flag}")
    evaluation = Evaluation(arguments)
    with held_for_all(evaluation.accelerator, arguments.pictures, "--pictures", PICTURE_FILES):
        return evaluation.report()
