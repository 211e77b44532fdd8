"""Real gloo processes: together they compute what one computes on the concatenated batch."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from hf_protosphere.losses import nonl_loss, ntce_loss
from hf_protosphere.objectives import OBJECTIVES
from tests import recording

from .test_communication import check_what_steps_send

WORLD_SIZE = 4
SIZES = (5, 1, 0, 7)  # images of each process: one has a single image, one none
NUM_CLASSES, DIM = 6, 8
LOSSES = {name: of.loss for name, of in OBJECTIVES.items() if name != "cross_entropy"}
VIEWS = [name for name, objective in OBJECTIVES.items() if objective.contrasts_views]


class Embedder(nn.Module):
    """Raw inputs (M[, V], 10) → loss, so that gradients of shared parameters can be averaged."""

    def __init__(self, objective, group, weight, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(10, DIM).to(dtype)
        self.prototypes = nn.Parameter(torch.randn(NUM_CLASSES, DIM, dtype=dtype))
        self.objective, self.group, self.weight = objective, group, weight

    def forward(self, inputs, labels):
        embeddings = self.linear(inputs)
        options = {"group": self.group, "weight": self.weight}
        loss, contrast = LOSSES[self.objective], OBJECTIVES[self.objective].contrast
        if self.objective in VIEWS:
            return loss(embeddings, labels, 0.2, **options) + 0 * self.prototypes.sum()
        temperature = () if contrast is None else (0.2,)
        return loss(embeddings, self.prototypes, labels, *temperature, **options)


def case(objective, num_processes, dtype):
    """Batches of each process. The first one's are all of one class, the last lacks some."""
    generator = torch.Generator().manual_seed(num_processes)
    size = sum(SIZES[:num_processes])
    shape = (size, 2, 10) if objective in VIEWS else (size, 10)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, NUM_CLASSES, (size,), generator=generator)
    if num_processes > 1:
        labels[: SIZES[0]] = 2
    labels[-1] = -100
    return inputs.split(SIZES[:num_processes]), labels.split(SIZES[:num_processes])


def gradients(module):
    return [p.grad.clone() for p in module.parameters()]


def check_equal_to_one_process(rank, groups):
    for num_processes, group in groups.items():
        if rank >= num_processes:
            continue
        for objective in LOSSES:
            for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
                for weight in (None, torch.linspace(0.5, 2, NUM_CLASSES, dtype=dtype)):
                    inputs, labels = case(objective, num_processes, dtype)
                    alone = Embedder(objective, "local", weight, dtype)
                    expected = alone(torch.cat(inputs), torch.cat(labels))
                    expected.backward()

                    module = Embedder(objective, group, weight, dtype)
                    loss = module(inputs[rank], labels[rank])
                    loss.backward()
                    where = (num_processes, objective, dtype, weight is None)
                    assert abs(loss - expected) <= tolerance * max(1, abs(expected)), where
                    for ours, theirs in zip(gradients(module), gradients(alone)):
                        dist.all_reduce(ours, group=group)
                        ours /= num_processes
                        assert torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance), where


def check_distributed_data_parallel(rank, accelerator):
    for objective in LOSSES:
        inputs, labels = case(objective, WORLD_SIZE, torch.float64)
        alone = Embedder(objective, "local", None, torch.float64)
        alone(torch.cat(inputs), torch.cat(labels)).backward()
        module = accelerator.prepare(Embedder(objective, None, None, torch.float64))
        assert type(module) is nn.parallel.DistributedDataParallel
        accelerator.backward(module(inputs[rank], labels[rank]))
        for ours, theirs in zip(gradients(module), gradients(alone)):
            assert torch.allclose(ours, theirs, atol=1e-12), objective


def check_accumulation(rank, accelerator):
    """Contrast over all micro-batches of all processes."""
    from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
    from hf_protosphere.objectives import OBJECTIVES, objective_loss
    from hf_protosphere.training.step import backward_as_one_batch

    for objective in ("ntce", "nonl", *VIEWS):
        config = ProtoSphereConfig(
            backbone="test_efficientnet_gn",
            image_size=32,
            num_labels=4,
            projection="linear",
            projection_dim=8,
            objective=objective,
            learned_temperature="learn_temperature" in OBJECTIVES[objective].options,
        )
        torch.manual_seed(0)
        model = ProtoSphereForImageClassification(config).double().train()
        views = (2,) if objective in VIEWS else ()
        pixels = torch.randn(WORLD_SIZE, 2, 3, *views, 3, 32, 32, dtype=torch.float64)
        labels = torch.randint(0, 4, (WORLD_SIZE, 2, 3))  # (process, micro-batch, image)
        output = model(pixels.flatten(0, 2))
        loss = objective_loss(  # of all images, on every process alone
            objective, output.embeddings, output.logits, labels.flatten(), model.head.weight,
            model.temperature, group="local",
        )  # fmt: skip
        loss.backward()
        expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        prepared = accelerator.prepare(model)
        batches = [{"pixel_values": x, "labels": y} for x, y in zip(pixels[rank], labels[rank])]
        value, _ = backward_as_one_batch(prepared, batches, accelerator)
        assert abs(value - loss) < 1e-10, objective
        got = [p.grad for p in model.parameters() if p.grad is not None]
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6 * theirs.abs().max().item()), objective


def check_queues(rank):
    """Of each process its own: together they are the queue of one process."""
    for loss in (ntce_loss, nonl_loss):
        inputs, labels = case("ntce", WORLD_SIZE, torch.float64)
        queues = torch.randn(WORLD_SIZE, 3, DIM, generator=torch.Generator().manual_seed(3)).double()
        queued = torch.tensor([[0, 1, -100], [2, 2, 5], [-100] * 3, [4, 0, 1]])
        leaves = [torch.nn.Parameter(torch.cat(inputs)[:, :DIM].clone()) for _ in range(2)]
        weights = [torch.nn.Parameter(torch.eye(NUM_CLASSES, DIM).double()) for _ in range(2)]
        union = (queues.flatten(0, 1), queued.flatten())
        one = loss(leaves[0], weights[0], torch.cat(labels), queue=union, group="local")
        part = leaves[1].split(SIZES)[rank]
        many = loss(part, weights[1], labels[rank], queue=(queues[rank], queued[rank]))
        assert abs(one - many) < 1e-12
        one.backward(), many.backward()
        for ours, theirs in ((leaves[1], leaves[0]), (weights[1], weights[0])):
            dist.all_reduce(ours.grad)
            assert torch.allclose(ours.grad / WORLD_SIZE, theirs.grad, atol=1e-12)


def check_local_contrasts_exchange_nothing(group):
    group.calls.clear()
    for loss in LOSSES.values():
        embeddings, labels = torch.randn(8, DIM, requires_grad=True), torch.arange(8) % 4
        views, contrast = loss in [LOSSES[name] for name in VIEWS], loss is not LOSSES["dot_regression"]
        prototypes = () if views else (torch.randn(NUM_CLASSES, DIM),)
        loss(embeddings, *prototypes, labels, *[0.2] * contrast, group="local").backward()
    assert not group.calls


def check_single_class_on_one_process_is_no_warning(rank, recorded):
    """The first process's batch has one class, the group's has more: every anchor has negatives."""
    inputs, labels = case("nonl", WORLD_SIZE, torch.float64)
    assert rank or len(labels[0].unique()) == 1
    loss = Embedder("nonl", None, None, torch.float64)(inputs[rank], labels[rank])
    assert loss.isfinite()
    assert not [w for w in recorded if "single class" in str(w.message)]


def work(rank, port):
    import warnings

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    from accelerate import Accelerator

    torch.set_num_threads(1)
    recorded_group = recording.connect()
    accelerator = Accelerator()
    groups = {n: dist.new_group(list(range(n))) for n in (1, 2, 4)}
    check_equal_to_one_process(rank, groups)
    check_distributed_data_parallel(rank, accelerator)
    check_queues(rank)
    check_local_contrasts_exchange_nothing(recorded_group)
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        check_single_class_on_one_process_is_no_warning(rank, recorded)
    torch.manual_seed(1)
    check_accumulation(rank, accelerator)
    check_what_steps_send(recorded_group)
    dist.destroy_process_group()


def test_processes_together_are_one_process(forkserver):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.start_processes(work, args=(port,), nprocs=WORLD_SIZE, start_method="forkserver")


def test_local_contrasts_would_be_another_loss():
    inputs, labels = case("ntce", 2, torch.float64)
    alone = Embedder("ntce", "local", None, torch.float64)
    whole = alone(torch.cat(inputs), torch.cat(labels))
    averaged = sum(alone(x, y) for x, y in zip(inputs, labels)) / 2
    assert abs(whole - averaged) > 0.1
