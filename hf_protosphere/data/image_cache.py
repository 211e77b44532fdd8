"""Images decoded and resized once, as uint8 in a memory-mapped file.

The file lies in the cache of 🤗 datasets, named after all that its pixels depend on, the images and
the processor: the next run on the same images finds it. The operating system keeps it in memory as
far as there is room.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..errors import CacheError, DataError, WriteError
from ..runs.files import sweep, whole_file
from .pixels import DecodedImages, images_key

# Where the cache itself would take more, images are decoded by worker processes all the time.
MAX_CACHE_BYTES = 64 * 2**30


class CachedImages(Dataset):
    """Whole batches {"pixel_values": uint8 (M, 3, S, S), "labels": (M,), "index": (M,)}. With
    `normalize=(mean, std)`, of values in [0, 1], they are float32 and have no index."""

    def __init__(
        self, pixels: np.memmap, labels: Tensor, normalize: tuple[list, list] | None = None
    ) -> None:
        self.pixels, self.labels, self.normalize = torch.from_numpy(pixels), labels, normalize

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(indices)
        rows = index % len(self)  # samplers number repetitions beyond the size
        pixels, labels = self.pixels[rows], self.labels[rows]
        if self.normalize is None:
            return {"pixel_values": pixels, "labels": labels, "index": index}
        mean, std = (torch.tensor(values)[:, None, None] for values in self.normalize)
        return {"pixel_values": (pixels / 255 - mean) / std, "labels": labels}


def cache_path(split: datasets.Dataset, processor: BaseImageProcessor) -> Path:
    made_by = hashlib.sha256(processor.to_json_string().encode()).hexdigest()[:16]
    name = f"{images_key(split)}-{made_by}.uint8"
    return Path(datasets.config.HF_DATASETS_CACHE) / "protosphere" / name


def cached_pixels(
    split: datasets.Dataset, processor: BaseImageProcessor, num_workers: int, description: str
) -> np.memmap | None:
    """(N, 3, S, S) uint8, as the processor makes them without rescaling; changes stay in memory.

    The file is made at the first call; None where there is none and too little room for one, with
    as much again left free.
    """
    path, side = cache_path(split, processor), processor.crop_size["height"]
    sweep(path.parent)
    shape = (len(split), 3, side, side)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            room = shutil.disk_usage(path.parent).free // 2
            if math.prod(shape) > min(MAX_CACHE_BYTES, room):
                return None
            _write(path, split, processor, num_workers, description)
        except (OSError, WriteError) as error:
            raise CacheError(
                f"the decoded {description} images cannot be written to {path.parent}: {error}. "
                "Make room, set HF_DATASETS_CACHE to another folder, or give --cache_images false."
            ) from error
    return np.memmap(path, np.uint8, "c", shape=shape)


def _write(
    path: Path, split: datasets.Dataset, processor: BaseImageProcessor, num_workers: int,
    description: str,
) -> None:  # fmt: skip
    images = DecodedImages(split, processor, do_rescale=False, do_normalize=False)
    loader = DataLoader(images, batch_size=64, num_workers=num_workers, collate_fn=tuple)
    bar = tqdm(total=len(split), desc=f"decoding the {description} images once", leave=False)
    # Not by the map: a disk that is full would end the process without a word.
    with bar, whole_file(path) as unfinished, unfinished.open("wb") as out:
        for pixels, rows, bad in loader:
            for error in bad.values():
                raise DataError(f"the {description} images: {error}") from error
            out.write(pixels.numpy().tobytes())
            bar.update(len(rows))
