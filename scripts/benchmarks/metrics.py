"""Time and memory of all neural-collapse metrics at ImageNet's size, beside their definitions.

    python -m scripts.benchmarks.metrics              # N=1,281,167, D=2,048, K=1,000
    python -m scripts.benchmarks.metrics --samples 50000
    python -m scripts.benchmarks.metrics --keep 100   # or moments, see NeuralCollapse
    python -m scripts.benchmarks.metrics --classes 4000 --dim 256 --samples 40000

Embeddings are drawn batch by batch: unit class means on a simplex ETF, or anywhere where none exists,
Gaussian noise, normalised.
The definitions are written out plainly, an SVD of each class's D×D covariance, and timed on a few
classes, from which the time of all follows.
"""

import argparse
import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hf_protosphere.metrics.class_statistics import class_statistics
from hf_protosphere.metrics.geometry import effective_rank, intra_class_effective_rank
from hf_protosphere.metrics.neural_collapse import METRICS, NeuralCollapse
from hf_protosphere.prototypes import simplex_etf

from ..markdown import markdown_table

GIBIBYTE = 2**30


def draw(prototypes: Tensor, labels: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """(M, D) unit embeddings, `noise` away from their prototypes in root mean square."""
    scale = noise / math.sqrt(prototypes.shape[1])
    rows = torch.randn(len(labels), prototypes.shape[1], generator=generator) * scale
    return F.normalize(rows + prototypes[labels], dim=1)


def stream(arguments: argparse.Namespace, prototypes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(arguments.samples, generator=generator) % arguments.classes
    for batch in tqdm(labels.split(1024), "batches", leave=False):
        rows = draw(prototypes, batch, arguments.noise, generator)
        yield rows.to(getattr(torch, arguments.dtype)), batch


def plain_intra_class_effective_rank(embeddings: Tensor, labels: Tensor) -> float:
    """The mean over classes of exp(H(p)), p the normalised singular values of the covariance."""
    ranks = []
    for c in labels.unique():
        rows = embeddings[labels == c].double()
        covariance = torch.cov(rows.T, correction=0)  # (D, D)
        singular_values = torch.linalg.svd(covariance)[1]
        ranks.append(effective_rank(singular_values))
    return sum(ranks) / len(ranks)


def plain_nc1(embeddings: Tensor, labels: Tensor, num_classes: int) -> float:
    """tr(Σ_W Σ_B⁺)/K by D×D covariances and a pseudo-inverse."""
    rows = embeddings.double()
    means = torch.stack([rows[labels == c].mean(0) for c in range(num_classes)])
    within = torch.cov((rows - means[labels]).T, correction=0)
    between = torch.cov(means.T, correction=0)
    return torch.trace(within @ torch.linalg.pinv(between, hermitian=True)).item() / num_classes


def run(arguments: argparse.Namespace) -> None:
    n, dim, k = arguments.samples, arguments.dim, arguments.classes
    print(f"N={n:,}, D={dim:,}, K={k:,}, {arguments.dtype}, keep={arguments.keep!r}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    generator = torch.Generator().manual_seed(1)
    if k <= dim + 1:
        prototypes = simplex_etf(k, dim, generator)
    else:
        prototypes = F.normalize(torch.randn(k, dim, generator=generator), dim=1)
    metric = NeuralCollapse(k, dim, keep=arguments.keep, directory=arguments.directory)
    updating, start = 0.0, time.perf_counter()
    for embeddings, labels in stream(arguments, prototypes):
        before = time.perf_counter()
        metric.update(embeddings, labels)
        updating += time.perf_counter() - before
    drawing = time.perf_counter() - start - updating
    start = time.perf_counter()
    result = metric.compute(prototypes)
    computing = time.perf_counter() - start
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    rows = [["metric", "value", "optimum", "attained (%)"]]
    for info in METRICS:
        if info.name in result:
            attained, optimum = result["attained"][info.name], info.optimum(k, dim)
            values = f"{result[info.name]:.6g}", f"{optimum:.6g}", f"{attained:.1f}"
            rows.append([info.name, *values])
    print(f"{markdown_table(rows)}\n")
    seconds = {
        "drawing the embeddings": drawing,
        "all batches of `update`": updating,
        f"`compute(prototypes)`, {len(METRICS)} metrics": computing,
        **plain(arguments, prototypes, n // k),
    }
    rows = [[what, f"{value:,.1f}"] for what, value in seconds.items()]
    print(markdown_table([["", "seconds"], *rows]))
    kept = sum(map(len, metric.rows))
    print(f"\nKept {kept:,} embeddings.")
    print(f"Peak resident memory of metrics and drawing: {peak / GIBIBYTE:.2f} GiB")


def plain(arguments: argparse.Namespace, prototypes: Tensor, per_class: int) -> dict[str, float]:
    """Seconds of two definitions, word by word, on a slice, where our values must agree."""
    k, generator = arguments.classes, torch.Generator().manual_seed(2)
    few = torch.arange(arguments.plain_classes).repeat_interleave(per_class)
    rows = draw(prototypes, few, arguments.noise, generator)
    start = time.perf_counter()
    value = plain_intra_class_effective_rank(rows, few)
    seconds = time.perf_counter() - start
    ours = intra_class_effective_rank(class_statistics(rows, few, arguments.plain_classes))
    assert math.isclose(value, ours, rel_tol=1e-6), (value, ours)
    two_each = torch.arange(k).repeat_interleave(2)
    rows = draw(prototypes, two_each, arguments.noise, generator)
    start = time.perf_counter()
    plain_nc1(rows, two_each, k)
    return {
        f"plain intra-class rank, {arguments.plain_classes} classes": seconds,
        f"plain intra-class rank, extrapolated to {k:,}": seconds / arguments.plain_classes * k,
        "plain NC1 variability, 2 samples per class": time.perf_counter() - start,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=1_281_167, help="N")
    parser.add_argument("--dim", type=int, default=2048, help="D")
    parser.add_argument("--classes", type=int, default=1000, help="K")
    parser.add_argument("--noise", type=float, default=0.3, help="root mean square")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--keep", default="embeddings", help="embeddings, moments or a number")
    parser.add_argument("--directory", help="of the temporary file")
    parser.add_argument("--plain_classes", type=int, default=4, help="for the plain definitions")
    arguments = parser.parse_args()
    if arguments.keep.isdigit():
        arguments.keep = int(arguments.keep)
    run(arguments)
