"""A plan on paper: what a training step sends, and what share of a GPU's time is left for training.

    python -m scripts.benchmarks.communication
    python -m scripts.benchmarks.communication --times_faster 4

The bytes are those of `collectives`, which tests/integration/test_communication.py counts in real steps of 2, 4 and 8
processes. The seconds of a step without communication are those of one GPU, from timm's results/
benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv: forward, backward and update of 224 pixels in mixed precision on an
RTX 3090, at 1,218.01 images/s for resnet50 and 392.99 for vit_base_patch16_224, here of 256 images a GPU;
`--times_faster` divides them.

Each collective is a ring over links of the given rate, between any two GPUs: an all-reduce of S bytes over W processes
takes 2(W − 1)/W·S over the rate, an all-gather (W − 1) times each one's part, a reduce-scatter (W − 1)/W of its whole;
and LATENCY seconds for every doubling of W, twice for an all-reduce. Gradients, in float32, are either sent after the
backward pass, or during it, which is two thirds of a step: then the last bucket of DistributedDataParallel, of 25 MiB,
still comes behind it. What the contrast exchanges is always waited for.
"""

import argparse
import math
from typing import NamedTuple

import torch

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification

from ..markdown import markdown_table

LATENCY = 10e-6  # seconds; assumed
BUCKET = 25 * 2**20  # bytes, of DistributedDataParallel
BACKWARD = 2 / 3  # of the time of a step
FLOAT, INDEX = 4, 8  # bytes
IMAGES = 256  # of each GPU
IMAGES_PER_SECOND = {"resnet50": 1218.01, "vit_base_patch16_224": 392.99}
GIGABITS, GPUS = (25, 400), (8, 64, 512)


class Collective(NamedTuple):
    """
    Args:
        operation: "all_reduce", "all_gather" or "reduce_scatter".
        bytes: of the tensor that each process gives: all_gather, its part; else the whole.
        of: "contrast" or "gradients".
    """

    operation: str
    bytes: int
    of: str = "contrast"

    def sent(self, processes: int) -> float:
        """Bytes that each process sends, and gets, in a ring."""
        times = {"all_reduce": 2 / processes, "all_gather": 1.0, "reduce_scatter": 1 / processes}
        return times[self.operation] * (processes - 1) * self.bytes

    def seconds(self, processes: int, bytes_per_second: float) -> float:
        hops = math.ceil(math.log2(processes)) * (2 if self.operation == "all_reduce" else 1)
        return self.sent(processes) / bytes_per_second + hops * LATENCY


def collectives(
    objective: str, processes: int, *, parameters: int, classes: int, dim: int, vectors: int
) -> list[Collective]:
    """Those of one optimiser step, of nothing but the contrast and the gradients.

    Args:
        parameters: P that are trained, in float32.
        classes: K.
        dim: D of the embeddings.
        vectors: N embeddings of each process: images times views.
    """
    two_sums = [Collective("all_reduce", FLOAT)] * 2  # of the losses, and of the instances' weights
    contrast = {
        "normface": [],  # its prototypes are in every process
        "ntce": [Collective("all_reduce", classes * FLOAT)] * 3,  # maxima, sums of exponentials, gradients
        "scl": [
            Collective("all_gather", INDEX), Collective("all_gather", vectors * dim * FLOAT),
            Collective("all_gather", INDEX), Collective("all_gather", 2 * vectors * INDEX),  # labels, who is kept
            Collective("reduce_scatter", processes * vectors * dim * FLOAT),
        ],
    }  # fmt: skip
    gradients = Collective("all_reduce", parameters * FLOAT, "gradients")
    return [*contrast["ntce" if objective == "nonl" else objective], *two_sums, gradients]


def efficiency(
    exchanged: list[Collective], processes: int, gigabits: float, seconds: float, *, overlapped: bool
) -> float:
    """The share of a step's time that is left for training, of `seconds` without communication."""
    rate = gigabits * 1e9 / 8
    (gradients,) = (one for one in exchanged if one.of == "gradients")
    waited = sum(one.seconds(processes, rate) for one in exchanged if one.of == "contrast")
    buckets = math.ceil(gradients.bytes / BUCKET)
    sending = gradients.seconds(processes, rate) + (buckets - 1) * gradients._replace(bytes=0).seconds(processes, rate)
    last = gradients._replace(bytes=min(BUCKET, gradients.bytes)).seconds(processes, rate)
    waited += max(sending - BACKWARD * seconds, last) if overlapped else sending
    return seconds / (seconds + waited)


def shape_of(backbone: str, objective: str) -> dict[str, int]:
    """As the recipes train ImageNet-1k; counted from the model, of which nothing is computed."""
    views = {"projection": "mlp", "projection_dim": 128} if objective == "scl" else {"projection": "none"}
    config = ProtoSphereConfig(
        backbone=backbone, num_labels=1000, image_size=224, objective=objective, **views,
        prototypes="class_means" if objective == "scl" else "learned",
    )  # fmt: skip
    with torch.device("meta"):
        model = ProtoSphereForImageClassification(config)
    vectors = IMAGES * (2 if objective == "scl" else 1)
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "classes": config.num_labels,
        "dim": model.protosphere.embedding_dim, "vectors": vectors,
    }  # fmt: skip


def run(times_faster: float) -> None:
    sent = [["each GPU sends, MB", *(f"contrast, {n}" for n in GPUS), *(f"gradients, {n}" for n in GPUS)]]
    left = [["efficiency: sent after, during the backward pass", "Gb/s", "ms a step", *(f"{n} GPUs" for n in GPUS)]]
    for backbone, pace in IMAGES_PER_SECOND.items():
        for objective in ("normface", "ntce", "scl"):
            shape = shape_of(backbone, objective)
            exchanged = {n: collectives(objective, n, **shape) for n in GPUS}
            name = f"{backbone}, {'ntce, nonl' if objective == 'ntce' else objective}"
            amounts = [
                sum(one.sent(n) for one in exchanged[n] if one.of == of) / 1e6
                for of in ("contrast", "gradients")
                for n in GPUS
            ]
            sent.append([name, *(f"{amount:,.3f}" if amount < 1 else f"{amount:,.0f}" for amount in amounts)])
            seconds = shape["vectors"] / pace / times_faster
            for gigabits in GIGABITS:
                shares = [
                    [efficiency(exchanged[n], n, gigabits, seconds, overlapped=during) for during in (False, True)]
                    for n in GPUS
                ]
                cells = [f"{after:.1%}, {during:.1%}" for after, during in shares]
                left.append([name, str(gigabits), f"{1000 * seconds:,.0f}", *cells])
    print(f"{markdown_table(sent)}\n\n{markdown_table(left)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times_faster", type=float, default=1.0, help="than an RTX 3090 (default 1)")
    run(parser.parse_args().times_faster)
