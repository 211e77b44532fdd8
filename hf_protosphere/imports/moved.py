"""Where the modules of version 0.1.0 are now: the old import paths work until version 0.3.0.

A module that is imported by its old path holds what its new ones hold, and a warning names them.
Classes and functions are the same objects. Nothing in the package imports by old paths.
"""

from __future__ import annotations

import importlib
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __package__.rpartition(".")[0]
CAME_INTO = {  # room: old modules that are in it now, as old=new where the name is another
    "hub": "card comparison demo_page=demo export markdown sharing_arguments=arguments",
    "metrics": "accumulators class_statistics geometry monitoring snapshots=snapshot",
    "training": "accumulation=step adaptation argument_groups=groups assembly=setup environment "
    "finishing=finish monitoring planning=train provenance=finish provenance=environment "
    "reporting=train reporting=monitoring steps=step tracking=setup",
    "data": "argument_groups=arguments assembly=dataset augmentation columns=sources image_cache "
    "imbalance=subsets labels loaders samplers streaming transforms transforms=pixels",
    "arguments": "argument_groups=fields parsing parsing=fields",
    "evaluation": "assessment=evaluate callbacks evaluation_arguments=arguments "
    "imbalance=classifier_metrics reporting=report",
    "open_set": "calibration=calibrate confidence evaluation_arguments=arguments ood=scores "
    "open_set_plots=plots",
    "robustness": "corrupted_data corruptions evaluation_arguments=arguments reporting=measure "
    "robustness_plots=plots",
    "plots": "reporting=table sphere_plots=sphere",
    "release": "release_rows=rows sharing_arguments=arguments",
    "runs": "checkpoints checkpoints=files checkpoints=metrics_log loading pictures=plot processes "
    "snapshots stopping=signals",
    "inference": "probes",
    "retrieval": "image_embedding=embedding image_index image_search=index image_search=search "
    "retrieval_arguments=arguments retrieval_plots=plots",
    "transfer": "class_addition=add_class frozen transfer_arguments=arguments "
    "transfer_report=report transfer_suite=suite.transfer_suite "
    "transfer_suite_arguments=suite.arguments transfer_suite_report=suite.report",
}
MODULES: dict[str, list[str]] = {}  # {"finishing": ["training.finish"], ...}; some were divided
for _room, _names in CAME_INTO.items():
    for _old, _, _new in (name.partition("=") for name in _names.split()):
        MODULES.setdefault(_old, []).append(f"{_room}.{_new or _old}")


class OldPaths(MetaPathFinder, Loader):
    """Imports the modules of `MODULES`; asked after all others, it makes no other import slower."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == PACKAGE and name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.rpartition(".")[2]
        places = [f"{PACKAGE}.{place}" for place in MODULES[name]]
        message = f"{module.__name__} is now {' and '.join(places)}; the old path works until"
        warnings.warn(f"{message} version 0.3.0.", FutureWarning, stacklevel=2)
        for place in places:
            names = vars(importlib.import_module(place)).items()
            vars(module).update({key: value for key, value in names if not key.startswith("__")})
