"""Time, memory and recall of an index and its search, up to a million images.

    python -m scripts.benchmarks.retrieval                    # 1,000 to 100,000 images
    python -m scripts.benchmarks.retrieval --images 1000000   # that size alone
    python -m scripts.benchmarks.retrieval --only approximate --stored 1000000

Embeddings are unit class means, Gaussian noise around them, normalised: of 1,000 images a class, and ten classes at
least. Every step is a process of its own: its seconds are of a clock and of the processor, its memory is what it
needs at most beyond Python and its libraries, the mapped file included.

- growth: an index is written, loaded, searched by 100 queries, brought up to date where one image of a hundred is
  new, and measured by `protosphere search --evaluate`, on all queries and on a sample of them.
  From one size to the next, time grows as their ratio to the power of the exponent.
- approximate: what faiss makes of the file of an index: what 8 bits for each number, or one, save of the memory, what
  cells save of the time, and what both cost of the recall.
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
from datasets import load_dataset
from torch import Tensor

from hf_protosphere.retrieval.arguments import SearchArguments
from hf_protosphere.retrieval.image_index import INDEX, ImageIndex, IndexedImages, Origin
from hf_protosphere.retrieval.neighbours import nearest
from hf_protosphere.retrieval.search import search
from scripts.benchmarks.training import _resident

from ..markdown import markdown_table

Result = dict[str, Any]
CELLS = 32  # looked at, of those that `approximate` makes


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


def approximate(a: argparse.Namespace) -> None:
    """By faiss on the file of an index, as 🤗 datasets builds it."""
    import faiss

    embeddings, labels = draw(a.stored, a.dim, a.noise)
    chosen = slice(0, 1000)
    queries, width = embeddings[chosen].numpy(), int(labels.bincount().max())
    best = nearest(embeddings[chosen], embeddings, 11).rows[:, 1:]
    cells = 2 ** round(math.log2(4 * math.sqrt(a.stored)))
    probed = {of: f"{of}, {CELLS} of {cells:,} cells" for of in ("float32", "8 bits")}
    forms = {"float32": "Flat", "float16": "SQfp16", "8 bits": "SQ8", "4 bits": "SQ4", "1 bit": None,
             probed["float32"]: f"IVF{cells},Flat", probed["8 bits"]: f"IVF{cells},SQ8"}  # fmt: skip
    rows = [["form", "bytes an image", "made (s)", "a query (ms)", "of the ten nearest (%)", "mAP@R (%)"]]
    with tempfile.TemporaryDirectory() as folder:
        ImageIndex(embeddings, columns(a.stored, labels), Origin("model", "fingerprint", "/images")).save(folder)
        images = load_dataset(folder, split="train", cache_dir=f"{folder}/cache")
        for form, factory in forms.items():
            started, given = time.perf_counter(), queries
            if factory:
                options = {"string_factory": factory, "train_size": 100_000, "metric_type": faiss.METRIC_INNER_PRODUCT}
                index = images.add_faiss_index("embedding", index_name=form, **options).get_index(form).faiss_index
                if form in probed.values():
                    index.nprobe = CELLS
                size = index.sa_code_size()
            else:
                index, given = faiss.IndexBinaryFlat(a.dim), np.packbits(queries > 0, axis=1)
                index.add(np.packbits(embeddings.numpy() > 0, axis=1))
                size = given.shape[1]
            made = time.perf_counter() - started
            started = time.perf_counter()
            index.search(given, 11)
            asked = time.perf_counter() - started
            near = [row[row != query][:width] for query, row in enumerate(index.search(given, width + 1)[1])]
            share = np.mean([len(np.intersect1d(own[:10], true)) / 10 for own, true in zip(near, best.numpy())])
            scores = []
            for query, row in enumerate(near):
                right, number = (labels[row] == labels[query]).numpy(), int((labels == labels[query]).sum()) - 1
                right = right[:number]
                scores.append((np.cumsum(right) / np.arange(1, len(right) + 1) * right).sum() / number)
            cells_of_row = [f"{made:.1f}", f"{asked:.2f}", f"{100 * share:.1f}", f"{100 * np.mean(scores):.2f}"]
            rows.append([form, f"{size:,}", *cells_of_row])
            print(*rows[-1], sep=" | ", flush=True)
            if factory:
                images.drop_index(form)
    print(f"\n{a.stored:,} images, 1,000 queries\n\n{markdown_table(rows)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="N")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--noise", type=float, default=1.0, help="root mean square")
    parser.add_argument("--exact", type=int, default=100_000, help="images that are measured exactly too, at most")
    parser.add_argument("--stored", type=int, default=100_000, help="images of `approximate`")
    parser.add_argument("--only", nargs="+", choices=["growth", "approximate"], default=["growth", "approximate"])
    arguments = parser.parse_args()
    print(
        f"D={arguments.dim}, noise {arguments.noise}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    for part in arguments.only:
        globals()[part](arguments)
