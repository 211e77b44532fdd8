"""What cards say of the objectives is what the losses compute."""

import pytest

from hf_protosphere.hub.objectives import WORDS
from hf_protosphere.metrics.paper import PAPER_BIBTEX
from hf_protosphere.objectives import OBJECTIVES
from tests import ROOT


def test_every_objective_is_described():
    assert set(WORDS) == set(OBJECTIVES)
    assert all(words.keys() - {"bibtex"} == {"title", "formula", "meaning", "reference"} for words in WORDS.values())
    assert PAPER_BIBTEX in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "cross_entropy"])
def test_formulas_are_those_of_the_losses(name):
    assert f"L = {WORDS[name]['formula']}" in OBJECTIVES[name].loss.__doc__
