"""What is published, exported and shown: what cannot work is said at once."""

import re
import sys

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.hub.arguments import DemoArguments, ExportArguments, PublishArguments

NO_TEXT = sys.executable  # a file that is not UTF-8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "digits"}, r"--repo_id must be 'user/name', but got 'digits'"),
        ({"repo_id": "/digits"}, r"--repo_id must be 'user/name', but got '/digits'"),
        ({"repo_id": "a/b/c"}, r"--repo_id must be 'user/name', but got 'a/b/c'"),
        ({"create_pr": True, "revision": "v1"}, r"--revision v1 .*--create_pr leaves it alone: give"),
        ({"notes": NO_TEXT}, rf"--notes {NO_TEXT} cannot be read: 'utf-8' codec [^\n]*$"),
        ({"notes": "none.md"}, r"--notes none.md cannot be read: .*No such file"),
        *(
            ({"revision": name}, rf"--revision must be such as .*got {re.escape(repr(name))}\.")
            for name in (
                *("../../main", "main", "refs/heads/x", "a..b", "-x", "v1.lock", "x/", "v1."),
                *("v1\n", "v1\nmain", "", "a b"),
            )
        ),
    ],
)
def test_publishing(options, message):
    with pytest.raises(ArgumentError, match=message):
        PublishArguments(**{"folder": "run", "repo_id": "user/digits"} | options)


@pytest.mark.parametrize("name", ["v1.0", "v1.0-rc.1+cpu", "2026/july", "_x"])
def test_a_tag_has_a_plain_name(name):
    assert PublishArguments(folder="run", repo_id="user/digits", revision=name).revision == name


def test_an_export_lies_in_a_folder_of_its_own(tmp_path):
    model = str(tmp_path)
    assert ExportArguments(model=model).output_dir == str(tmp_path / "onnx")
    program = ExportArguments(model=model, format="torch_export")
    assert program.output_dir == str(tmp_path / "torch_export")
    with pytest.raises(ArgumentError, match=r"--model someone/model is no folder.*--output_dir"):
        ExportArguments(model="someone/model")
    with pytest.raises(ArgumentError, match=r"--output_dir .* is the model's own, with a README.md"):
        ExportArguments(model=model, output_dir=f"{model}/onnx/..")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "--format must be one of onnx, torch_export"),
        ({"num_images": 0}, "--num_images must be a whole number of at least 1, but got 0"),
    ],
)
def test_exporting(options, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        ExportArguments(model=str(tmp_path), **options)


def test_a_format_asks_for_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ArgumentError, match=r"--format onnx .*pip install onnxruntime\."):
        ExportArguments(model=str(tmp_path))
    ExportArguments(model=str(tmp_path), format="torch_export")


@pytest.mark.parametrize("wrong", [{"port": 0}, {"port": 70000}, {"unknown_angle": 181.0}, {"unknown_angle": 0.0}])
def test_showing(wrong):
    with pytest.raises(ArgumentError, match=f"--{next(iter(wrong))} must be"):
        DemoArguments(model="nowhere", **wrong)
