"""From splits to batches: decoded once where there is room, else by worker processes."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor

from ..configuration_protosphere import ProtoSphereConfig, build_image_processor
from ..errors import ArgumentError
from ..runs.processes import main_process_first
from .arguments import BatchOptions
from .augmentation import BatchAugmentation
from .image_cache import CachedImages, FeatureSplit, cache_path, cached_pixels
from .labels import labels_of
from .samplers import ClassBalancedBatches, EpochSampler
from .streaming import EvaluationStream
from .transforms import EvaluationImages, TrainingImages, TrainTransform, collate


def evaluation_loader(
    split: Dataset | IterableDataset | FeatureSplit, processor: BaseImageProcessor, batch_size: int, num_workers: int,
    accelerator: Accelerator, *, description: str = "", cache: bool = False, skip_bad: bool = False,
) -> DataLoader:  # fmt: skip
    """Batches of one split under the evaluation transform, spread over the processes; `cache`d, by
    images decoded once, where the split is read again and again."""
    if isinstance(split, FeatureSplit):
        dataset, num_workers = split, 0
    elif isinstance(split, IterableDataset):
        dataset = EvaluationStream(split, processor, skip_bad)
        num_workers = min(num_workers, split.num_shards)
    elif cache and (cached := _cached(split, processor, num_workers, accelerator, description)):
        dataset, num_workers = cached, 0  # nothing is left for workers to do
        dataset.normalize = processor.image_mean, processor.image_std
    else:
        dataset = EvaluationImages(split, processor)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    return accelerator.prepare_data_loader(loader)


class TrainingBatches:
    """Augmented batches of the training images, on the device. Which ones an epoch holds, in which
    order and how augmented follows from seed and epoch alone, whatever the number of workers."""

    def __init__(
        self, split: Dataset | FeatureSplit, config: ProtoSphereConfig, options: BatchOptions,
        accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self.accelerator = accelerator
        processor = build_image_processor(config, crop=False)
        dataset, of_features = None, isinstance(split, FeatureSplit)
        if options.cache_images is not False and not of_features:
            dataset = _cached(split, processor, options.num_workers, accelerator, "train")
        self.is_cached = dataset is not None or (of_features and options.cache_images is not False)
        if options.cache_images and not self.is_cached:
            raise ArgumentError(
                f"--cache_images: there is no room for the {len(split)} decoded images in "
                f"{cache_path(split, processor).parent}. Leave it out to decode them in worker "
                "processes, or set HF_DATASETS_CACHE to a folder on a larger disk."
            )
        more = {"views": options.views, "seed": options.seed}
        if of_features:
            augment, dataset = None, split.for_training(**more)
        elif self.is_cached:
            augment = BatchAugmentation(config, options, accelerator.device)
        else:
            augment, dataset = None, TrainingImages(split, TrainTransform(config, options), **more)
        self.augment = augment
        self._random = augment or dataset
        if options.classes_per_batch:
            steps = accelerator.num_processes * options.gradient_accumulation_steps
            self.sampler = ClassBalancedBatches(
                labels_of(split), options.classes_per_batch, options.batch_size,
                seed=options.seed, batches_per_step=steps,
            )  # fmt: skip
            order = {"batch_sampler": self.sampler}
        else:
            self.sampler = EpochSampler(len(split), options.seed)
            order = {"sampler": self.sampler, "batch_size": options.batch_size, "drop_last": True}
        workers = 0 if self.is_cached or of_features else options.num_workers
        loader = DataLoader(dataset, num_workers=workers, collate_fn=collate, **order)
        self._loader = accelerator.prepare_data_loader(loader)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """Batches {"pixel_values": (M[, V], 3, S, S) float32, "labels": (M,)}, without the first `skip`."""
        loader = self._loader
        if skip:
            loader = self.accelerator.skip_first_batches(loader, skip)
        # Both: Accelerate's set_epoch does not reach the sampler through every wrapper, but its
        # loaders hand their own count of epochs to the samplers they do reach.
        loader.set_epoch(epoch)
        self.sampler.set_epoch(epoch)
        self._random.set_epoch(epoch)  # now: workers get a copy of the data set with the iterator
        return map(self.augment, loader) if self.augment else iter(loader)


def _cached(
    split: Dataset, processor: BaseImageProcessor, num_workers: int, accelerator: Accelerator, description: str
) -> CachedImages | None:
    with main_process_first(accelerator, local=True):  # one writes, the others find the file
        pixels = cached_pixels(split, processor, num_workers, description)
    if not all(gather_object([pixels is not None])):  # of a machine without room: then none has it
        return None
    return CachedImages(pixels, torch.tensor(labels_of(split)))
