"""n micro-batches give the gradient of the one large batch."""

import copy

import pytest
import torch
from accelerate import Accelerator

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification, contrast
from hf_protosphere.objectives import OBJECTIVES, EmbeddingQueue
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.optimizer import build_optimizer
from hf_protosphere.training.step import OptimizerStep, backward_as_one_batch
from tests.memory import peak_memory

# Group norm: batch norm would make the large batch a different network.
BACKBONE = {"backbone": "test_efficientnet_gn", "image_size": 32, "num_labels": 4}


def build(dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    config = ProtoSphereConfig(**{**BACKBONE, "projection": "linear", "projection_dim": 8, **kwargs})
    return ProtoSphereForImageClassification(config).to(dtype).train()


def batch(objective, size=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    views = (2,) if OBJECTIVES[objective].contrasts_views else ()
    return {
        "pixel_values": torch.randn(size, *views, 3, 32, 32, generator=generator, dtype=dtype),
        "labels": torch.randint(0, 4, (size,), generator=generator),
    }


def split(whole, *sizes):
    parts = zip(whole["pixel_values"].split(sizes), whole["labels"].split(sizes))
    return [{"pixel_values": pixels, "labels": labels} for pixels, labels in parts]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("prototypes", ["learned", "simplex_etf"])
@pytest.mark.parametrize("objective", ["ntce", "nonl", "scl", "sincere", "normface"])
@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (1, 6, 5)])
def test_gradients_are_those_of_the_large_batch(objective, prototypes, sizes):
    if OBJECTIVES[objective].contrasts_views:
        prototypes = "simplex_etf"
    can_learn = "learn_temperature" in OBJECTIVES[objective].options
    learned = can_learn and prototypes == "simplex_etf"
    model = build(objective=objective, prototypes=prototypes, learned_temperature=learned)
    whole = batch(objective)
    output = model(whole["pixel_values"], labels=whole["labels"])
    output.loss.backward()
    expected = gradients(model)
    assert ("head.log_temperature" in expected) == learned
    model.zero_grad()
    loss, logits = backward_as_one_batch(model, split(whole, *sizes))
    assert torch.allclose(loss, output.loss.detach(), atol=1e-12)
    assert torch.allclose(logits, output.logits, atol=1e-12)
    got = gradients(model)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(got[name], value, atol=1e-6 * value.abs().max().item()), name


@pytest.mark.parametrize("sizes", [(12,), (5, 7)])
@pytest.mark.parametrize("objective", ["ntce", "normface"])
def test_queue_and_weights_are_those_of_the_large_batch(objective, sizes):
    results = []
    for parts in ([12], sizes):
        model = build(objective=objective)
        if objective == "ntce":
            model.queue.append(EmbeddingQueue(9, 8).double())
        model.set_class_counts([8, 4, 2, 1])
        for _ in range(2):  # the second with what the first left behind
            model.zero_grad()
            loss, _ = backward_as_one_batch(model, split(batch(objective), *parts))
        results.append([loss, *gradients(model).values(), *[x for q in model.queue for x in q.buffers()]])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*results, strict=True))


def test_plain_accumulation_would_give_something_else():
    model = build(objective="ntce")
    whole = batch("ntce")
    model(whole["pixel_values"], labels=whole["labels"]).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    for part in split(whole, 4, 4, 4):
        (model(part["pixel_values"], labels=part["labels"]).loss / 3).backward()
    got = gradients(model)
    assert max((got[n] - expected[n]).abs().max() / expected[n].abs().max() for n in got) > 0.01


def test_dropout_and_stochastic_depth_are_replayed():
    model = build(objective="nonl", backbone_kwargs={"drop_rate": 0.5, "drop_path_rate": 0.5})
    parts = split(batch("nonl"), 4, 4, 4)
    torch.manual_seed(3)
    backward_as_one_batch(model, parts)
    after = torch.rand(1)
    got = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    outputs = [model(part["pixel_values"]) for part in parts]  # one graph over all of them
    labels = torch.cat([part["labels"] for part in parts])
    embeddings, logits = (torch.cat([o[k] for o in outputs]) for k in ("embeddings", "logits"))
    model.objective(embeddings, logits, labels).backward()
    assert torch.equal(torch.rand(1), after)
    for name, value in gradients(model).items():
        assert torch.allclose(got[name], value, atol=1e-6 * value.abs().max().item()), name


def test_batch_norm_statistics_are_updated_once():
    model = build(backbone="test_resnet", objective="nonl")
    reference = copy.deepcopy(model)
    parts = split(batch("nonl"), 6, 6)
    backward_as_one_batch(model, parts)
    with torch.no_grad():
        for part in parts:
            reference(part["pixel_values"])
    for (name, ours), theirs in zip(model.named_buffers(), reference.buffers()):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(("objective", "optimizer", "states"), [("normface", "sgd", 3), ("nonl", "adamw", 4)])
def test_many_classes_take_little_more_than_prototypes_gradients_and_optimiser(objective, optimizer, states):
    """With 256 images: no (M, K) similarities lie beside the gradients, and no normalised prototypes."""
    num_classes, size = 70_000, 256
    assert size * num_classes > contrast.MAX_SIMILARITIES
    model = build(torch.float32, objective=objective, num_labels=num_classes, projection_dim=256)
    model.protosphere.requires_grad_(False)
    arguments = TrainArguments(dataset_name="x", objective=objective, optimizer=optimizer, freeze_backbone=True)
    one = {"pixel_values": torch.randn(size, 3, 8, 8), "labels": torch.randint(num_classes, (size,))}
    model.protosphere(one["pixel_values"])  # what is allocated once
    prototypes = model.head.weight.nbytes / 2**20
    with peak_memory() as peak:
        optimizers = build_optimizer(arguments, model, images_per_step=size, steps_per_epoch=2)
        step = OptimizerStep(arguments, model, *optimizers, Accelerator(cpu=True))
        step.train_mode()
        for number in range(2):
            step([one], number)
    assert prototypes + peak.mebibytes <= 1.3 * states * prototypes
