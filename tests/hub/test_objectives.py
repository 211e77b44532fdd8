"""What cards say of the objectives is what the losses compute."""

import pytest

from hf_protosphere import losses
from hf_protosphere.configuration_protosphere import OBJECTIVES as NAMES
from hf_protosphere.hub.objectives import OBJECTIVES
from hf_protosphere.metrics.paper import PAPER_BIBTEX
from hf_protosphere.modeling_protosphere import PROTOTYPE_LOSSES
from tests import ROOT


def test_every_objective_is_described():
    assert set(OBJECTIVES) == set(NAMES)
    assert PAPER_BIBTEX in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["nonl", "ntce", "normface", "scl"])
def test_formulas_are_those_of_the_losses(name):
    loss = losses.supcon_loss if name == "scl" else PROTOTYPE_LOSSES[name]
    assert f"L = {OBJECTIVES[name].formula}" in loss.__doc__
