"""The losses that complete the table of objectives, what follows from it, and the temperature."""

import math
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_protosphere import ProtoSphereConfig, objectives
from hf_protosphere.objectives import (
    OBJECTIVES,
    class_terms,
    decoupled_normface_loss,
    decoupled_supcon_loss,
    default_temperature,
    dot_regression_loss,
    margin_loss,
    objective_loss,
    optimal_temperature,
    sincere_loss,
)
from hf_protosphere.prototypes import simplex_etf
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.transfer.arguments import FinetuneArguments
from tests import oracles
from tests.test_losses import SHAPES, assert_same, draw, random_case, with_gradients

VIEWS = {"decoupled_scl": decoupled_supcon_loss, "sincere": sincere_loss}


# The losses against double loops, values and gradients.


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_decoupled_normface_is_its_equation(seed, chunk_size):
    embeddings, prototypes, labels, weight = random_case(7, 4, 3, seed, False, seed % 2, seed > 1)
    options = {"weight": weight, "reduction": "sum"}

    def ours(u, w):
        return decoupled_normface_loss(u, w, labels, 0.3, chunk_size=chunk_size, **options)

    def oracle(u, w):
        return oracles.prototype_loss("decoupled_normface", u, w, labels, 0.3, **options)

    expected = with_gradients(oracle, embeddings, prototypes)
    assert_same(with_gradients(ours, embeddings, prototypes), expected, 1e-9)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("margin", [0.0, 0.35, 1.0, 2.5])
@pytest.mark.parametrize("margin_type", ["cosface", "arcface"])
def test_margins_are_their_equations(margin_type, margin, chunk_size):
    embeddings, prototypes, labels = draw(1, 12, 5, 3)
    embeddings[0] = -prototypes[labels[0]] + 0.01  # beyond π
    weight = torch.rand(5, dtype=torch.float64) + 0.5
    options = {"margin": margin, "margin_type": margin_type, "weight": weight}

    def ours(u, w):
        return margin_loss(u, w, labels, 0.3, chunk_size=chunk_size, **options)

    def oracle(u, w):
        return oracles.margin_loss(u, w, labels, 0.3, **options)

    expected = with_gradients(oracle, embeddings, prototypes)
    assert_same(with_gradients(ours, embeddings, prototypes), expected, 1e-9)


def test_a_margin_has_finite_gradients_at_and_opposite_its_prototype():
    points = torch.eye(3)
    for embeddings in (points, -points):
        value, gradients = with_gradients(
            lambda u, w: margin_loss(u, w, torch.arange(3), margin=0.5, margin_type="arcface"), embeddings, points
        )
        assert all(x.isfinite().all() for x in (value, *gradients))
    for wrong in ({"margin": -0.1}, {"margin": 4.0}, {"margin": 0.1, "margin_type": "sphereface"}):
        with pytest.raises(ValueError, match="margin_type 'cosface' or"):
            margin_loss(points, points, torch.arange(3), **wrong)


def test_dot_regression_is_its_equation():
    embeddings, prototypes, labels, _ = random_case(7, 4, 3, 0, True, False, True)
    expected = with_gradients(lambda u, w: oracles.dot_regression_loss(u, w, labels), embeddings, prototypes)
    for chunk_size in (None, 2):
        got = with_gradients(
            lambda u, w, n=chunk_size: dot_regression_loss(u, w, labels, chunk_size=n),
            embeddings, prototypes,
        )  # fmt: skip
        assert_same(got, expected, 1e-12)


@pytest.mark.parametrize("objective", VIEWS)
@settings(max_examples=40, deadline=None)
@given(**SHAPES, views=st.integers(1, 3))
def test_losses_of_views_are_their_equations(
    objective, size, num_classes, dim, temperature, chunk_size, reduction, seed,
    duplicates, weighted, ignored, views,
):  # fmt: skip
    embeddings, _, labels, weight = random_case(size, num_classes, dim, seed, duplicates, weighted, ignored, views)
    options = {"weight": weight, "reduction": reduction}

    def ours(u):
        value = VIEWS[objective](u, labels, temperature, chunk_size=chunk_size, **options)
        assert reduction != "none" or value.shape == (size, views)
        return value.sum()

    def oracle(u):
        return oracles.views_loss(objective, u, labels, temperature, **options).sum()

    assert_same(with_gradients(ours, embeddings), with_gradients(oracle, embeddings), 1e-9)


@pytest.mark.parametrize("objective", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_views_in_low_precision_give_the_result_of_the_rounded_inputs(objective, dtype):
    embeddings, _, labels = draw(4, 16, 3, 8, dtype, 2)
    leaf = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = VIEWS[objective](leaf, labels, 0.07)
    (gradient,) = torch.autograd.grad(value, leaf)
    expected = with_gradients(lambda u: VIEWS[objective](u, labels, 0.07), embeddings.double())
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    tolerance = max(4 * torch.finfo(dtype).eps * expected[1][0].abs().max().item(), 2e-5)
    assert_same((value.detach(), [gradient]), expected, tolerance)


@pytest.mark.parametrize("name", ["DecoupledSupConLoss", "SINCERELoss"])
def test_anchors_without_a_pair_are_counted(name):
    embeddings, _, _ = draw(7, 5, 3, 4)
    module = getattr(objectives, name)(0.2)
    module(embeddings, torch.tensor([0, 0, 1, 2, 3]))
    assert module.left_out == 3
    value, (gradient,) = with_gradients(lambda u: module(u, torch.ones(5).long()), embeddings)
    # Of one class there are no negatives: nothing to push, and SINCERE's logarithm is that of 1.
    assert module.left_out == (5 if name == "DecoupledSupConLoss" else 0)
    assert value == 0
    assert (gradient == 0).all()


def test_without_the_own_class_the_loss_is_normface_of_the_odds():
    embeddings, prototypes, labels = draw(3, 20, 6, 5)
    module = objectives.DecoupledNormFaceLoss(0.2, reduction="none")
    odds = module(embeddings, prototypes, labels)
    expected = OBJECTIVES["normface"].loss(embeddings, prototypes, labels, 0.2, reduction="none")
    assert torch.allclose(F.softplus(odds), expected)


# The bias of classes.


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", ["normface", "decoupled_normface", "margin"])
def test_a_bias_is_added_to_the_similarities_of_its_class(name, chunk_size):
    embeddings, prototypes, labels = draw(5, 14, 6, 4)
    labels[3] = -100
    bias = torch.linspace(-2, 1, 6, dtype=torch.float64)
    more = {"margin": 0.2} if name == "margin" else {}
    loss = margin_loss if more else OBJECTIVES[name].loss

    def ours(u, w):
        return loss(u, w, labels, 0.3, bias=bias, chunk_size=chunk_size, **more)

    def expected(u, w):
        scores = F.normalize(u, dim=1) @ F.normalize(w, dim=1).T / 0.3 + bias
        own = F.one_hot(labels.clamp(0), 6).bool()
        if name == "decoupled_normface":
            losses = scores.masked_fill(own, -math.inf).logsumexp(1) - scores[own]
            return losses[labels >= 0].mean()
        return F.cross_entropy(scores - 0.2 / 0.3 * own.double() * bool(more), labels)

    wanted = with_gradients(expected, embeddings, prototypes)
    assert_same(with_gradients(ours, embeddings, prototypes), wanted, 1e-9)


def test_terms_for_classes_of_unequal_size():
    weights, bias = class_terms("normface", [6, 3, 1], balanced=True, logit_adjustment=1.5)
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    torch.testing.assert_close(bias, 1.5 * torch.tensor([0.6, 0.3, 0.1]).log())
    assert class_terms("ntce", [1, 2], balanced=False, logit_adjustment=0.0) == (None, None)
    for name in ("ntce", "nonl", "scl", "dot_regression"):
        with pytest.raises(ValueError, match=f"does nothing under '{name}': balance the classes"):
            class_terms(name, [1, 2], balanced=False, logit_adjustment=1.0)
    with pytest.raises(ValueError, match=r"images of every class, but has none of \[1\]"):
        class_terms("normface", [3, 0], balanced=False, logit_adjustment=1.0)
    assert class_terms("ntce", [3, 0], balanced=True, logit_adjustment=0.0)[0].isfinite().all()


def test_a_bias_of_an_anchor_that_is_a_prototype_would_cancel():
    embeddings, prototypes, labels = draw(6, 14, 5, 4)
    scores = (F.normalize(embeddings, dim=1) @ F.normalize(prototypes, dim=1).T) / 0.3
    for bias in (torch.zeros(5), torch.linspace(-2, 1, 5)):
        columns = scores + bias
        losses = columns.logsumexp(0)[labels] - columns.gather(1, labels[:, None])[:, 0]
        assert torch.allclose(losses.mean(), OBJECTIVES["ntce"].loss(embeddings, prototypes, labels, 0.3))


# The queue.


@pytest.mark.parametrize("views", [None, 2])
def test_a_queue_holds_the_newest(views):
    queue, seen = objectives.EmbeddingQueue(7, 3), []
    for i, size in enumerate((2, 3, 1, 5, 9, 0, 4)):
        embeddings, _, labels = draw(i, size, 5, 3, torch.float32, views)
        queue.push(embeddings, labels)
        seen += zip(embeddings.flatten(0, -2).tolist(), labels.repeat_interleave(views or 1).tolist())
        newest = sorted(seen[-7:])
        kept = queue.labels >= 0
        assert kept.sum() == min(len(seen), 7)
        entries = zip(queue.embeddings[kept].tolist(), queue.labels[kept].tolist())
        assert sorted((e, y) for e, y in entries) == [(e, y) for e, y in newest]


# The table.


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
    elif objective.contrast is None:
        expected = objective.loss(embeddings.flatten(0, 1), prototypes, each)
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
    assert default_temperature("nonl", 10) == pytest.approx(0.5 * optimal_temperature(10))


@pytest.mark.parametrize("objective", ["ntce", "normface", "scl", "sincere"])
def test_the_gradient_of_a_learned_temperature_is_that_of_the_number(objective):
    generator = torch.Generator().manual_seed(0)
    views = (2,) if OBJECTIVES[objective].contrasts_views else ()
    embeddings = torch.randn(9, *views, 4, generator=generator, dtype=torch.float64)
    embeddings, prototypes = F.normalize(embeddings, dim=-1), 3 * torch.eye(3, 4).double()
    options = {"weight": torch.tensor([1.0, 2.0, 3.0])}
    if objective == "normface":
        options["bias"] = torch.tensor([0.0, 1.0, -1.0])
    if objective == "ntce":
        options["queue"] = (embeddings.flip(0), torch.arange(9) % 2)

    def value(temperature):
        batch = (embeddings, embeddings, torch.arange(9) % 3, prototypes, temperature)
        return objective_loss(objective, *batch, **options)

    learned = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    loss = value(learned)
    torch.testing.assert_close(loss, value(0.3), rtol=1e-12, atol=0)
    loss.backward()
    slope = (value(0.3 + 1e-5) - value(0.3 - 1e-5)) / 2e-5
    torch.testing.assert_close(learned.grad[0], slope, rtol=1e-7, atol=0)
