"""A name is imported when it is asked for, and others are not there."""

import sys

import pytest

from hf_protosphere.imports.lazily import lazily


def test_a_name_is_imported_when_it_is_asked_for(monkeypatch):
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    of_package = lazily("json", main="tool")
    assert "json.tool" not in sys.modules
    assert of_package("main").__module__ == "json.tool"
    with pytest.raises(AttributeError, match="module 'json' has no attribute 'wings'"):
        of_package("wings")
