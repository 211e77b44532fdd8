"""Training images that are read as they come, from the Hub or the disk, instead of downloaded."""

import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
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


def _rows(stream: Iterable[dict[str, Any]], role: str = "train") -> Iterator[dict[str, Any]]:
    damaged = ValueError, OSError, pa.ArrowException
    with errors_in_one_line(f"the {role} split cannot be read", kind=DataError, of=damaged):
        yield from stream


class StreamedBatches:
    """Augmented batches of a stream, on the device; shuffled by shards and in a buffer.

    Every process reads its own part. Order and augmentation follow from seed and epoch for the same numbers of
    processes and workers. An epoch has a fixed number of batches: no image comes twice in them before all of the part
    have come that fill a whole batch; a shorter part then begins anew. `position`, of values for JSON, is that of its
    readers: `epoch` goes on there, and reads nothing again but the buffer and what is before it in its shards."""

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
        own = shards = stream.num_shards
        own //= 1 if shards % processes else processes
        readers = max(1, min(workers, own))
        # Of shards alone: `_Augmented` has a buffer that can be resumed. Few are open at once, as they are read again.
        stream = stream.shuffle(options.seed, buffer_size=1, max_buffer_input_shards=min(10, 1 + own // readers // 4))
        part = split_dataset_by_node(stream, accelerator.process_index, processes)
        self.num_workers, self.position = min(workers, own), {}
        each = "all of them, of which it keeps its share," if shards % processes else own
        words = f"streaming {shards} shard(s), {each} for each of {processes} process(es), "
        announce(f"{words}{own // readers} or more for each of {readers} reader(s)", sys.stdout)
        views = RandomViews(TrainTransform(config, options), views=options.views, seed=options.seed)
        self.dataset = _Augmented(part, views, accelerator.process_index, options)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """Batches {"pixel_values": (M[, V], 3, S, S) float32, "labels": (M,)}, without the first `skip`."""
        here = {"epoch": epoch, "batches": skip, "num_workers": self.num_workers}
        if not skip or not here.items() <= self.position.items():  # then what is skipped is read
            self.position = here | {"batches": 0, "pass": 0, "next": 0, "rest": 0, "workers": {}}
        done = self.position["batches"]
        return itertools.islice(self._endless(), skip - done, self.batches_per_epoch - done)

    def _endless(self) -> Iterator[dict[str, Tensor]]:
        at, size, device = self.position, self.batch_size, self.accelerator.device
        while True:
            pinned, own = device.type == "cuda", torch.Generator()  # not the training's: resumed, it would draw again
            options = {"num_workers": self.num_workers, "collate_fn": tuple, "pin_memory": pinned, "generator": own}
            ends = {}  # of each worker what filled no batch: together it fills more
            for batch, worker, state in DataLoader(self.dataset.at(at), None, **options):
                if batch and len(batch["labels"]) < size:
                    ends[worker] = batch
                elif batch:
                    at["workers"][str(worker)] = state
                    at |= {"batches": at["batches"] + 1, "next": (worker + 1) % max(1, self.num_workers)}
                    yield {name: x.to(device, non_blocking=True) for name, x in batch.items()}
            names = next(iter(ends.values()), ())
            joined = {name: torch.cat([ends[worker][name] for worker in sorted(ends)]) for name in names}
            more = len(joined.get("labels", ())) // size
            if not more and not at["workers"]:
                words = f"less than {size} images, a whole batch, are the part of one: give a smaller --batch_size"
                raise DataError(f"--streaming with {self.accelerator.num_processes} processes: {words}.")
            for i in range(at["rest"], more):
                at |= {"batches": at["batches"] + 1, "rest": i + 1}
                yield {name: x[i * size : (i + 1) * size].to(device) for name, x in joined.items()}
            at |= {"pass": at["pass"] + 1, "next": 0, "rest": 0, "workers": {}}


class _Augmented(TorchIterableDataset):
    """Each worker's batches, the last of which may be smaller, as (batch, worker, where it then is)."""

    def __init__(self, stream: IterableDataset, views: RandomViews, process: int, options: BatchOptions) -> None:
        self.stream, self.views, self.process, self.options = stream, views, process, options

    def at(self, position: dict[str, Any]) -> "_Augmented":
        self.position = position
        self.views.set_epoch(position["epoch"])
        self.stream.set_epoch(position["epoch"] + 2**20 * position["pass"])  # shuffled anew
        return self

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], int, dict[str, Any]]]:
        options, info = self.options, get_worker_info()
        worker = info.id if info else 0
        if worker < self.position["next"]:  # it is another's turn
            yield {}, worker, {}
        at = self.position["workers"].get(str(worker), {"stream": None, "buffer": 0, "taken": 0, "images": 0})
        own = self.process, worker, self.position["pass"]
        logging.getLogger("datasets.iterable_dataset").setLevel(logging.ERROR)  # it warns of its buffer, of one image
        self.stream.load_state_dict(at["stream"])
        rows, batch, images = _rows(self.stream), [], at["images"]
        while buffer := [*itertools.islice(rows, options.shuffle_buffer)]:
            seed = hash((self.views.seed, self.views.epoch, *own, at["buffer"])) % 2**63
            order = np.random.default_rng(seed).permutation(len(buffer))
            for taken in range(at["taken"], len(buffer)):
                for image, label in decoded([buffer[order[taken]]], options.on_bad_image == "skip"):
                    batch.append({"pixel_values": self.views(image, hash((*own, images))), "labels": label})
                    images += 1
                if len(batch) == options.batch_size:
                    yield collate(batch), worker, at | {"taken": taken + 1, "images": images}
                    batch = []
            at = {"stream": self.stream.state_dict(), "buffer": at["buffer"] + 1, "taken": 0, "images": images}
        if batch:
            yield collate(batch), worker, {}


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


def decoded(
    stream: Iterable[dict[str, Any]], skip_bad: bool, side: int | None = None
) -> Iterator[tuple[PILImage.Image, int]]:
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
