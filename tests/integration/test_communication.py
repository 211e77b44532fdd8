"""What a training step sends, counted in real ones: what the contrast needs and the gradients, nothing else."""

import os
import socket
from collections import Counter

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from scripts.benchmarks.communication import Collective, collectives, efficiency
from tests import recording

CLASSES, DIM, IMAGES = 7, 5, 6  # of each process
# Batch norm has buffers, and so have the prototypes of SCL: none of them is sent.
OBJECTIVES = ("normface", "ntce", "nonl", "scl")


def one_step(objective, group, batches):
    """(operation, bytes) of a step, and what the plan on paper says."""
    from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
    from hf_protosphere.training.arguments import TrainArguments
    from hf_protosphere.training.optimizer import build_optimizer
    from hf_protosphere.training.setup import build_accelerator
    from hf_protosphere.training.step import OptimizerStep

    arguments = TrainArguments(dataset_name="x", objective=objective, output_dir="x", report_to=["none"])
    accelerator = build_accelerator(arguments)
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, num_labels=CLASSES, projection="linear", projection_dim=DIM,
        objective=objective, prototypes="class_means" if objective == "scl" else "learned",
    )  # fmt: skip
    torch.manual_seed(0)
    model = ProtoSphereForImageClassification(config)
    optimizer = build_optimizer(arguments, model, images_per_step=1, steps_per_epoch=9)
    step = OptimizerStep(arguments, model, *optimizer, accelerator)
    step.train_mode()
    views = 2 if objective == "scl" else 1
    shape = (batches, IMAGES // batches, *([2] if views == 2 else []), 3, 32, 32)
    parts = [{"pixel_values": x, "labels": torch.arange(len(x))} for x in torch.randn(shape)]
    for number in range(3):  # DistributedDataParallel agrees on its buckets before the second
        group.calls.clear()
        step(parts, number)
    planned = collectives(
        objective, dist.get_world_size(), classes=CLASSES, dim=DIM, vectors=IMAGES * views,
        parameters=sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    return list(group.calls), planned


def check_what_steps_send(group):
    for objective in OBJECTIVES:
        for batches in (1, 2):  # as one batch: no gradients are sent in between
            calls, planned = one_step(objective, group, batches)
            (gradients,) = (one for one in planned if one.of == "gradients")
            contrast = Counter((one.operation, one.bytes) for one in planned if one is not gradients)
            if batches == 2 and objective == "normface":  # each has a loss of its own
                contrast += contrast
            where = (objective, batches, Counter(calls))
            assert contrast <= Counter(calls), where
            rest = Counter(calls) - contrast
            assert {operation for operation, _ in rest} == {"all_reduce"}, where
            assert sum(number * times for (_, number), times in rest.items()) == gradients.bytes, where


def work(rank, port, size):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    torch.set_num_threads(1)
    check_what_steps_send(recording.connect())
    dist.destroy_process_group()


@pytest.mark.slow  # half a minute; those of four are in test_losses_across_processes.py
@pytest.mark.parametrize("size", [2, 8])
def test_a_step_sends_what_the_contrast_needs_and_the_gradients(forkserver, size):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.start_processes(work, args=(port, size), nprocs=size, start_method="forkserver")


def test_efficiency_is_what_the_ring_leaves():
    """By hand: 8 processes, gradients of 1 GB over 8 Gb/s: 2·7/8 s beside a step of 1 s, and latencies."""
    exchanged = [Collective("all_gather", 10**6), Collective("all_reduce", 10**9, "gradients")]
    waited = 7e-3 + 3 * 10e-6  # for the contrast
    sending = 1.75 + 39 * 6 * 10e-6  # buckets of 25 MiB: 39
    after, during = (efficiency(exchanged, 8, 8, 1.0, overlapped=overlapped) for overlapped in (False, True))
    assert after == pytest.approx(1 / (1 + waited + sending - 6 * 10e-6), rel=1e-3)
    assert during == pytest.approx(1 / (1 + waited + sending - 2 / 3), rel=1e-3)
