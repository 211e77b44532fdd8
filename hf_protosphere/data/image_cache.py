"""What is computed of images once: their pixels, uint8 in a memory-mapped file, and a frozen network's features.

Files lie in the cache of 🤗 datasets, named after all that they depend on, the images and what they went through: the
next run on the same images finds them. The operating system keeps pixels in memory as far as there is room."""

import copy
import hashlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from ..errors import CacheError, DataError, WriteError
from ..runs.files import sweep, whole_file
from .augmentation import uniform_numbers
from .pixels import DecodedImages, images_key
from .samplers import ByEpoch

# Where the cache itself would take more, images are decoded by worker processes all the time.
MAX_CACHE_BYTES = 64 * 2**30


class CachedImages(Dataset):
    """Whole batches {"pixel_values": uint8 (M, 3, S, S), "labels": (M,), "index": (M,)}. With
    `normalize=(mean, std)`, of values in [0, 1], they are float32 and have no index."""

    def __init__(self, pixels: np.memmap, labels: Tensor, normalize: tuple[list, list] | None = None) -> None:
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


class FeatureSplit(ByEpoch, Dataset):
    """What a frozen network makes of a split's images, in their place: it goes wherever a split of
    images goes. Batches {"pixel_values": (M[, views], F, 1, 1), "labels": (M,)}.

    Args:
        versions: (A, N, F) of A versions of each image, of which training draws one for each image and epoch, and
            evaluation takes the first, the plain one; or (N, F).
        labels: (N,) int64.
        images: the split of images itself, if there is one; seconds: that it took to compute its features.
    """

    views, seed = 0, 0  # with views, versions are drawn

    def __init__(
        self, versions: Tensor, labels: Tensor, images: datasets.Dataset | None = None, seconds: float = 0.0
    ) -> None:
        self.versions = versions[None] if versions.dim() == 2 else versions
        self.labels, self.images, self.seconds = labels, images, seconds
        self._fingerprint, self.features = (getattr(images, name, "") for name in ("_fingerprint", "features"))
        if self.versions.shape[1:2] != labels.shape or not self.versions.isfinite().all():
            raise DataError(
                f"features must be finite, (N, F) or (A, N, F), of as many images as labels, but "
                f"got {(*versions.shape,)} and {(*labels.shape,)}."
            )

    def select(self, rows: Sequence[int]) -> "FeatureSplit":
        images, share = self.images and self.images.select(rows), len(rows) / len(self)
        versions, labels = self.versions[:, rows], self.labels[rows]
        return FeatureSplit(versions, labels, images, share * self.seconds)

    def for_training(self, views: int, seed: int) -> "FeatureSplit":
        split = copy.copy(self)
        split.views, split.seed = views, seed
        return split

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index, count = torch.tensor(indices), len(self.versions)
        rows = index % len(self)  # as of `CachedImages`
        features = self.versions[0, rows] if not self.views or count == self.views == 1 else None
        if features is None:  # of several views no two are alike, as long as there are versions
            first = count * uniform_numbers(index, hash((self.seed, self.epoch)), 1)  # (M, 1)
            drawn = (first.long() + torch.arange(self.views)) % count
            features = self.versions[drawn, rows[:, None]].squeeze(1)  # (M[, views], F)
        return {"pixel_values": features[..., None, None], "labels": self.labels[rows]}


def cache_path(split: datasets.Dataset, processor: BaseImageProcessor, *more: str, kind: str = "uint8") -> Path:
    """Of what the processor, and what `more` describes, make of the images."""
    made_by = hashlib.sha256("".join([processor.to_json_string(), *more]).encode())
    name = f"{images_key(split)}-{made_by.hexdigest()[:16]}.{kind}"
    return Path(datasets.config.HF_DATASETS_CACHE) / "protosphere" / name


def has_room(folder: Path, size: int) -> bool:
    """For a file of so many bytes, with as much again left free."""
    return size <= min(MAX_CACHE_BYTES, shutil.disk_usage(folder).free // 2)


def cached_pixels(
    split: datasets.Dataset, processor: BaseImageProcessor, num_workers: int, description: str
) -> np.memmap | None:
    """(N, 3, S, S) uint8, as the processor makes them without rescaling; changes stay in memory.
    The file is made at the first call; None where there is no room for it."""
    path, side = cache_path(split, processor), processor.crop_size["height"]
    sweep(path.parent)
    shape = (len(split), 3, side, side)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not has_room(path.parent, math.prod(shape)):
                return None
            images = DecodedImages(split, processor, do_rescale=False, do_normalize=False)
            words = f"decoding the {description} images once"
            # Not by the map: a disk that is full would end the process without a word.
            with whole_file(path) as unfinished, unfinished.open("wb") as out:
                for pixels, _, bad in images.batches(range(len(split)), 64, num_workers, words):
                    for error in bad.values():
                        raise DataError(f"the {description} images: {error}") from error
                    out.write(pixels.numpy().tobytes())
        except (OSError, WriteError) as error:
            raise CacheError(
                f"the decoded {description} images cannot be written to {path.parent}: {error}. "
                "Make room, set HF_DATASETS_CACHE to another folder, or give --cache_images false."
            ) from error
    return np.memmap(path, np.uint8, "c", shape=shape)
