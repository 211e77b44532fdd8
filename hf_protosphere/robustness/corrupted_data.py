"""Data sets of corrupted images at a model's input size: made here, or read from a folder.

All give items {"pixel_values": (3, S, S) uint8, "labels", "resized"}: a model has only to rescale and normalise them.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor
from transformers import BaseImageProcessor

from ..data.labels import labels_of, map_labels
from ..data.pixels import pixels_of, read, undecoded, walk_images
from ..data.sources import by_split
from ..data.subsets import balanced_sample
from ..errors import DataError, errors_in_one_line
from ..rgb import shorter_side
from .corruptions import check_side, corrupt, load_library


class ResizedImages(Dataset):
    """A split's images at the input size.

    Args:
        split: with columns "image" and "label".
        ready_made: images of the input size are not resized and cropped a second time.
    """

    def __init__(self, split: datasets.Dataset, processor: BaseImageProcessor, *, ready_made: bool = False) -> None:
        self.split, self.processor, self.ready_made = undecoded(split), processor, ready_made
        self.labels = labels_of(split)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = read(self.split[i]["image"], shorter_side(self.processor))
        resized = not self.ready_made or image.size != input_size(self.processor)
        if resized:
            pixels = pixels_of([image], self.processor, do_rescale=False, do_normalize=False)[0]
        else:
            pixels = pil_to_tensor(image)
        return {"pixel_values": pixels, "labels": int(self.labels[i]), "resized": resized}


class CorruptedImages(Dataset):
    """Images under one corruption, whose randomness follows from the seed and the index alone.

    An image has one seed for all corruptions and severities: these differ by their strength, not by their luck."""

    def __init__(self, images: ResizedImages, corruption: str, severity: int, seed: int) -> None:
        self.images, self.corruption, self.severity, self.seed = images, corruption, severity, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        item = self.images[i]
        image = item["pixel_values"].permute(1, 2, 0).numpy()  # (S, S, 3)
        seed = int(np.random.SeedSequence([self.seed, i]).generate_state(1)[0])
        corrupted = corrupt(image, self.corruption, self.severity, seed=seed)
        return item | {"pixel_values": torch.tensor(corrupted).permute(2, 0, 1)}


def make_corrupted(images: ResizedImages, corruptions: list[str], severities: list[int], seed: int) -> list[Dataset]:
    """A data set for each corruption and severity, severities within corruptions; too small images are refused."""
    load_library()
    check_side(min(input_size(images.processor)))
    return [CorruptedImages(images, name, s, seed) for name, s in itertools.product(corruptions, severities)]


def read_corrupted(
    folder: str | Path, label_names: list[str], processor: BaseImageProcessor,
    corruptions: Sequence[str], severities: Sequence[int], max_images: int | None = None,
) -> list[Dataset]:  # fmt: skip
    """A ready-made data set for each corruption and severity, severities within corruptions.

    Args:
        folder: as ImageNet-C is laid out, corruption/severity/class/image.JPEG, with classes named
            as in `label_names`; or as CIFAR-10-C, corruption.npy with the images of all severities
            one after the other, and labels.npy with their numbers.
        max_images: of each corruption and severity, balanced by class; the same for all.

    Raises:
        DataError: corruptions that the folder lacks, classes that the model does not know.
    """
    folder = Path(folder)
    arrays = (folder / "labels.npy").is_file()
    parts = [(f"{name}.npy" if arrays else f"{name}/{s}", s) for name, s in itertools.product(corruptions, severities)]
    if missing := dict.fromkeys(part for part, _ in parts if not (folder / part).exists()):
        raise DataError(
            f"--corrupted_dataset {folder} has no {', '.join(missing)}: add what is missing, or "
            "name what is there by --corruptions and --severities. It must be laid out as "
            "corruption/severity/class/image or as corruption.npy and labels.npy."
        )
    data_sets: list[Dataset] = []
    for part, severity in parts:
        split = _array_split(folder / part, severity) if arrays else _folder_split(folder / part)
        split = map_labels(split, f"corrupted ({part})", label_names)
        if max_images is not None:
            split = balanced_sample(split, max_images, seed=0)
        data_sets.append(ResizedImages(split, processor, ready_made=True))
    return data_sets


def input_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """(width, height)."""
    return processor.crop_size["width"], processor.crop_size["height"]


def _folder_split(path: Path) -> datasets.Dataset:
    splits = by_split(path, walk_images(path)[0], flag="--corrupted_dataset")
    images, names = zip(*splits.get("train", [(None, None)]))
    if not all(names):
        raise DataError(f"--corrupted_dataset: {path} must hold folders of images, one a class.")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=sorted({*names})))
    return datasets.Dataset.from_dict({"image": [str(path / name) for name in images], "label": names}, features)


def _array_split(path: Path, severity: int) -> datasets.Dataset:
    labels, pixels = _array(path.with_name("labels.npy"), 1), _array(path, 4)
    if not np.issubdtype(labels.dtype, np.integer) or pixels.dtype != np.uint8:
        raise DataError(f"--corrupted_dataset: {path} must be uint8, labels whole: {pixels.dtype}, {labels.dtype}.")
    count = len(pixels)
    if count != len(labels) or count % 5:
        raise DataError(f"--corrupted_dataset: {path}: {count} images, {len(labels)} labels, not of 5 severities.")
    rows = np.arange(count).reshape(5, -1)[severity - 1]
    split = datasets.Dataset.from_dict({"row": rows, "label": labels[rows].astype(np.int64)})
    return split.with_transform(partial(_images_of_rows, path))


def _images_of_rows(path: Path, batch: dict[str, list]) -> dict[str, list]:
    pixels = _array(path, 4)  # (N, H, W, 3) uint8
    return {"image": [Image.fromarray(pixels[row]) for row in batch["row"]]}


def _array(path: Path, dimensions: int) -> np.ndarray:
    """Of a .npy file, read as it is needed; damaged, pickled, or of other dimensions, refused."""
    with errors_in_one_line(f"--corrupted_dataset: {path} cannot be read", kind=DataError):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != dimensions:
        raise DataError(f"--corrupted_dataset: {path} is no array of {dimensions} dimensions.")
    return array
