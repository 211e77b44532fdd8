"""The arguments of data, and what of them batches are made of."""

import dataclasses
from types import SimpleNamespace

import pytest

from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.data.arguments import (
    BatchOptions,
    CacheArguments,
    DataArguments,
    SplitArguments,
    StreamingArguments,
)
from hf_protosphere.errors import ArgumentError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllOfData(StreamingArguments, SplitArguments, CacheArguments, DataArguments):
    """Every group that is about data."""


def parse(*argv):
    return parse_arguments(AllOfData, argv)


def test_what_is_not_given():
    arguments = parse("--dataset_name", "beans")
    assert (arguments.train_split, arguments.validation_fraction) == ("train", 0.1)
    assert (arguments.check_images, arguments.on_bad_image) == (True, "error")
    assert arguments.cache_images is None  # left to the room on the disk
    assert not arguments.streaming
    with pytest.raises(ArgumentError, match="dataset_name"):
        parse()


def test_flags_of_three_states_and_of_choices():
    assert parse("--dataset_name", "x", "--cache_images", "false").cache_images is False
    assert parse("--dataset_name", "x", "--cache_images", "true").cache_images is True
    assert parse("--dataset_name", "x", "--no_check_images").check_images is False
    with pytest.raises(ArgumentError, match=r"--on_bad_image.*invalid choice: 'mend'"):
        parse("--dataset_name", "x", "--on_bad_image", "mend")


def test_options_of_batches_are_those_of_a_jobs_arguments():
    values = {
        "batch_size": 8, "seed": 3, "num_workers": 1, "augmentation": "crop", "horizontal_flip": True,
        "crop_scale": None, "blur": 0.5, "rand_augment": 9, "random_erasing": 0.25, "views": 2, "classes_per_batch": 4,
        "gradient_accumulation_steps": 5, "cache_images": False, "on_bad_image": "skip", "shuffle_buffer": 7,
    }  # fmt: skip
    options = BatchOptions.of(SimpleNamespace(**values, epochs=9))
    assert dataclasses.asdict(options) == values
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 4
