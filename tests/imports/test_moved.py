"""What was imported from version 0.1.0 still is, with a warning at the line that does it."""

import importlib
import pickle
import sys
import warnings
from types import FunctionType, ModuleType

import pytest

from hf_protosphere.imports import places
from hf_protosphere.imports.moved import MODULES
from hf_protosphere.imports.places import module_at
from tests import ROOT

# `ls hf_protosphere/*.py` of version 0.1.0.
MODULES_BEFORE = """
    accumulation accumulators adaptation argument_groups arguments assembly assessment
    augmentation backbones calibration callbacks card checking checkpoints class_addition
    class_statistics cli columns comparison confidence configuration_protosphere contrast
    corrupted_data corruptions data demo_page editable_classes environment errors evaluation
    evaluation_arguments export finishing frozen geometry hub image_cache image_embedding
    image_index image_search imbalance labels loaders loading losses markdown metrics
    modeling_protosphere monitoring objectives ood open_set open_set_plots parsing pictures
    pipeline_protosphere planning plots probes processes prototypes provenance release
    release_rows reporting retrieval retrieval_arguments retrieval_plots robustness
    robustness_plots runs samplers sharing_arguments snapshots sphere_plots steps stopping
    streaming tracking training transfer transfer_arguments transfer_report transfer_suite
    transfer_suite_arguments transfer_suite_report transforms
"""
# Names that the README, the docstrings, the scripts and published Spaces gave.
DOCUMENTED = {
    "accumulation": "backward_as_one_batch",
    "assessment": "evaluate",
    "calibration": "calibrate",
    "callbacks": "NeuralCollapseCallback",
    "class_statistics": "class_statistics",
    "demo_page": "demo",
    "image_index": "ImageIndex",
    "image_search": "index search",
    "monitoring": "Stopwatch first_reached CollapseMonitor",
    "sharing_arguments": "PublishArguments ExportArguments DemoArguments ReleaseArguments",
    "snapshots": "Snapshot SnapshotCollector snapshot_of",
}


def forget(module):
    sys.modules.pop(module, None)


def test_every_module_is_where_it_was_or_in_the_table():
    package = ROOT / "hf_protosphere"
    gone = {name for name in MODULES_BEFORE.split() if not (package / f"{name}.py").is_file()}
    rooms = {name for name in gone if (package / name / "__init__.py").is_file()}
    assert {old for old in MODULES if "." not in old} == gone - rooms


@pytest.mark.parametrize("old", MODULES)
def test_a_module_holds_what_its_new_ones_hold(old):
    forget(f"hf_protosphere.{old}")
    with pytest.warns(FutureWarning, match=rf"hf_protosphere\.{old} is now (hf_protosphere|scripts)\."):
        module = importlib.import_module(f"hf_protosphere.{old}")
    for place in MODULES[old]:
        new = module_at(place)
        defined = [value for value in vars(new).values() if isinstance(value, FunctionType | type)]
        for value in defined:
            if value.__module__ == new.__name__:
                assert getattr(module, value.__name__) is value
    for name in DOCUMENTED.get(old, "").split():
        assert getattr(module, name).__module__.startswith(("hf_protosphere.", "scripts."))


def test_what_is_of_the_repository_is_there_in_a_clone_only(tmp_path, monkeypatch):
    forget("hf_protosphere.transfer.suite.arguments")
    with pytest.warns(FutureWarning, match=r"suite\.arguments is now scripts\.transfer\.arguments"):
        from hf_protosphere.transfer.suite.arguments import TransferSuiteArguments
    assert TransferSuiteArguments.__module__ == "scripts.transfer.arguments"
    monkeypatch.setattr(places, "ROOT", tmp_path)  # as where a wheel is installed
    for old in ("release_rows", "sharing_arguments"):
        forget(f"hf_protosphere.{old}")
    with pytest.raises(ModuleNotFoundError, match=r"'hf_protosphere\.release_rows'"):
        importlib.import_module("hf_protosphere.release_rows")
    with pytest.warns(FutureWarning, match=r"is now hf_protosphere\.hub\.arguments; "):
        module = importlib.import_module("hf_protosphere.sharing_arguments")
    assert hasattr(module, "DemoArguments")
    assert not hasattr(module, "ReleaseArguments")
    forget("hf_protosphere.sharing_arguments")


def test_the_warning_points_at_the_import():
    forget("hf_protosphere.image_index")
    with pytest.warns(FutureWarning, match="until version") as warned:
        from hf_protosphere.image_index import ImageIndex  # noqa: F401
    assert warned[0].filename == __file__


def test_new_paths_are_silent_and_unknown_ones_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from hf_protosphere.training import train

        assert isinstance(train, ModuleType)  # a command is a module of its name
        from hf_protosphere.open_set import OpenSetClassifier
        from hf_protosphere.retrieval import Embedder, ImageIndex
        from hf_protosphere.robustness import corruption_errors

        assert all(map(callable, (OpenSetClassifier, Embedder, ImageIndex, corruption_errors)))
        with pytest.raises(ImportError, match="cannot import name 'wings'"):
            from hf_protosphere.retrieval import wings  # noqa: F401
        with pytest.raises(ModuleNotFoundError, match=r"hf_protosphere\.wings"):
            import hf_protosphere.wings  # noqa: F401


def test_pickles_find_their_classes():
    from hf_protosphere.retrieval.image_index import ImageIndex

    forget("hf_protosphere.image_index")
    with pytest.warns(FutureWarning):
        assert pickle.loads(b"chf_protosphere.image_index\nImageIndex\n.") is ImageIndex
    assert b"retrieval.image_index" in pickle.dumps(ImageIndex)
