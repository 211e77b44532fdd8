"""Speed and memory of predictions, in one run.

    python -m scripts.benchmarks.predict --dataset_name path/to/photographs --backbone efficientnet_lite0
    python -m scripts.benchmarks.predict --dataset_name path/to/photographs --only memory

- speed: `hf_protosphere.predict` beside transformers' pipeline of the same model, on the same files,
  with the same batch size; as it comes, and with as many processes that load images.
- memory: resident memory while a table of many links to one small image is written, by a network
  that takes no time: what is left is what the number of images costs.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from transformers import pipeline

import hf_protosphere
from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.configuration_protosphere import build_image_processor
from hf_protosphere.inference import predict
from hf_protosphere.inference.arguments import PredictArguments
from scripts.benchmarks.training import _resident

from ..markdown import markdown_table


def photographs(a: argparse.Namespace, folder: Path) -> list[str]:
    split = datasets.load_dataset(a.dataset_name, split=f"{a.split}[:{a.images}]")
    column = next(name for name, kind in split.features.items() if isinstance(kind, datasets.Image))
    for number, value in enumerate(split.cast_column(column, datasets.Image(decode=False))[column]):
        (folder / f"{number:06}.jpg").write_bytes(value["bytes"])
    return sorted(map(str, folder.iterdir()))


def speed(a: argparse.Namespace, folder: Path) -> None:
    files = photographs(a, folder)
    model = ProtoSphereForImageClassification.from_backbone(a.backbone, pretrained=False, num_labels=10)
    model.eval()
    processor = build_image_processor(model.config)
    classify = pipeline("image-classification", model=model, image_processor=processor)
    options = {"batch_size": a.batch_size, "num_workers": a.num_workers}
    functions = {
        "hf_protosphere.predict": lambda: hf_protosphere.predict(model, files, **options),
        "pipeline": lambda: classify(files, batch_size=a.batch_size),
        f"pipeline, {a.num_workers} processes": lambda: classify(files, **options),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for repeat in range(a.repeats + 1):  # the first warms up
        for name in functions if repeat % 2 else reversed(functions):
            started, used = time.perf_counter(), sum(os.times()[:4])
            functions[name]()
            times[name].append((time.perf_counter() - started, sum(os.times()[:4]) - used))
    rows = [["", "images/s", "its time over ours (bar)", "met", "of the processor"]]
    for name, measured in times.items():
        pairs = [*zip(measured, times["hf_protosphere.predict"])][1:]
        clock, processor = (statistics.median(t[i] / own[i] for t, own in pairs) for i in (0, 1))
        speed = len(files) / statistics.median(seconds for seconds, _ in measured[1:])
        bar = [f"{clock:.2f} (≥ 1.5)", "yes" if clock >= 1.5 else "NO"] if name[0] == "p" else ["1", ""]
        rows.append([name, f"{speed:,.1f}", *bar, f"{processor:.2f}"])
    print(
        f"{a.backbone}, {model.config.image_size} px, {len(files):,} photographs, batches of {a.batch_size}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{markdown_table(rows)}",
        flush=True,
    )


def memory(a: argparse.Namespace, folder: Path) -> None:
    Image.new("RGB", (32, 32), "teal").save(folder / "image.png")
    for number in range(a.links):
        (folder / f"{number:07}.png").symlink_to("image.png")
    model = ProtoSphereForImageClassification.from_backbone(
        "test_resnet", pretrained=False, image_size=32, num_labels=10
    )
    model.save_pretrained(folder / "model")
    build_image_processor(model.config).save_pretrained(folder / "model")
    seen: list[int] = []

    def answers(model: Any, pixels: Tensor, top_k: int) -> list[dict[str, Any]]:
        seen.append(_resident())
        return [{"class": "0", "score": 1.0, "cosine": 1.0}] * len(pixels)

    predict._answers = answers
    started = time.perf_counter()
    predict.predict_into_file(
        PredictArguments(
            model=str(folder / "model"), images=[str(folder)], output=str(folder / "out.csv"),
            batch_size=a.batch_size, num_workers=a.num_workers,
        )
    )  # fmt: skip
    speed = a.links / (time.perf_counter() - started)
    early, late = seen[len(seen) // 10], max(seen)
    growth, count = late / early - 1, a.links // 10
    header = ["resident memory (MiB)", f"after {count:,}", "at most", "growth (bar)", "met"]
    cells = [f"{a.links:,} links, {speed:,.0f} a second"] + [f"{m / 2**20:,.1f}" for m in (early, late)]
    cells += [f"{growth:.2%} (< 5 %)", "yes" if growth < 0.05 else "NO"]
    print(f"\n{markdown_table([header, cells], remarks=True)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset_name", help="a data set of images")
    parser.add_argument("--split", default="train")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=512, help="that are timed")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--links", type=int, default=50_000)
    parser.add_argument("--only", nargs="+", choices=["speed", "memory"], default=["speed", "memory"])
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in arguments.only:
            speed(arguments, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        if "memory" in arguments.only:
            memory(arguments, Path(folder))
