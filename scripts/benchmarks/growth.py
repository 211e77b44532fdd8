"""How time and memory of each command grow with images, classes, dimensions and processes.

    python -m scripts.benchmarks.growth outputs/growth
    python -m scripts.benchmarks.growth outputs/growth --only images --sizes 300 3000 30000

Each cell is a process of its own, or several, on data that are made here: images of 16 pixels in a folder and in
a Parquet file, or points on a sphere. At three sizes, each `r` times the one before, the seconds of the
processor t₁, t₂, t₃ are a + b·nᵉ, with the exponent e = log((t₃ - t₂) / (t₂ - t₁)) / log r, whatever
it costs to start. Below a second of growth from t₁ to t₂ that would be noise, and it
is log(t₃ / t₂) / log r. A row is written when it is measured, and the same command goes on.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..markdown import markdown_table

# Libraries are imported where they are used, in processes of their own: of the memory of what starts a process
# Linux counts the most as that of the process.

CLASSES, SIDE = 10, 16
THIS, MAKE, COLLAPSE = "scripts.benchmarks.growth", "make images", "neural collapse, 5 images a class"
NOISE = 1.0  # seconds of growth that an exponent needs
BAR = 1.1


# Axis "images": commands, each on a folder of n files or on the same as Parquet.
COMMANDS = {
    "evaluate, folder, first start": "evaluate --model {model} --dataset_name {folder} --split train",
    "evaluate, folder": "evaluate --model {model} --dataset_name {folder} --split train",
    "evaluate": "evaluate --model {model} --dataset_name {train} --split train",
    "evaluate --pictures": "evaluate --model {model} --dataset_name {train} --split train --pictures {out}/seen",
    "predict": "predict {folder} --model {model} --output {out}/predictions.csv",
    "calibrate": "calibrate {model} --dataset_name {test} --split test --coverage 0.9 --output_dir {out}/calibrated",
    "inspect": "inspect {train} --model {model} --output_dir {out}/inspected",
    "index": "index {folder} --model {model} --index_dir {out}/index --labels_from_folders",
    "search --evaluate": "search {out}/index --evaluate",
    "finetune, class means": "finetune --model {model} --dataset_name {train} --mode prototypes "
    "--output_dir {out}/means --overwrite",
    "train, an epoch": "train --dataset_name {train} --backbone test_resnet --image_size 16 --epochs 1 "
    "--nc_train_samples 0 --output_dir {out}/run --overwrite --report_to none",
    "train --streaming, an epoch": "train --dataset_name {train} --backbone test_resnet --image_size 16 --epochs 1 "
    "--nc_train_samples 0 --output_dir {out}/stream --overwrite --report_to none --streaming "
    "--num_train_images {size}",
}  # fmt: skip

# Axis "processes": the same on IMAGES images, by so many.
IMAGES, CPUS = 10_000, "scripts/accelerate/two_processes_cpu.yaml"
LAUNCHED = {
    "train, an epoch": "scripts/train.py --dataset_name {train} --backbone test_resnet --image_size 16 --epochs 1 "
    "--nc_train_samples 0 --output_dir {out}/together --overwrite --report_to none",
    "train --streaming, an epoch": "scripts/train.py --dataset_name {train} --backbone test_resnet --image_size 16 "
    "--epochs 1 --nc_train_samples 0 --output_dir {out}/streamed --overwrite --report_to none --streaming "
    f"--num_train_images {IMAGES}",
}  # fmt: skip


def make_images(folder: Path, n: int) -> None:
    """Of noise around a colour for each class; as files, and the same files in Parquet; and a model of them."""
    import datasets
    import numpy as np
    from PIL import Image

    rng, files, labels = np.random.default_rng(0), [], []
    colors = rng.integers(0, 200, (CLASSES, 3))
    for c in range(CLASSES):
        (folder / "files" / "train" / f"class{c}").mkdir(parents=True)
    for i in range(n):
        pixels = colors[i % CLASSES] + rng.integers(0, 56, (SIDE, SIDE, 3))
        path = folder / "files" / "train" / f"class{i % CLASSES}" / f"{i:07}.bmp"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        files.append({"bytes": path.read_bytes(), "path": path.name})
        labels.append(i % CLASSES)
    names = datasets.ClassLabel(names=[f"class{c}" for c in range(CLASSES)])
    features = datasets.Features(image=datasets.Image(), label=names)
    table = datasets.Dataset.from_dict({"image": files, "label": labels}, features)
    table.to_parquet(folder / "train" / "train.parquet")
    table.select(range(min(n, 100))).to_parquet(folder / "train" / "validation.parquet")  # a stream holds none out
    table.to_parquet(folder / "test" / "test.parquet")
    make_model(folder / "model")


def make_model(folder: Path) -> None:
    from hf_protosphere import ProtoSphereForImageClassification
    from hf_protosphere.configuration_protosphere import build_image_processor

    names = {i: f"class{i}" for i in range(CLASSES)}
    model = ProtoSphereForImageClassification.from_backbone(
        "test_resnet", pretrained=False, image_size=SIDE, id2label=names, label2id={n: i for i, n in names.items()}
    )
    model.save_pretrained(folder)
    build_image_processor(model.config).save_pretrained(folder)


# Axis "classes": what a process does with K classes of D dimensions; each returns what is timed.
def head_of(k: int, dim: int):
    from hf_protosphere import ProtoSphereForImageClassification

    return ProtoSphereForImageClassification.from_backbone(
        "test_resnet", pretrained=False, image_size=SIDE, num_labels=k, projection="linear", projection_dim=dim
    )


def training(k: int, dim: int, folder: Path) -> Callable[[], object]:
    import torch

    model = head_of(k, dim)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pixels, labels = torch.rand(256, 3, SIDE, SIDE), torch.randint(k, (256,))

    def steps() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            model(pixels, labels=labels).loss.backward()
            optimizer.step()

    return steps


def loading(k: int, dim: int, folder: Path) -> Callable[[], object]:
    from hf_protosphere import ProtoSphereForImageClassification

    head_of(k, dim).save_pretrained(folder / "loading")
    return lambda: ProtoSphereForImageClassification.from_pretrained(folder / "loading")


def predicting(k: int, dim: int, folder: Path) -> Callable[[], object]:
    import numpy as np
    from PIL import Image

    from hf_protosphere import predict

    model = head_of(k, dim).eval()
    images = [Image.fromarray(np.random.randint(0, 255, (SIDE, SIDE, 3), np.uint8)) for _ in range(1024)]
    return lambda: predict(model, images, num_workers=0, top_k=5)


def adding(k: int, dim: int, folder: Path) -> Callable[[], object]:
    import torch

    model, images = head_of(k, dim).eval(), torch.rand(100, 3, SIDE, SIDE)
    return lambda: model.add_classes({"new": images})


def collapse(k: int, dim: int, folder: Path) -> Callable[[], object]:
    import torch
    import torch.nn.functional as F

    from hf_protosphere.metrics.neural_collapse import NeuralCollapse

    generator = torch.Generator().manual_seed(0)
    prototypes = F.normalize(torch.randn(k, dim, generator=generator), dim=1)
    labels = torch.arange(k).repeat(5)
    rows = F.normalize(prototypes[labels] + 0.3 / math.sqrt(dim) * torch.randn(5 * k, dim, generator=generator), dim=1)

    def measure() -> object:
        metric = NeuralCollapse(k, dim)
        for part in torch.arange(len(rows)).split(4096):
            metric.update(rows[part], labels[part])
        return metric.compute(prototypes)

    return measure


def pictures(k: int, dim: int, folder: Path) -> Callable[[], object]:
    import torch
    import torch.nn.functional as F

    from hf_protosphere.metrics.snapshot import Snapshot
    from hf_protosphere.runs.plot import draw_snapshot
    from hf_protosphere.runs.snapshots import SNAPSHOT, save_snapshot

    generator = torch.Generator().manual_seed(0)
    prototypes = F.normalize(torch.randn(k, dim, generator=generator), dim=1)
    noise = 0.5 / math.sqrt(dim) * torch.randn(3, k, dim, generator=generator)
    embeddings, labels = F.normalize(prototypes + noise, dim=2), torch.arange(k).repeat(3)
    means, some = F.normalize(embeddings.mean(0), dim=1), embeddings[0, :4096]  # cosines of all would take minutes
    cosines = some @ prototypes.T
    own = cosines.diagonal().clone()
    other = cosines.fill_diagonal_(-1).amax(1)
    names = [f"class {i}" for i in range(k)]
    taken = Snapshot(embeddings.flatten(0, 1), labels, means, prototypes, own, other, names, "test")
    (folder / "pictures").mkdir(exist_ok=True)
    save_snapshot(taken, folder / "pictures" / SNAPSHOT)
    return lambda: draw_snapshot(folder / "pictures", folder / "pictures")


STEPS = {
    "train, 10 steps of 256": training, "load": loading, "predict 1,024 images": predicting, "add a class": adding,
    COLLAPSE: collapse, "pictures": pictures,
}  # fmt: skip


def child(step: str, k: int, dim: int, folder: Path) -> None:
    """In a process of its own: prints seconds, and MiB above those before."""
    import torch

    if step == MAKE:
        return make_images(folder, k)
    torch.manual_seed(0)
    work = STEPS[step](k, dim, folder)
    if sys.platform == "linux":  # begin anew: a higher peak of making the data would hide that of the work
        Path("/proc/self/clear_refs").write_text("5")
    before, start, used = _peak(), time.perf_counter(), sum(os.times()[:4])
    work()
    seconds, used = time.perf_counter() - start, sum(os.times()[:4]) - used
    print(json.dumps({"seconds": seconds, "cpu": used, "mib": _peak() - before}))


def _peak() -> float:
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(command: list[str], log: Path) -> dict[str, float]:
    """Seconds, of the clock and of the processor with all processes, and MiB of the largest process."""
    with log.open("w") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss / 1024}


def measure(axis: str, name: str, size: int, folder: Path) -> dict[str, float]:
    log, python = folder / "log.txt", [sys.executable, "-m"]
    if axis in ("images", "processes"):
        images, processes = (size, 1) if axis == "images" else (IMAGES, size)
        data, out = folder / f"images-{images}", folder / f"out-{size}"
        if not data.exists():
            unfinished = data.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            run([*python, THIS, str(unfinished), "--step", MAKE, str(images), "0"], log)
            unfinished.rename(data)
        out.mkdir(exist_ok=True)
        places = {
            "model": data / "model", "folder": data / "files", "train": data / "train", "test": data / "test",
            "out": out, "size": size,
        }  # fmt: skip
        words = (COMMANDS if axis == "images" else LAUNCHED)[name].format(**places).split()
        if axis == "images":
            return run([*python, "hf_protosphere.cli", *words], log)
        if processes == 1:
            return run([sys.executable, *words], log)
        launcher = [*python, "accelerate.commands.launch", "--config_file", CPUS, "--num_processes", str(processes)]
        return run([*launcher, *words], log)
    k, dim = (1000, size) if axis == "width" else (size, 256)
    run([*python, THIS, str(folder), "--step", name, str(k), str(dim)], log)
    return json.loads(log.read_text().splitlines()[-1])


def exponent(sizes: list[int], seconds: list[float]) -> float | None:
    """Of t = a + b·nᵉ at three sizes in geometric progression; where the first growth is lost in noise, of t = b·nᵉ
    at the last two; None where the second is."""
    first, second = seconds[1] - seconds[0], seconds[2] - seconds[1]
    if second < NOISE:
        return None
    growth = second / first if first >= NOISE else seconds[2] / seconds[1]
    return math.log(growth) / math.log(sizes[2] / sizes[1])


def table(axis: str, rows: list[dict], sizes: list[int]) -> str:
    header = [
        axis,
        *(f"{size:,}: s" for size in sizes),
        "exponent (bar)",
        "met",
        *(f"{size:,}: MiB" for size in sizes),
    ]
    lines = [header]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = {row["size"]: row for row in rows if row["name"] == name}
        if not {*sizes} <= {*own}:
            continue
        cpu = [own[size]["cpu"] for size in sizes]
        e = exponent(sizes, cpu)
        if axis == "processes":  # whose start is what grows
            e = math.log(cpu[2] / cpu[0]) / math.log(sizes[2] / sizes[0])
        cells = ["flat", "yes"] if e is None else [f"{e:.2f} (≤ {BAR})", "yes" if e <= BAR else "NO"]
        lines.append([name, *(f"{s:.1f}" for s in cpu), *cells, *(f"{own[size]['mib']:,.0f}" for size in sizes)])
    return markdown_table(lines)


SIZES = {
    "images": [1_000, 10_000, 100_000], "classes": [10, 1_000, 100_000], "classes of the metric": [100, 1_000, 10_000],
    "width": [16, 128, 1024], "processes": [1, 2, 4],
}  # fmt: skip
OF_AXIS = {
    "images": COMMANDS, "processes": LAUNCHED, "classes of the metric": [COLLAPSE],
    "classes": [name for name in STEPS if name != COLLAPSE],
    "width": ["train, 10 steps of 256", "predict 1,024 images", COLLAPSE],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of rows.jsonl, which is gone on with")
    parser.add_argument("--only", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--names", nargs="+", help="of what is measured, beginnings will do")
    parser.add_argument("--sizes", nargs=3, type=int, help="of one axis")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        child(asked.step[0], int(asked.step[1]), int(asked.step[2]), asked.folder)
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    # The caches of data sets are part of what is measured: here, and empty at first.
    os.environ |= {"HF_DATASETS_CACHE": str(asked.folder.absolute() / "cache"), "ACCELERATE_USE_CPU": "true"}
    path = asked.folder / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["axis"], row["name"], row["size"]) for row in rows}
    for axis in asked.only:
        sizes = asked.sizes or SIZES[axis]
        for size in sizes:
            for name in OF_AXIS[axis]:
                wanted = not asked.names or name.startswith(tuple(asked.names))
                if not wanted or (axis, name, size) in done:
                    continue
                found = measure(axis, name, size, asked.folder)
                rows.append({"axis": axis, "name": name, "size": size} | found)
                print(f"{axis} {size:,}: {name}: {found['cpu']:.1f} s, {found['mib']:,.0f} MiB", flush=True)
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        print(f"\n{table(axis, [row for row in rows if row['axis'] == axis], sizes)}\n", flush=True)
    for out in asked.folder.glob("out-*"):
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
