"""The optimiser by name, what decays, and the learning rate from step to step."""

import pytest
import torch
from transformers import get_scheduler

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.training.optimizer import build_optimizer, usual_learning_rate


@pytest.fixture
def model():
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=3)
    return ProtoSphereForImageClassification(config)


def rates(optimizer, schedule, steps):
    found = []
    for _ in range(steps):
        optimizer.step()
        found.append(schedule.get_last_lr()[0])
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("options", "rate", "decay"),
    [
        ({"optimizer": "sgd"}, 1.2 * 64 / 256, 5e-4),  # by the images of a step
        ({"optimizer": "adamw"}, 1e-3, 0.05),
        ({"optimizer": "sgd", "learning_rate": 0.3, "weight_decay": 0.0}, 0.3, 0.0),
        ({"optimizer": "lion", "learning_rate": 0.001}, 0.001, 0.0),
        ({"optimizer": "lamb", "learning_rate": 0.002, "weight_decay": 0.1}, 0.002, 0.1),
    ],
)
def test_rates_and_decay_by_default(arguments, model, options, rate, decay):
    given = arguments(**options, epochs=4, warmup_epochs=1)
    optimizer, schedule = build_optimizer(given, model, images_per_step=64, steps_per_epoch=10)
    assert {group["initial_lr"] for group in optimizer.param_groups} == {rate}
    assert max(group["weight_decay"] for group in optimizer.param_groups) == decay
    plain = [g for g in optimizer.param_groups if g["weight_decay"] == 0]
    assert any(model.head.weight is p for group in plain for p in group["params"])
    usual = torch.optim.SGD([torch.zeros(1)], rate)
    same = get_scheduler("cosine", usual, num_warmup_steps=10, num_training_steps=40)
    assert rates(optimizer, schedule, 40) == rates(usual, same, 40)


def test_the_papers_sgd_is_plain_decays_everything_and_ends_at_a_floor(arguments, model):
    given = arguments(
        optimizer="sgd", nesterov=False, decay_all=True, weight_decay=1e-4, learning_rate=0.4,
        epochs=4, warmup_epochs=1, warmup_lr_rate=0.025, min_lr_rate=1e-3,
    )  # fmt: skip
    optimizer, schedule = build_optimizer(given, model, images_per_step=64, steps_per_epoch=10)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 1e-4)
    assert len(group["params"]) == len(list(model.parameters()))
    seen = rates(optimizer, schedule, 41)
    assert seen[0] == pytest.approx(0.01)
    assert seen[5] == pytest.approx((0.01 + 0.4) / 2)
    assert max(seen) == seen[10] == 0.4
    assert seen[40] == pytest.approx(4e-4)


def test_steps_fall_at_their_milestones(arguments, model):
    given = arguments(schedule="step", milestones=[1, 2.5], gamma=0.2, epochs=4, warmup_epochs=0, learning_rate=5.0)
    optimizer, schedule = build_optimizer(given, model, images_per_step=64, steps_per_epoch=10)
    expected = [5.0] * 10 + [1.0] * 15 + [0.2] * 15
    assert rates(optimizer, schedule, 40) == pytest.approx(expected)


def test_muon_leaves_heads_and_vectors_to_adamw(arguments, model):
    given = arguments(optimizer="muon", learning_rate=1e-3, momentum=0.95, channels_last=True)
    model.to(memory_format=torch.channels_last)
    optimizer, _ = build_optimizer(given, model, images_per_step=64, steps_per_epoch=10)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.95}
    model(torch.randn(6, 3, 32, 32), labels=torch.arange(6) % 3).loss.backward()
    optimizer.step()
    by_muon = {id(p) for p, state in optimizer.state.items() if state["use_muon"]}
    matrices = {id(p) for p in model.protosphere.parameters() if p.dim() > 1}
    assert by_muon == matrices


def test_the_usual_rate_of_large_batches_is_bounded():
    assert usual_learning_rate("sgd", 8192, prototypes=True) == 1.0
    assert usual_learning_rate("sgd", 128, prototypes=True) == pytest.approx(0.6)
    assert usual_learning_rate("sgd", 512, prototypes=False) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "of_256"),
    [({}, 1.2), ({"objective": "nonl"}, 1.2), ({"objective": "scl"}, 0.1),
     ({"objective": "cross_entropy"}, 0.1), ({"pretrained": True}, 0.1)],
)  # fmt: skip
def test_the_higher_rate_is_for_prototypes_from_scratch(arguments, model, options, of_256):
    model.config.objective = options.get("objective", "ntce")
    given = arguments(optimizer="sgd", **options)
    optimizer, _ = build_optimizer(given, model, images_per_step=64, steps_per_epoch=10)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(of_256 * 64 / 256)
