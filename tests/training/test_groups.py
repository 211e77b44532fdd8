"""Groups of `--help`: every field is in one of them and says what it does."""

import dataclasses
import inspect
from typing import get_args

import pytest

from hf_protosphere.arguments.help import groups_of
from hf_protosphere.data.arguments import (
    CacheArguments,
    DataArguments,
    SourceArguments,
    SplitArguments,
    StreamingArguments,
)
from hf_protosphere.objectives import OBJECTIVES
from hf_protosphere.training import groups
from hf_protosphere.training.arguments import TrainArguments

GROUPS = (
    groups.ModelArguments, groups.AdaptationArguments, groups.OptimizationArguments,
    groups.RunArguments, SourceArguments, DataArguments, CacheArguments, SplitArguments, StreamingArguments,
)  # fmt: skip


def test_the_names_of_objectives_are_those_of_their_table():
    assert get_args(groups.ObjectiveName) == (*OBJECTIVES,)


def test_training_has_the_fields_of_its_groups_and_no_others():
    assert {*groups_of(TrainArguments)} == {*GROUPS}
    of_groups = [name for group in GROUPS for name in inspect.get_annotations(group)]
    assert sorted(of_groups) == sorted(field.name for field in dataclasses.fields(TrainArguments))
    assert len(set(of_groups)) == len(of_groups)


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_is_explained_by_a_sentence(group):
    for field in dataclasses.fields(group):
        text = field.metadata["help"].replace("%%", "%")
        assert text[0].isupper() or not text[0].isalpha() or " " in text, field.name
        assert text.endswith("."), f"{field.name}: {text}"
