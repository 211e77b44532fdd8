"""Time and memory of the losses, forward and backward, beside their peers, in one run.

    python -m scripts.benchmarks.losses            # minutes on two cores
    python -m scripts.benchmarks.losses --quick    # the sizes of the bars only
    python -m scripts.benchmarks.losses --device cuda

Times are medians of interleaved repetitions in one process; memory is each method's own process:
the peak above the inputs and their gradients. Peers: `F.cross_entropy` on the same cosines (the
floor), NTCE and SupCon written from their formulas, once literally and once as lean as torch's own
functions allow, and pytorch-metric-learning where it is installed.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_protosphere import contrast
from hf_protosphere.losses import nonl_loss, normface_loss, ntce_loss, supcon_loss

from ..markdown import markdown_table

TEMPERATURE = 0.1
MEBIBYTE = 2**20


def cross_entropy(u: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """The floor: what a plain softmax classifier of the same shape costs."""
    return F.cross_entropy(F.normalize(u, dim=1) @ F.normalize(w, dim=1).T / TEMPERATURE, y)


def three_products(u: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Nothing but the matrix products that every loss with (M, K) similarities needs."""
    return (u @ w.T).sum()


def textbook_ntce(u: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """mean_i −log( exp(w_yi·u_i / t) / Σ_j exp(w_yi·u_j / t) ), an M×M matrix, as it is written."""
    anchors = F.normalize(w, dim=1)[y]  # (M, D)
    similarities = anchors @ F.normalize(u, dim=1).T / TEMPERATURE  # (M, M)
    similarities = similarities - similarities.amax(1, keepdim=True).detach()
    exponentials = similarities.exp()
    return -(similarities.diagonal() - exponentials.sum(1).log()).mean()


def lean_ntce(u: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """The same M×M matrix, through torch's fused cross-entropy."""
    anchors = F.normalize(w, dim=1)[y]
    similarities = anchors @ F.normalize(u, dim=1).T / TEMPERATURE
    return F.cross_entropy(similarities, torch.arange(len(y), device=y.device))


def masked_supcon(views: Tensor, y: Tensor) -> Tensor:
    """Khosla et al.'s equation 2, sums over P(i) and A(i) as N×N masks of zeros and ones."""
    u = F.normalize(views.flatten(0, 1), dim=1)  # (N, D)
    labels = y.repeat_interleave(views.shape[1])
    others = 1 - torch.eye(len(u), device=u.device, dtype=u.dtype)
    positives = (labels[:, None] == labels).to(u.dtype) * others
    similarities = u @ u.T / TEMPERATURE
    similarities = similarities - similarities.amax(1, keepdim=True).detach()
    denominator = (similarities.exp() * others).sum(1, keepdim=True)
    log_probability = similarities - denominator.log()
    return -((positives * log_probability).sum(1) / positives.sum(1)).mean()


def lean_supcon(views: Tensor, y: Tensor) -> Tensor:
    """The same N×N masks, boolean, and one log-sum-exp."""
    u = F.normalize(views.flatten(0, 1), dim=1)
    labels = y.repeat_interleave(views.shape[1])
    others = ~torch.eye(len(u), dtype=torch.bool, device=u.device)
    positives = (labels[:, None] == labels) & others
    similarities = u @ u.T / TEMPERATURE
    log_denominator = similarities.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
    log_probability = (similarities - log_denominator) * positives
    return -(log_probability.sum(1) / positives.sum(1)).mean()


def plain(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss with all similarities kept, whatever their number."""

    def call(*tensors: Tensor) -> Tensor:
        limit, contrast.MAX_SIMILARITIES = contrast.MAX_SIMILARITIES, sys.maxsize
        try:
            return loss(*tensors, TEMPERATURE)
        finally:
            contrast.MAX_SIMILARITIES = limit

    return call


def chunked(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss with similarities recomputed chunk by chunk, in chunks of the default size."""

    def call(first: Tensor, *rest: Tensor) -> Tensor:
        columns = first.shape[0] * (first.shape[1] if first.dim() == 3 else 1)
        size = max(1, contrast.CHUNK_SIMILARITIES // columns)
        return loss(first, *rest, TEMPERATURE, chunk_size=size)

    return call


PROTOTYPE_METHODS: dict[str, Callable[..., Tensor]] = {
    "matrix products alone": three_products,
    "cross-entropy": cross_entropy,
    "NormFace": plain(normface_loss),
    "NTCE": plain(ntce_loss),
    "NONL": plain(nonl_loss),
    "NormFace, chunked": chunked(normface_loss),
    "NTCE, chunked": chunked(ntce_loss),
    "NONL, chunked": chunked(nonl_loss),
    "NTCE, textbook MxM": textbook_ntce,
    "NTCE, lean MxM": lean_ntce,
}
SUPCON_METHODS: dict[str, Callable[..., Tensor]] = {
    "SupCon": lambda views, y: supcon_loss(views, y, TEMPERATURE),
    "SupCon, masked NxN": masked_supcon,
    "SupCon, lean masked NxN": lean_supcon,
}

try:
    from pytorch_metric_learning.losses import NormalizedSoftmaxLoss, SupConLoss
except ImportError:
    print("pytorch-metric-learning is not installed: its rows are left out.", file=sys.stderr)
else:

    def metric_learning_softmax(u: Tensor, w: Tensor, y: Tensor) -> Tensor:
        loss = NormalizedSoftmaxLoss(len(w), w.shape[1], temperature=TEMPERATURE)
        # Its prototypes are columns, and its own parameter.
        del loss.W
        loss.W = w.T
        return loss(u, y)

    def metric_learning_supcon(views: Tensor, y: Tensor) -> Tensor:
        labels = y.repeat_interleave(views.shape[1])
        return SupConLoss(temperature=TEMPERATURE)(views.flatten(0, 1), labels)

    PROTOTYPE_METHODS["pytorch-metric-learning softmax"] = metric_learning_softmax
    SUPCON_METHODS["pytorch-metric-learning SupCon"] = metric_learning_supcon

# (M, K, D) with prototypes; (M, views, K, D) for SupCon, K classes.
BAR_SIZES = [(4096, 1000, 512), (8192, 1000, 2048), (4096, 10_000, 512), (4096, 2, 1000, 128)]
MORE_SIZES = [(1024, 100, 512), (256, 1000, 512), (4096, 50_000, 512), (1024, 2, 100, 128)]
CUDA_SIZES = [(16_384, 1000, 2048), (16_384, 100_000, 2048), (8192, 2, 1000, 128)]
# Measured method, its peer, the size, and the largest ratios of time and memory allowed, if any.
BARS = [
    ("NTCE", "cross-entropy", BAR_SIZES[0], 1.10, None),
    ("NONL", "cross-entropy", BAR_SIZES[0], 1.10, None),
    ("NTCE", "NTCE, textbook MxM", BAR_SIZES[1], 0.10, None),
    ("matrix products alone", "NTCE, textbook MxM", BAR_SIZES[1], None, None),
    ("NTCE", "NTCE, lean MxM", BAR_SIZES[1], None, None),
    ("NTCE, chunked", "NTCE", BAR_SIZES[2], 1.5, 0.15),
    ("SupCon", "SupCon, masked NxN", BAR_SIZES[3], 0.18, 0.09),
    ("SupCon", "SupCon, lean masked NxN", BAR_SIZES[3], None, None),
]


def methods_for(size: tuple[int, ...]) -> dict[str, Callable[..., Tensor]]:
    if len(size) == 4:
        return SUPCON_METHODS
    too_large = {"NTCE, textbook MxM", "NTCE, lean MxM"} if size[0] > 8192 or size[1] > 2000 else set()
    return {name: f for name, f in PROTOTYPE_METHODS.items() if name not in too_large}


def make_inputs(size: tuple[int, ...], device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        tensor = torch.randn(*shape, generator=generator, device=device).to(dtype)
        return tensor.requires_grad_()

    labels = torch.randint(0, size[-2], size[:1], generator=generator, device=device)
    if len(size) == 4:
        return [draw(size[0], size[1], size[3]), labels]
    return [draw(size[0], size[2]), draw(size[1], size[2]), labels]


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_times(size: tuple[int, ...], device: str, dtype: torch.dtype, repeats: int) -> dict[str, list[float]]:
    inputs, methods = make_inputs(size, device, dtype), methods_for(size)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repetition in range(repeats + 1):
        for name, method in methods.items():
            synchronize(device)
            started = time.perf_counter()
            method(*inputs).backward()
            synchronize(device)
            if repetition:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
            for tensor in inputs:
                tensor.grad = None
    return seconds


def measure_memory(name: str, size: tuple[int, ...], device: str, dtype: torch.dtype) -> int:
    """Peak bytes above the inputs and their gradients, of this process's next forward, backward."""
    inputs = make_inputs(size, device, dtype)
    method = methods_for(size)[name]
    kept = sum(x.numel() * x.element_size() for x in inputs if x.requires_grad)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        method(*inputs).backward()
        return torch.cuda.max_memory_allocated() - before - kept
    small = make_inputs((8, *size[1:-2], 4, 8), device, dtype)
    method(*small).backward()  # libraries load and thread pools start
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is counted from here
    before = _status("VmRSS")
    method(*inputs).backward()
    return _status("VmHWM") - before - kept


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def memory_in_own_process(name: str, size: tuple[int, ...], device: str, dtype: str) -> int:
    request = json.dumps([name, size, device, dtype])
    command = [sys.executable, "-m", "scripts.benchmarks.losses", "--measure_memory", request]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(device: str, quick: bool, repeats: int) -> None:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    sizes = CUDA_SIZES if device == "cuda" else BAR_SIZES + ([] if quick else MORE_SIZES)
    results: dict[tuple[str, tuple[int, ...]], tuple[list[float], int]] = {}
    for dtype in ("bfloat16", "float32") if device == "cuda" else ("float32",):
        for size in sizes:
            what = ("M", "K", "D") if len(size) == 3 else ("M", "views", "K", "D")
            label = ", ".join(f"{n}={v:,}" for n, v in zip(what, size))
            rows = [[f"{label}, {dtype}", "time (ms)", "memory (MiB)"]]
            times = measure_times(size, device, getattr(torch, dtype), repeats)
            for method, seconds in times.items():
                peak = memory_in_own_process(method, size, device, dtype)
                results[method, size] = seconds, peak
                median = statistics.median(seconds)
                rows.append([method, f"{median * 1e3:,.1f}", f"{peak / MEBIBYTE:,.0f}"])
            print(f"{markdown_table(rows)}\n", flush=True)
    if device == "cpu":
        print_bars(results)


def print_bars(results: dict) -> None:
    table = [["bar", "at", "time ratio", "memory ratio", "met"]]
    for method, peer, size, time_bar, memory_bar in BARS:
        (ours, our_peak), (theirs, their_peak) = results[method, size], results[peer, size]
        # Pair by pair: the machine's speed drifts.
        time_ratio = statistics.median(a / b for a, b in zip(ours, theirs))
        rows = [(time_ratio, time_bar), (our_peak / their_peak, memory_bar)]
        cells = [f"{ratio:.3f}" + (f" (≤ {bar})" if bar else "") for ratio, bar in rows]
        bars = [ratio <= bar for ratio, bar in rows if bar is not None]
        met = "" if not bars else "yes" if all(bars) else "NO"
        table.append([f"{method} / {peer}", str(size), *cells, met])
    print(markdown_table(table, text_columns=2, remarks=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="only the sizes of the bars")
    parser.add_argument("--repeats", type=int, default=7, help="timed repetitions (default 7)")
    parser.add_argument("--measure_memory", help=argparse.SUPPRESS)  # of one method, as JSON
    arguments = parser.parse_args()
    if arguments.measure_memory:
        method, size, device, dtype = json.loads(arguments.measure_memory)
        print(measure_memory(method, tuple(size), device, getattr(torch, dtype)))
    else:
        run(arguments.device, arguments.quick, arguments.repeats)
