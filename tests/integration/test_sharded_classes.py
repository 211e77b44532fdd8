"""Thousands of prototypes in shards, by FSDP2: two and four processes end where one does."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

CLASSES, DIM, IMAGES, STEPS = 5000, 16, 8, 3
OBJECTIVES = ("normface", "ntce", "nonl")
# As scripts/accelerate/fsdp2.yaml has them for the launcher.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}  # fmt: skip


def trained(objective, rank=0, size=1):
    """The losses of a few steps, the weights after them, and the shapes of the shards of the prototypes."""
    from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
    from hf_protosphere.training.arguments import TrainArguments
    from hf_protosphere.training.optimizer import build_optimizer
    from hf_protosphere.training.setup import build_accelerator
    from hf_protosphere.training.step import OptimizerStep

    arguments = TrainArguments(dataset_name="x", objective=objective, report_to=["none"])
    accelerator = build_accelerator(arguments)
    torch.manual_seed(0)
    config = ProtoSphereConfig(
        backbone="test_vit", image_size=32, num_labels=CLASSES, projection="linear", projection_dim=DIM,
        objective=objective,
    )  # fmt: skip
    model = ProtoSphereForImageClassification(config).double()
    optimizer = build_optimizer(arguments, model, images_per_step=256, steps_per_epoch=9, fused=size == 1)
    step = OptimizerStep(arguments, model, *optimizer, accelerator)
    step.train_mode()
    pixels = torch.randn(STEPS, IMAGES, 3, 32, 32, dtype=torch.float64)
    labels, own = torch.randint(CLASSES, (STEPS, IMAGES)), slice(rank * IMAGES // size, (rank + 1) * IMAGES // size)
    losses = [step([{"pixel_values": x[own], "labels": y[own]}], i)[0] for i, (x, y) in enumerate(zip(pixels, labels))]
    weight = dict(step.prepared_model.named_parameters())["head.weight"]
    shard = getattr(weight, "to_local", lambda: weight)().shape
    return torch.stack(losses), accelerator.get_state_dict(step.prepared_model), shard


def work(rank, port, size, folder):
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ |= FSDP2 | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_TORCH_DEVICE": "cpu",
    }  # fmt: skip
    # Accelerate shards models on GPUs only, though torch does on CPUs as well.
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    torch.set_num_threads(1)
    for objective in OBJECTIVES:
        losses, weights, shard = trained(objective, rank, size)
        assert shard == (CLASSES // size, DIM)
        dist.all_reduce(losses)  # NormFace's are of each process's images, the others of all
        if rank == 0:
            torch.save((losses / size, weights), folder / objective)
    dist.destroy_process_group()


@pytest.mark.slow  # a quarter of a minute each
@pytest.mark.parametrize("size", [2, 4])
def test_shards_of_many_prototypes_are_trained_as_one_process_trains_them(forkserver, tmp_path, size):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.start_processes(work, args=(port, size, tmp_path), nprocs=size, start_method="forkserver")
    for objective in OBJECTIVES:
        losses, weights, _ = trained(objective)
        theirs, their_weights = torch.load(tmp_path / objective)
        assert torch.allclose(theirs, losses, rtol=0, atol=1e-10), objective
        assert their_weights.keys() == weights.keys()
        for name, weight in weights.items():
            assert (their_weights[name] - weight).abs().max() < 1e-10, (objective, name)
