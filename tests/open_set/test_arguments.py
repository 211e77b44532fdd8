"""What `calibrate` refuses before any work."""

from typing import get_args, get_type_hints

import pytest

from hf_protosphere.configuration_protosphere import REJECTION_SCORES, SET_SCORES
from hf_protosphere.errors import ArgumentError
from hf_protosphere.open_set.arguments import CalibrateArguments, OpenSetArguments


def given(**options):
    return CalibrateArguments(model="m", dataset_name="d", **options)


def test_scores_are_those_that_a_checkpoint_can_hold():
    hints = get_type_hints(CalibrateArguments)
    assert get_args(hints["score"]) == ("auto", *REJECTION_SCORES)
    assert get_args(hints["sets"]) == SET_SCORES


@pytest.mark.parametrize("rate", [0, 1, -0.1, "much", float("nan")])
def test_a_share_lies_between_none_and_all(rate):
    with pytest.raises(ArgumentError, match=r"--false_rejection_rate must be in \(0, 1\)"):
        given(false_rejection_rate=rate)
    assert given(false_rejection_rate=0.999).false_rejection_rate == 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch_size must be a whole number of at least 1, but got 0"),
        ({"max_eval_samples": 2.5}, "--max_eval_samples must be a whole number"),
        ({"num_workers": -1}, "--num_workers must be a whole number of at least 0"),
        ({"max_train_samples": 9}, "--max_train_samples is of training images"),
        ({"on_bad_image": "drop"}, "--on_bad_image must be one of error, skip, but got 'drop'"),
        ({"score": "entropy"}, "--score must be one of auto, cosine, .*, neco, but got 'entropy'"),
        ({"coverage": 1}, r"--coverage must be in \(0, 1\), but got 1"),
        ({"coverage": 0.9, "sets": "top5"}, "--sets must be one of lac, aps, raps, but got 'top5'"),
        ({"sets": "aps"}, "--sets aps is for --coverage only"),
        ({"class_wise": True}, "--class_wise True is for --coverage only"),
        ({"ood_split": "test"}, "--ood_split test is for --ood_dataset only"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        given(**options)


def test_by_default_the_split_is_the_runs_and_nothing_is_unknown():
    assert given().split is given().output_dir is None
    assert OpenSetArguments().ood_dataset is None
