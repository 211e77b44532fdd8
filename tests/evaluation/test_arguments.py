"""What `evaluate` refuses before any work, and what it measures by default."""

import pytest

from hf_protosphere.errors import ArgumentError
from hf_protosphere.evaluation.arguments import EvaluateArguments


def given(**options):
    return EvaluateArguments(model="m", dataset_name="d", **options)


def test_defaults_measure_the_test_split_and_nothing_more():
    arguments = given()
    assert (arguments.split, arguments.train_split, arguments.class_means) == (
        "test",
        "train",
        True,
    )
    assert not arguments.measures_robustness
    assert arguments.ood_dataset is arguments.pictures is arguments.output is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch_size must be a whole number of at least 1, but got 0"),
        ({"max_eval_samples": 0}, "--max_eval_samples must be"),
        ({"num_workers": -1}, "--num_workers must be a whole number of at least 0, but got -1"),
        ({"on_bad_image": "drop"}, "--on_bad_image must be one of error, skip, but got 'drop'"),
        ({"ood_split": "test"}, r"--ood_split test is for --ood_dataset only"),
        ({"ood_config": "a"}, r"--ood_config a is for --ood_dataset only"),
        ({"ood_image_column": "photo"}, r"--ood_image_column photo is for --ood_dataset only"),
        ({"severities": "0-5"}, r"--severities must be such as 1-5"),
        ({"severities": "1-3"}, "--severities is of corrupted images: give --corruptions"),
        ({"baseline": "run"}, "--baseline is of corrupted images: give --corruptions"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        given(**options)
