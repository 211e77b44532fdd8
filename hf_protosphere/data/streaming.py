"""Training images that are read as they come, from the Hub or the disk, instead of downloaded."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from accelerate import Accelerator
from datasets import Dataset, Image, IterableDataset
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetsError
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import BaseImageProcessor

from ..configuration_protosphere import ProtoSphereConfig
from ..errors import DataError, errors_in_one_line
from ..rgb import pixels_and_labels, shorter_side
from ..runs.processes import announce
from .arguments import BatchOptions
from .pixels import read
from .transforms import RandomViews, TrainTransform, collate


def stream_length(stream: IterableDataset, split: str) -> int:
    """The images of a stream, as its data set's card says."""
    splits = stream.info.splits or {}
    if split not in splits or not splits[split].num_examples:
        raise DataError(f"--streaming: the data set does not say how long {split!r} is: give --num_train_images.")
    return splits[split].num_examples


def downloaded(stream: IterableDataset, role: str) -> Dataset:
    """All of a stream, in the cache of datasets, where the next run finds it."""
    features, generated = stream.features, {"stream": stream, "role": role}
    try:
        dataset = Dataset.from_generator(_rows, features=features, gen_kwargs=generated)
    except DatasetsError as error:
        raise DataError(f"{error.__cause__ or error}") from error
    if len(dataset) == 0:
        raise DataError(f"the {role} split of the data set holds no images.")
    return dataset.cast_column("image", Image())


def _rows(stream: IterableDataset, role: str = "train") -> Iterator[dict[str, Any]]:
    damaged = ValueError, OSError, pa.ArrowException
    with errors_in_one_line(f"the {role} split cannot be read", kind=DataError, of=damaged):
        yield from stream


class StreamedBatches:
    """Augmented batches of a stream, on the device; shuffled by shards and in a buffer.

    Every process reads its own part. Order and augmentation follow from seed and epoch for the same
    numbers of processes and workers. An epoch has a fixed number of batches: a process whose part
    is shorter begins it anew, and resuming in the middle reads what it skips."""

    is_cached = False

    def __init__(
        self, stream: IterableDataset, config: ProtoSphereConfig, options: BatchOptions,
        accelerator: Accelerator, batches_per_epoch: int,
    ) -> None:  # fmt: skip
        self.batch_size, self.accelerator = options.batch_size, accelerator
        self.batches_per_epoch = batches_per_epoch  # of this process
        processes, workers = accelerator.num_processes, options.num_workers
        if stream.num_shards < processes * max(1, workers):
            stream = stream.reshard()  # Parquet: row groups instead of files
        stream = stream.shuffle(options.seed, buffer_size=options.shuffle_buffer)
        part = split_dataset_by_node(stream, accelerator.process_index, processes)
        self.num_workers = min(workers, part.num_shards)
        shards, own, readers = stream.num_shards, part.num_shards, max(1, self.num_workers)
        each = "all of them, of which it keeps its share," if shards % processes else own
        words = f"streaming {shards} shard(s), {each} for each of {processes} process(es), "
        announce(f"{words}{own // readers} or more for each of {readers} reader(s)", sys.stdout)
        views = RandomViews(TrainTransform(config, options), views=options.views, seed=options.seed)
        skip_bad = options.on_bad_image == "skip"
        self.dataset = _Augmented(part, views, accelerator.process_index, skip_bad)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """Batches {"pixel_values": (M[, V], 3, S, S) float32, "labels": (M,)}, without the first `skip`."""
        return itertools.islice(self._endless(epoch), skip, self.batches_per_epoch)

    def _endless(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        device = self.accelerator.device
        for passes in itertools.count():
            self.dataset.set_epoch(epoch, passes)
            loader = DataLoader(
                self.dataset, self.batch_size, num_workers=self.num_workers, collate_fn=collate,
                drop_last=True, pin_memory=device.type == "cuda",
            )  # fmt: skip
            empty = True
            for batch in loader:
                empty = False
                yield {name: x.to(device, non_blocking=True) for name, x in batch.items()}
            if empty:
                raise DataError(
                    f"--streaming: no worker of process {self.accelerator.process_index} finds {self.batch_size} "
                    "images, a whole batch, in its part: give fewer --num_workers or a smaller --batch_size."
                )


class _Augmented(TorchIterableDataset):
    def __init__(self, stream: IterableDataset, views: RandomViews, process: int, skip_bad: bool) -> None:
        self.stream, self.views, self.process, self.skip_bad = stream, views, process, skip_bad
        self.passes = 0

    def set_epoch(self, epoch: int, passes: int) -> None:
        self.views.set_epoch(epoch)
        self.passes = passes
        self.stream.set_epoch(epoch + 2**20 * passes)  # shuffled anew

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker = info.id if info else 0
        for i, (image, label) in enumerate(decoded(self.stream, self.skip_bad)):
            yield {"pixel_values": self.views(image, hash((self.process, worker, self.passes, i))), "labels": label}


class EvaluationStream(TorchIterableDataset):
    """A stream's images under the saved image processor, in the stream's own order."""

    def __init__(self, stream: IterableDataset, processor: BaseImageProcessor, skip_bad: bool = False) -> None:
        self.stream, self.processor, self.skip_bad = stream, processor, skip_bad

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = decoded(self.stream, self.skip_bad, shorter_side(self.processor))
        for first in rows:  # in groups: one by one, processors are slow
            group = itertools.chain([first], itertools.islice(rows, 63))
            for pixels, label in zip(*pixels_and_labels(group, self.processor)):
                yield {"pixel_values": pixels, "labels": label}


def decoded(stream: IterableDataset, skip_bad: bool, side: int | None = None) -> Iterator[tuple[PILImage.Image, int]]:
    """Images in RGB, as `read` makes them for a side, and labels."""
    for row in _rows(stream):
        try:
            image = read(row["image"], side)
        except DataError as error:
            if skip_bad:
                continue
            raise DataError(f"{error}. Leave such images out by --on_bad_image skip.") from error
        if row["label"] is None or row["label"] < 0:
            raise DataError(f"a streamed image has the label {row['label']} (hidden?): train on a split with labels.")
        yield image, row["label"]
