"""Where the modules of version 0.1.0 are now: the old import paths work until version 0.3.0.

A module that is imported by its old path holds what its new ones hold, and a warning names them.
Classes and functions are the same objects. Nothing in the package imports by old paths.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

UNTIL = "0.3.0"

SAME_NAME = {  # room: modules that are in it under their old names
    "data": "augmentation image_cache labels loaders samplers streaming",
    "hub": "card comparison export markdown",
    "inference": "probes",
    "metrics": "accumulators class_statistics geometry",
    "open_set": "confidence",
    "retrieval": "image_index",
    "robustness": "corrupted_data corruptions",
    "runs": "loading processes",
    "training": "adaptation environment",
    "transfer": "frozen",
}
MODULES = {old: f"{room}.{old}" for room, names in SAME_NAME.items() for old in names.split()} | {
    "accumulation": "training.step",
    "argument_groups": "training.groups data.arguments arguments.fields",
    "assembly": "training.setup data.dataset",
    "assessment": "evaluation.evaluate",
    "calibration": "open_set.calibrate",
    "checkpoints": "runs.checkpoints runs.files runs.metrics_log",
    "class_addition": "transfer.add_class",
    "columns": "data.sources",
    "demo_page": "hub.demo",
    "evaluation_arguments": "evaluation.arguments open_set.arguments robustness.arguments",
    "finishing": "training.finish",
    "image_embedding": "retrieval.embedding",
    "image_search": "retrieval.index retrieval.search",
    "imbalance": "data.subsets evaluation.classifier_metrics",
    "monitoring": "metrics.monitoring training.monitoring",
    "objectives": "hub.objectives metrics.paper",
    "ood": "open_set.scores",
    "open_set_plots": "open_set.plots",
    "parsing": "arguments.parsing arguments.fields",
    "pictures": "runs.plot",
    "planning": "training.dry_run",
    "provenance": "training.finish training.environment",
    "release_rows": "release.rows",
    "reporting": "training.reporting training.monitoring evaluation.report robustness.report "
    "plots.table",
    "retrieval_arguments": "retrieval.arguments",
    "retrieval_plots": "retrieval.plots",
    "robustness_plots": "robustness.plots",
    "sharing_arguments": "hub.arguments release.arguments",
    "snapshots": "metrics.snapshot runs.snapshots",
    "sphere_plots": "plots.sphere",
    "steps": "training.step",
    "stopping": "runs.signals",
    "tracking": "training.setup",
    "transfer_arguments": "transfer.arguments",
    "transfer_report": "transfer.report",
    "transfer_suite": "transfer.suite.transfer_suite transfer.suite.rows",
    "transfer_suite_arguments": "transfer.suite.arguments",
    "transfer_suite_report": "transfer.suite.report",
    "transforms": "data.transforms data.pixels",
}
# Old modules that are rooms now, and where their names are. A command is a module there.
NAMES = {
    ("arguments", "training.arguments"): "TrainArguments",
    ("arguments", "runs.plot"): "PlotArguments",
    ("data", "data.dataset"): "ImageDataset load_image_dataset load_split",
    ("data", "data.sources"): "load_splits",
    ("data", "data.subsets"): "balanced_sample",
    ("evaluation", "evaluation.classifier_metrics"): "evaluate_model evaluate_predictions",
    ("evaluation", "inference.predictions"): "predictions training_class_means",
    ("hub", "hub.publish"): "account is_published publish_collection",
    ("open_set", "open_set.threshold"): "Answer OpenSetClassifier Threshold angles_to_prototypes "
    "calibrated_threshold default_threshold",
    ("plots", "plots.curves"): "CURVES plot_collapse plot_curves",
    ("plots", "plots.style"): "COLORS STYLES new_figure",
    ("retrieval", "retrieval.neighbours"): "Candidates Neighbours nearest retrieval_metrics",
    ("robustness", "robustness.plots"): "draw_robustness",
    ("runs", "runs.finished_run"): "FinishedRun slug",
    ("training", "training.run"): "TrainingRun",
    ("transfer", "transfer.finetune"): "Transfer rows_on_disk",
}


def names_of(package: str, **doors: str) -> Callable[[str], Any]:
    """`__getattr__` of a room, which imports what is asked for: the names that it had as a module.

    Args:
        doors: names that it offers for good, and the modules that they are in.
    """
    room = package.rpartition(".")[2]
    moved = {n: place for (of, place), names in NAMES.items() if of == room for n in names.split()}

    def __getattr__(name: str) -> Any:
        if (place := doors.get(name) or moved.get(name)) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place = f"{__package__}.{place}"
        if name not in doors:
            _warn(f"{package}.{name}", f"{place}.{name}")
        return getattr(importlib.import_module(place), name)

    return __getattr__


class OldPaths(MetaPathFinder, Loader):
    """Imports the modules of `MODULES`; asked after all others, it makes no other import slower."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.rpartition(".")[2]
        places = [f"{__package__}.{place}" for place in MODULES[name].split()]
        _warn(module.__name__, " and ".join(places))
        for place in places:
            names = vars(importlib.import_module(place)).items()
            vars(module).update({key: value for key, value in names if not key.startswith("__")})


def _warn(old: str, new: str) -> None:
    message = f"{old} is now {new}; the old path works until version {UNTIL}."
    warnings.warn(message, FutureWarning, stacklevel=3)
