"""Speed of training beside plain PyTorch, on real images, in one run.

    python -m scripts.benchmarks.training --dataset_name cifar10
    python -m scripts.benchmarks.training --dataset_name path/to/parquet --only step data

- step: one optimiser step on a batch in memory, beside a bare loop of the same network.
- data: images a second that come augmented, beside torchvision's transforms in a DataLoader with
  two workers, which is how the examples of transformers and timm's script feed their networks; and
  beside kornia, where it is installed, on the same cached images.
- epoch: a whole epoch beside an Accelerate loop over such a DataLoader, as in the examples of
  transformers without a Trainer.
- options: the step with channels last (the default, left out everywhere else), --compile and both.
- memory: resident memory after 3 and after 20 epochs of a small run.
"""

import argparse
import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import datasets
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hf_protosphere.data.image_cache import cached_pixels
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.runs.signals import Stop
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.run import TrainingRun

from ..markdown import markdown_table

VARIANTS = ["channels_last", "compile", "both"]
NETWORKS = 5  # pairs of them: forward and backward of two equal networks differed by up to 2 %
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def our_run(a: argparse.Namespace, folder: str, **options: object) -> TrainingRun:
    defaults = {
        "dataset_name": a.dataset_name, "output_dir": folder, "backbone": a.backbone, "objective": "cross_entropy",
        "batch_size": a.batch_size, "epochs": 100, "max_train_samples": a.images, "max_eval_samples": 1000,
        "report_to": ["none"], "augmentation": "resized_crop", "overwrite": True, "nc_every": 0, "nc_train_samples": 0,
        "channels_last": False, "small_images": a.small_images,
    }  # fmt: skip
    with redirect_stdout(StringIO()):
        return TrainingRun(TrainArguments(**defaults | options))


class Plain:
    """The same network, data and optimiser with nothing but PyTorch (and Accelerate's wrappers)."""

    def __init__(self, a: argparse.Namespace, run: TrainingRun) -> None:
        self.model = timm.create_model(a.backbone, num_classes=run.images.num_labels)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
        split, size = run.images.splits["train"], run.model.config.image_size
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.5, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

        def transformed(rows: dict[str, list]) -> dict[str, list]:
            pixels = [transform(image.convert("RGB")) for image in rows["image"]]
            return {"pixel_values": pixels, "labels": rows["label"]}

        self.loader = DataLoader(
            split.with_transform(transformed), a.batch_size, shuffle=True, num_workers=2,
            drop_last=True, collate_fn=collate,
        )  # fmt: skip

    def step(self, batch: dict[str, Tensor], backward: Callable = Tensor.backward) -> None:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(batch["pixel_values"]), batch["labels"])
        backward(loss)
        self.optimizer.step()

    def epoch(self) -> None:
        accelerator = Accelerator()
        self.model, self.optimizer, loader = accelerator.prepare(self.model, self.optimizer, self.loader)
        self.model.train()
        for batch in loader:
            self.step(batch, accelerator.backward)


def collate(items: list[dict]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def interleaved(repeats: int, *functions: Callable[[], object]) -> list[list[float]]:
    """Seconds of each function, in turn and in both orders; a first round warms up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        pairs = list(zip(functions, seconds))
        for function, times in pairs if repeat % 2 else reversed(pairs):
            started = time.perf_counter()
            function()
            if repeat:
                times.append(time.perf_counter() - started)
    return seconds


def row(what: str, ours: list[float], theirs: list[float], bar: float, invert: bool = False) -> list[str]:
    """`invert`: the ratio of speeds instead of times."""
    ratio = statistics.median(b / a if invert else a / b for a, b in zip(ours, theirs))
    met = ratio >= bar if invert else ratio <= bar
    medians = (f"{statistics.median(times):.4f}" for times in (ours, theirs))
    return [what, *medians, f"{ratio:.3f} ({'≥' if invert else '≤'} {bar})", "yes" if met else "NO"]


def step_times(a: argparse.Namespace, folder: str) -> list[list[float]]:
    run = our_run(argparse.Namespace(**vars(a) | {"images": 1000}), folder)
    plain = Plain(a, run)
    batch = next(run.batches.epoch(0))
    run.optimizer_step.prepared_model.train()
    plain.model.train()
    return interleaved(a.steps, lambda: run.step([batch]), lambda: plain.step(batch))


def options_of_the_step(a: argparse.Namespace, folder: str) -> None:
    """The same network and batch with each option, in turn."""
    variants = {"channels_last": {"channels_last": True}, "compile": {"compile": True}}
    variants |= {"both": {"channels_last": True, "compile": True}}
    variants = {name: options for name, options in variants.items() if name in a.variants}
    a = argparse.Namespace(**vars(a) | {"images": 1000})
    plain, *others = (our_run(a, folder, **options) for options in ({}, *variants.values()))
    batch = next(plain.batches.epoch(0))
    for run in (plain, *others):
        run.optimizer_step.prepared_model.train()
    rows = [[f"a step of {a.batch_size} images", "seconds", "without", "ratio"]]
    for name, run in zip(variants, others):
        with_option = functools.partial(run.step, [batch])
        seconds = interleaved(a.steps, with_option, lambda: plain.step([batch]))
        medians = [statistics.median(times) for times in seconds]
        ratio = statistics.median(x / y for x, y in zip(*seconds))
        rows.append([name, *(f"{median:.4f}" for median in medians), f"{ratio:.3f}"])
    print(f"\n{markdown_table(rows)}", flush=True)


def kornia_batches(a: argparse.Namespace, run: TrainingRun) -> Iterator[Tensor]:
    import kornia.augmentation as K

    size = run.model.config.image_size
    augment = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.5, 1.0)),
        K.RandomHorizontalFlip(),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input"],
    )
    split, processor = run.images.splits["train"], build_image_processor(run.model.config)
    pixels = torch.from_numpy(cached_pixels(split, processor, 0, "train"))
    order = torch.randperm(len(pixels))
    for index in order.split(a.batch_size)[: len(order) // a.batch_size]:
        yield augment(pixels[index].float() / 255)


def consume(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def compare(a: argparse.Namespace, folder: str) -> None:
    rows = [["seconds", "ours", "plain", "ratio (bar)", "met"]]
    if "step" in a.only:
        pairs = [step_times(a, folder) for _ in range(NETWORKS)]
        ours, theirs = ([t for times in part for t in times] for part in zip(*pairs))
        rows.append(row(f"a step of {a.batch_size} images in memory", ours, theirs, 1.03))
    run = our_run(a, folder)
    plain = Plain(a, run)
    num_images = len(run.images.splits["train"])
    if "data" in a.only:
        ours, theirs = interleaved(3, lambda: consume(run.batches.epoch(0)), lambda: consume(plain.loader))
        what = f"{num_images:,} images augmented (ratio of speeds)"
        rows.append(row(what, ours, theirs, 8, invert=True))
        speeds = [("ours", ours), ("plain", theirs)]
        if importlib.util.find_spec("kornia"):
            ours, theirs = interleaved(
                3, lambda: consume(run.batches.epoch(0)), lambda: consume(kornia_batches(a, run))
            )
            speeds.append(("kornia", theirs))
        for name, seconds in speeds:
            speed = num_images / statistics.median(seconds)
            rows.append([f"images/s, {name}", f"{speed:,.0f}", "", "", ""])
    if "epoch" in a.only:

        def our_epoch() -> None:
            run.train_epoch(Stop())
            run.progress.epoch, run.progress.step_in_epoch = 0, 0
            run.progress.epoch_totals = (0.0, 0.0)

        ours, theirs = interleaved(2, our_epoch, plain.epoch)
        rows.append(row(f"an epoch of {num_images:,} images", ours, theirs, 0.9))
    print(markdown_table(rows, remarks=True), flush=True)


def memory(a: argparse.Namespace, folder: str) -> None:
    a = argparse.Namespace(**vars(a) | {"images": 2000})
    run = our_run(a, folder, nc_every=1, nc_train_samples=100, checkpoint_every=1, epochs=21)
    resident = {}
    with redirect_stdout(StringIO()):
        for epoch in range(1, 21):
            run.train_epoch(Stop())
            run.finish_epoch()
            resident[epoch] = _resident()
    growth = resident[20] / resident[3] - 1
    early, late = (f"{resident[epoch] / 2**20:,.1f}" for epoch in (3, 20))
    met = "yes" if growth < 0.01 else "NO"
    header = ["resident memory (MiB)", "epoch 3", "epoch 20", "growth (bar)", "met"]
    cells = ["a small run", early, late, f"{growth:.2%} (< 1 %)", met]
    print(f"\n{markdown_table([header, cells], remarks=True)}")


def _resident() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset_name", default="cifar10", help="as in `protosphere train`")
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--small_images", action="store_true", help="as in `protosphere train`")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, help="of options")
    parser.add_argument("--images", type=int, default=20_000, help="training images used")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each")
    parts = ["step", "options", "data", "epoch", "memory"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="default all")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    print(f"{arguments.backbone}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        if {"step", "data", "epoch"} & set(arguments.only):
            compare(arguments, f"{folder}/speed")
        if "options" in arguments.only:
            options_of_the_step(arguments, f"{folder}/options")
        if "memory" in arguments.only:
            memory(arguments, f"{folder}/memory")
