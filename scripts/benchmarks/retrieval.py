"""Time, memory and recall of an index and its search, up to a million images.

    python -m scripts.benchmarks.retrieval                    # 1,000 to 100,000 images
    python -m scripts.benchmarks.retrieval --images 1000000   # that size alone
    python -m scripts.benchmarks.retrieval --only storage

Embeddings are unit class means, Gaussian noise around them, normalised: of 1,000 images a class, and ten classes at
least. Every step is a process of its own: its seconds are of a clock and of the processor, its memory is what it
needs at most beyond Python and its libraries, the mapped file included.

- growth: an index is written, loaded, searched by 100 queries, brought up to date where one image of a hundred is
  new, and measured by `protosphere search --evaluate`, on all queries and on a sample of them.
  From one size to the next, time grows as their ratio to the power of the exponent.
- storage: what 8 bits for each number, or one, would save of the memory, and cost of the recall, by faiss.
"""

import argparse
import io
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_protosphere.retrieval.arguments import SearchArguments
from hf_protosphere.retrieval.image_index import INDEX, ImageIndex, IndexedImages, Origin
from hf_protosphere.retrieval.neighbours import nearest
from hf_protosphere.retrieval.search import search
from scripts.benchmarks.training import _resident

from ..markdown import markdown_table

Result = dict[str, Any]


def draw(images: int, dim: int, noise: float) -> tuple[Tensor, Tensor]:
    """(N, D) unit embeddings, `noise` away from unit class means in root mean square, and (N,) labels."""
    generator = torch.Generator().manual_seed(0)
    means = F.normalize(torch.randn(max(10, images // 1000), dim, generator=generator), dim=1)
    labels = torch.randint(len(means), (images,), generator=generator)
    rows = torch.randn(images, dim, generator=generator).mul_(noise / math.sqrt(dim)).add_(means[labels])
    return F.normalize(rows, dim=1), labels


def columns(images: int, labels: Tensor, first: int = 0) -> IndexedImages:
    times = np.arange(first, first + images)
    paths = [f"class_{label:05}/image_{first + row:08}.jpg" for row, label in enumerate(labels.tolist())]
    return IndexedImages.of(
        images, path=paths, label=[path.partition("/")[0] for path in paths], size=times, modified=times, changed=times
    )


def write(a: argparse.Namespace, images: int, folder: str) -> Result:
    embeddings, labels = draw(images, a.dim, a.noise)
    ImageIndex(embeddings, columns(images, labels), Origin("model", "fingerprint", "/images")).save(folder)
    return {}


def load(a: argparse.Namespace, images: int, folder: str) -> Result:
    assert len(ImageIndex.load(folder)) == images
    return {}


def find(a: argparse.Namespace, images: int, folder: str) -> Result:
    index = ImageIndex.load(folder)
    index.search(index.embeddings[:100], 10)
    return {}


def update(a: argparse.Namespace, images: int, folder: str) -> Result:
    """As `of_folder` does, where it finds the files of the index and one more of a hundred."""
    previous, (embeddings, labels) = ImageIndex.load(folder), draw(images // 100, a.dim, a.noise)
    new = columns(len(labels), labels, images).columns
    now = IndexedImages.of(
        images + len(labels),
        **{n: pa.concat_arrays([previous.images.columns[n], new[n]]) for n in new.schema.names},
    )
    assert (now.places_in(previous.images) >= 0).sum() == images
    ImageIndex(torch.cat([previous.embeddings, embeddings]), now, previous.origin).save(Path(folder) / "updated")
    return {}


def exact(a: argparse.Namespace, images: int, folder: str) -> Result:
    return search(SearchArguments(index=folder, evaluate=True, json=True, num_queries=images))


def sampled(a: argparse.Namespace, images: int, folder: str) -> Result:
    return search(SearchArguments(index=folder, evaluate=True, json=True))


STEPS: dict[str, Callable[[argparse.Namespace, int, str], Result]] = {
    "written": write, "loaded": load, "100 queries": find, "1 % more": update, "measured": exact,
    "measured by default": sampled,
}  # fmt: skip


def measured(step: str, a: argparse.Namespace, images: int, folder: str) -> Result:
    before, started, used = _resident(), time.perf_counter(), time.process_time()
    with redirect_stdout(io.StringIO()):
        found = STEPS[step](a, images, folder)
    seconds = {"clock": time.perf_counter() - started, "processor": time.process_time() - used}
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found | seconds | {"memory": (peak - before) / 2**20}


def growth(a: argparse.Namespace) -> None:
    rows = [["images", "step", "clock (s)", "processor (s)", "exponent", "memory (MiB)", "recall@1 (%)", "mAP (%)",
             "mAP@R (%)", "queries"]]  # fmt: skip
    last: dict[str, tuple[int, float]] = {}
    for images in a.images:
        with tempfile.TemporaryDirectory() as folder:
            for step in STEPS:
                if step == "measured" and images > a.exact:
                    continue
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found = pool.apply(measured, (step, a, images, folder))
                seconds = found["processor"]
                before, then = last.get(step, (0, 0.0))
                exponent = f"{math.log(seconds / then) / math.log(images / before):.2f}" if before else ""
                last[step] = images, seconds
                names = ("recall_at_1", "mean_average_precision", "mean_average_precision_at_r")
                quality = [f"{100 * found[name]:.2f}" if name in found else "" for name in names]
                quality.append(f"{found['num_queries']:,}" if "num_queries" in found else "")
                cells = [f"{found['clock']:,.1f}", f"{seconds:,.1f}", exponent, f"{found['memory']:,.0f}", *quality]
                rows.append([f"{images:,}", step, *cells])
                print(*rows[-1], sep=" | ", flush=True)
            size = (Path(folder) / INDEX).stat().st_size / 2**20
        print(f"{images:,} images: a file of {size:,.1f} MiB", flush=True)
    print(f"\n{markdown_table(rows, 2)}\n", flush=True)


def storage(a: argparse.Namespace) -> None:
    import faiss

    embeddings, labels = draw(a.stored, a.dim, a.noise)
    x, queries = embeddings.numpy(), slice(0, 1000)
    best, width = nearest(embeddings[queries], embeddings, 11).rows[:, 1:], int(labels.bincount().max())
    forms = {"float32": "Flat", "float16": "SQfp16", "8 bits": "SQ8", "4 bits": "SQ4",
             "1 bit": None}  # fmt: skip
    rows = [["form", "bytes an image", "seconds", "its share of the ten nearest (%)", "mAP@R (%)"]]
    for form, factory in forms.items():
        started = time.perf_counter()
        if factory:
            index, given = faiss.index_factory(a.dim, factory, faiss.METRIC_INNER_PRODUCT), x
            size = index.sa_code_size()
        else:
            index, given = faiss.IndexBinaryFlat(a.dim), np.packbits(x > 0, axis=1)
            size = given.shape[1]
        index.train(given)
        index.add(given)
        found = index.search(given[queries], width + 1)[1]
        near = [row[row != query][:width] for query, row in enumerate(found)]
        share = np.mean([len(np.intersect1d(own[:10], true)) / 10 for own, true in zip(near, best.numpy())])
        scores = []
        for query, row in enumerate(near):
            right, number = (labels[row] == labels[query]).numpy(), int((labels == labels[query]).sum()) - 1
            right = right[:number]
            scores.append((np.cumsum(right) / np.arange(1, len(right) + 1) * right).sum() / number)
        cells = [
            f"{size:,}",
            f"{time.perf_counter() - started:.1f}",
            f"{100 * share:.1f}",
            f"{100 * np.mean(scores):.2f}",
        ]
        rows.append([form, *cells])
    print(f"{a.stored:,} images, 1,000 queries\n\n{markdown_table(rows)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="N")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--noise", type=float, default=1.0, help="root mean square")
    parser.add_argument("--exact", type=int, default=100_000, help="images that are measured exactly too, at most")
    parser.add_argument("--stored", type=int, default=100_000, help="images of `storage`")
    parser.add_argument("--only", nargs="+", choices=["growth", "storage"], default=["growth", "storage"])
    arguments = parser.parse_args()
    print(
        f"D={arguments.dim}, noise {arguments.noise}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    for part in arguments.only:
        globals()[part](arguments)
