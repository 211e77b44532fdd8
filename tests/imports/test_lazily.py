"""A name is imported when it is asked for, and others are not there."""

import importlib
import subprocess
import sys

import pytest

from hf_protosphere.imports.lazily import after_import, lazily


def test_a_name_is_imported_when_it_is_asked_for(monkeypatch):
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    of_package = lazily("json", main="tool")
    assert "json.tool" not in sys.modules
    assert of_package("main").__module__ == "json.tool"
    with pytest.raises(AttributeError, match="module 'json' has no attribute 'wings'"):
        of_package("wings")


def test_what_waits_for_an_import_is_done_once_it_has_been(monkeypatch):
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    done = []
    after_import("json.tool", lambda: done.append("main" in vars(sys.modules["json.tool"])))
    assert done == []
    finders = len(sys.meta_path)
    importlib.import_module("json.tool")

    assert (done, len(sys.meta_path)) == ([True], finders - 1)
    after_import("json.tool", lambda: done.append("at once"))
    assert done == [True, "at once"]


def test_the_auto_classes_know_the_model_type_that_was_imported_before_them():
    code = """
import hf_protosphere
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("protosphere", backbone="test_resnet", image_size=32, num_labels=2)
print(type(AutoModel.from_config(config)).__name__, type(config) is hf_protosphere.ProtoSphereConfig)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["ProtoSphereModel", "True"]
