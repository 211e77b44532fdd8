"""What cannot be predicted is said before anything is loaded."""

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.inference.arguments import PredictArguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give images by their paths, or --dataset_name: one of the two"),
        ({"images": ["a"], "dataset_name": "b"}, r"one of the two"),
        ({"dataset_name": "b", "sort_into": "c"}, r"--sort_into is for images that are files"),
        ({"dataset_name": "b", "label_column": "c"}, r"has no 'label_column'"),
        ({"images": ["a"], "output": "a.xlsx"}, r"--output a\.xlsx must end in \.csv, \.jsonl or"),
        ({"images": ["a"], "top_k": 0}, r"--top_k must be a whole number of at least 1, but got 0"),
        ({"images": ["a"], "on_bad_image": "skip"}, r"--on_bad_image must be one of row, error"),
        ({"images": ["a"], "copy": True}, r"--copy True is for --sort_into only"),
        ({"images": ["a"], "split": "train"}, r"--split train is for --dataset_name only"),
    ],
)
def test_what_cannot_be(given, message):
    with pytest.raises(ArgumentError, match=message):
        PredictArguments(model="m", **given)


def test_defaults():
    arguments = PredictArguments(model="m", images="photos")
    assert (arguments.images, arguments.output) == (["photos"], "predictions.csv")
    assert (arguments.top_k, arguments.on_bad_image, arguments.resume) == (1, "row", False)
