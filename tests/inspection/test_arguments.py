"""What `protosphere inspect` may be given."""

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.inspection.arguments import InspectArguments


def test_what_is_not_given():
    arguments = InspectArguments(dataset_name="beans")
    assert (arguments.model, arguments.splits, arguments.output_dir) == (None, None, "outputs/inspect")
    assert InspectArguments(dataset_name="beans", splits="train").splits == ["train"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"near_duplicate": 0.9}, r"--near_duplicate 0\.9 is for --model only"),
        ({"wrong_label": 0.5}, r"--wrong_label 0\.5 is for --model only"),
        ({"model": "x", "near_duplicate": 0.0}, r"--near_duplicate must be in \(0, 1\], but got 0\.0"),
        ({"model": "x", "wrong_label": 2.0}, r"--wrong_label must be in \[0, 1\], but got 2\.0"),
        ({"worst": 0}, r"--worst must be a whole number of at least 1"),
        ({"labels": 3}, r"--labels must be"),
    ],
)
def test_values_that_cannot_work(values, message):
    with pytest.raises(ArgumentError, match=f"^{message}"):
        InspectArguments(dataset_name="beans", **values)
