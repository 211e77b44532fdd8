"""The table of objectives, what follows from it, and the rule for the temperature."""

from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.objectives import (
    OBJECTIVES,
    default_temperature,
    objective_loss,
    optimal_temperature,
)
from hf_protosphere.prototypes import simplex_etf
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.transfer.arguments import FinetuneArguments


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_configuration_follows_from_the_table(name):
    config, objective = ProtoSphereConfig(objective=name, num_labels=4), OBJECTIVES[name]
    assert config.prototypes == (objective.prototypes or "learned")
    assert config.has_prototypes == (objective.prototypes is not None)
    views = TrainArguments(dataset_name="x", objective=name).views
    assert views == (2 if objective.contrasts_views else 1)


def test_the_command_line_knows_all_of_them():
    for cls in (TrainArguments, FinetuneArguments):
        choices = get_type_hints(cls)["objective"]
        names = get_args(choices) if cls is TrainArguments else get_args(get_args(choices)[0])
        assert names == tuple(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objective_of_a_batch_of_views(name):
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(6, 2, 8, generator=generator), dim=-1)
    prototypes = torch.randn(3, 8, generator=generator)
    logits, labels = torch.randn(6, 2, 3, generator=generator), torch.arange(6) % 3
    value = objective_loss(name, embeddings, logits, labels, prototypes, 0.3)
    objective, each = OBJECTIVES[name], labels.repeat_interleave(2)
    if objective.contrasts_views:
        expected = objective.loss(embeddings, labels, 0.3)
    elif objective.prototypes is None:
        expected = objective.loss(logits.flatten(0, 1), each)
    else:
        expected = objective.loss(embeddings.flatten(0, 1), prototypes, each, 0.3)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("num_classes", [4, 6, 10, 100, 1000])
def test_at_the_optimum_the_own_class_has_one_half(num_classes):
    frame = simplex_etf(num_classes, num_classes - 1).double()
    scores = (frame @ frame.T / optimal_temperature(num_classes)).softmax(1)
    torch.testing.assert_close(scores.diagonal(), torch.full((num_classes,), 0.5).double())


def test_few_classes_have_a_temperature_too():
    assert (optimal_temperature(2), optimal_temperature(3)) == (2.0, 1.5)
    values = [optimal_temperature(k) for k in range(2, 200)]
    assert values == sorted(values, reverse=True)
    assert default_temperature("nonl", 10) == pytest.approx(0.4 * optimal_temperature(10))
