"""What is refused of corruptions before any work."""

import sys

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.robustness.corruptions import load_library


def given(**options):
    return EvaluateArguments(model="m", dataset_name="d", **options)


def test_robustness_is_measured_where_corruptions_are_named(tmp_path):
    assert not given().measures_robustness
    assert given(corruptions=["fog"]).measures_robustness
    assert given(corrupted_dataset=str(tmp_path)).measures_robustness


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ["rain"]}, r"--corruptions: there is no 'rain'"),
        ({"corruptions": []}, r"--corruptions needs at least one"),
        ({"corruptions": ["all"], "severities": "0-5"}, r"--severities .* but got '0-5'"),
        ({"baseline": "b"}, r"--baseline .* give --corruptions"),
        ({"corrupted_dataset": "/nothing"}, r"--corrupted_dataset /nothing: there is no such"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        given(**options)


def test_the_library_is_needed_only_to_corrupt(monkeypatch, tmp_path):
    load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ArgumentError, match="pip install imagecorruptions-imaug"):
        given(corruptions=["fog"])
    # Of images that are corrupted already, names say only which.
    assert given(corruptions=["fog"], corrupted_dataset=str(tmp_path)).measures_robustness
