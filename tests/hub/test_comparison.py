"""Siblings by objective: who may be compared, and with which metrics."""

from pathlib import Path

import pytest

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.errors import ArgumentError
from hf_protosphere.hub.comparison import WORDS, applicable_metrics, compare, overall_collapse
from hf_protosphere.metrics.neural_collapse import METRICS
from hf_protosphere.metrics.paper import PAPER_BIBTEX
from hf_protosphere.objectives import OBJECTIVES
from hf_protosphere.runs.finished_run import FinishedRun
from hf_protosphere.training.arguments import TrainArguments
from tests import ROOT


def run_of(objective, seed, accuracy, collapse=90.0, data="digits", split="test"):
    attained = {m.name: 5.0 if m.needs_prototypes else collapse for m in METRICS} | {"overall": 5.0}
    return FinishedRun(
        Path(f"{data}-{objective}-{seed}"),
        ProtoSphereConfig(objective=objective, num_labels=10),
        TrainArguments(dataset_name=data, objective=objective, seed=seed, report_to="none"),
        {
            "provenance": {"dataset": None},
            split: {"accuracy": accuracy, "neural_collapse": {"attained": attained}},
        },
    )


def test_mean_and_deviation_over_the_seeds_of_each_objective():
    runs = [run_of("cross_entropy", 0, 0.9), run_of("nonl", 1, 0.96), run_of("nonl", 0, 0.94)]
    nonl, cross_entropy = compare(runs[1], runs)  # itself among its siblings counts once
    assert (nonl.title, nonl.accuracy) == ("NONL", "95.00 ± 1.41 %")
    assert [run.arguments.seed for run in nonl.runs] == [0, 1]
    assert (cross_entropy.title, cross_entropy.accuracy) == ("Softmax cross-entropy", "90.00 %")


def test_a_linear_layer_has_no_metrics_of_prototypes():
    assert overall_collapse(run_of("nonl", 0, 0.9)) == 5.0
    assert overall_collapse(run_of("cross_entropy", 0, 0.9)) == 90.0


def test_what_a_class_without_images_leaves_undefined():
    run = run_of("nonl", 0, 0.9)
    attained = run.results["test"]["neural_collapse"]["attained"]
    del attained["overall"], attained["nc3_self_duality"]
    assert overall_collapse(run) is None
    assert compare(run, [])[0].neural_collapse == "not defined"
    assert {m.name for m in applicable_metrics(run)} == attained.keys()


def test_what_cannot_be_compared_is_said():
    run = run_of("nonl", 0, 0.9)
    with pytest.raises(ArgumentError, match=r"measured on test images of other, .* of digits"):
        compare(run, [run_of("ntce", 0, 0.9, data="other")])
    with pytest.raises(ArgumentError, match=r"validation images of digits.*: leave it out"):
        compare(run, [run_of("ntce", 0, 0.9, split="validation")])
    twice = run_of("ntce", 0, 0.9)
    copy = FinishedRun(Path("copy"), twice.config, twice.arguments, twice.results)
    with pytest.raises(ArgumentError, match="have the same objective and seed"):
        compare(run, [twice, copy])


def test_every_objective_is_described():
    assert set(WORDS) == set(OBJECTIVES)
    assert all(words.keys() - {"bibtex"} == {"title", "formula", "meaning", "reference"} for words in WORDS.values())
    assert PAPER_BIBTEX in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "cross_entropy"])
def test_formulas_are_those_of_the_losses(name):
    assert f"L = {WORDS[name]['formula']}" in OBJECTIVES[name].loss.__doc__
