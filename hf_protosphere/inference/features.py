"""Features of images by a frozen network: computed once, and trained on in place of the images."""

import copy
import dataclasses
import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import BaseImageProcessor

from ..configuration_protosphere import build_image_processor
from ..data.arguments import BatchOptions
from ..data.dataset import ImageDataset
from ..data.image_cache import FeatureSplit, cache_path, has_room
from ..data.labels import labels_of
from ..data.pixels import content_of
from ..data.transforms import EvaluationImages, TrainingImages, TrainTransform, collate
from ..errors import at_no_cost
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..runs.files import sweep, whole_file
from ..runs.processes import announce
from .predictions import inferred

BATCH_SIZE = 64  # images: as many as features would not fit in memory
MOST_IN_MEMORY = 500_000  # images: 4 GB of 2,048 features


def with_backbone(model: ProtoSphereForImageClassification, backbone: nn.Module) -> ProtoSphereForImageClassification:
    """The same model, its projection and head, if it has one, shared, but for the backbone."""
    whole, network = copy.copy(model), copy.copy(model.base_model)
    network._modules = network._modules | {"backbone": backbone}
    if model is model.base_model:
        return network
    whole._modules = whole._modules | {"protosphere": network}
    return whole


def on_features(model: ProtoSphereForImageClassification) -> ProtoSphereForImageClassification:
    """The same model for features (M[, V], F, 1, 1) of its backbone in place of images, as batches
    of a `FeatureSplit` hold them; its projection and head are shared."""
    passed = nn.Flatten()
    # Without any parameter, behind no projection, transformers would know no dtype.
    passed.none = nn.Parameter(torch.empty(0, dtype=model.dtype), requires_grad=False)
    return with_backbone(model, passed.to(model.device))


@torch.no_grad()
def embedded(model: ProtoSphereForImageClassification, split: FeatureSplit) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and logits (N, K) of the plain images of a split, where the model is."""
    output = on_features(model).eval()(split.versions[0, ..., None, None].to(model.device))
    return output.embeddings, output.logits


def passed_once(
    model: nn.Module, processor: BaseImageProcessor, splits: dict[str, Dataset], accelerator: Accelerator,
    sizes: Any,
) -> tuple[nn.Module, Mapping[str, Dataset | FeatureSplit]]:  # fmt: skip
    """Of a checkpoint that is asked about images more than once, now or by another command, `on_features` and their
    features; a classifier of other kinds, and images of which there are too many, stay as they are.

    Args:
        sizes: arguments with `batch_size` and `num_workers`."""
    most = max(map(len, splits.values()))
    if most > MOST_IN_MEMORY or not isinstance(model, ProtoSphereForImageClassification):
        return model, splits
    options = BatchOptions(batch_size=sizes.batch_size, num_workers=sizes.num_workers)
    images = with_features(ImageDataset(splits, []), model, accelerator, options, processor=processor)
    return on_features(model).eval(), images.splits


def with_features(
    images: ImageDataset, network: ProtoSphereForImageClassification, accelerator: Accelerator,
    options: BatchOptions, versions: int = 1, *,
    processor: BaseImageProcessor | None = None, sample: int | None = None,
) -> ImageDataset:  # fmt: skip
    """The data set with the network's features in place of its images; what they took is said.

    They are kept in the cache of 🤗 datasets, in files named after images, weights and transform, where another run
    finds them, also those of the same images in other splits; not with `cache_images=False`, nor where there is no
    room, even without those that were of use the longest ago.

    Args:
        images: no stream.
        network: whose backbone makes the features; on the accelerator's device.
        options: `num_workers`, `batch_size` where it is less than 64, and how training images are augmented.
        versions: of each training image: 1, the plain one, under the evaluation transform; then,
            with `horizontal_flip`, its mirror image; the others are augmented, by fixed seeds.
        sample: the features of so many images stand for those of all, and their time too.
        processor: of plain images; by default as the configuration says.
    """
    digest, splits, said = hashlib.sha256(), {}, []
    processor = processor or build_image_processor(network.config)
    for tensor in network.base_model.backbone.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    key = f"{network.base_model.backbone}{digest.hexdigest()}{accelerator.mixed_precision}"
    if sample is not None:
        options = dataclasses.replace(options, cache_images=False)
    started = time.perf_counter()
    for role, split in images.splits.items():
        measured = split if sample is None else split.select(range(min(sample, len(split))))
        count = versions if role == "train" else 1
        made = [
            _features(measured, network, processor, accelerator, options, key, f"{role} images", version)
            for version in range(count)
        ]
        features, seconds = torch.stack([f for f, _ in made]), sum(s for _, s in made)
        features = features[:, torch.arange(len(split)) % len(measured)]
        seconds *= len(split) / len(measured)
        splits[role] = FeatureSplit(features, torch.tensor(labels_of(split)), split, seconds)
        said.append(f"{len(split):,} {role} images{f' x {count}' if count > 1 else ''}")
    spent, took = time.perf_counter() - started, sum(split.seconds for split in splits.values())
    shown = f"{', '.join(said)}: {took:.1f} s, of them {spent:.1f} now"
    announce(f"{features.shape[-1]:,} features of {shown}")
    return dataclasses.replace(images, splits=splits)


def _features(
    split: Dataset, network: ProtoSphereForImageClassification, processor: BaseImageProcessor,
    accelerator: Accelerator, options: BatchOptions, key: str, description: str, version: int,
) -> tuple[Tensor, float]:  # fmt: skip
    """(N, F) float32 on the CPU, on every process, of one version of each image, and the seconds
    that they took: as found in the cache, or computed and put there."""
    keeps, mirrored = options.cache_images is not False, version == 1 and options.horizontal_flip
    how, dataset = f"mirrored {mirrored}", EvaluationImages(split, processor)
    if version > 0 and not mirrored:
        augment = TrainTransform(network.config, options)
        # Of its share of blurred images torchvision's says nothing.
        how = f"{augment.transform} {options.blur} {options.seed} {version}"
        dataset = TrainingImages(split, augment, seed=options.seed)
    path = cache_path(split, processor, key, how, kind="features.npz")
    sweep(path.parent)
    if keeps and all(gather_object([path.exists()])):
        with suppress(OSError):  # of others
            path.touch()
        with np.load(path) as kept:
            return torch.from_numpy(kept["features"]), float(kept["seconds"])
    started, contents = time.perf_counter(), []
    if keeps and isinstance(dataset, EvaluationImages):  # what is augmented depends on its row, too
        contents = [content_of(row["image"]).encode() for row in dataset.images]
    known, found, seconds = _known(path, contents)
    if not all(np.array_equal(known, others) for others in gather_object([known])):  # each machine has its own cache
        known, seconds = known[:0], 0.0
    rows = np.setdiff1d(np.arange(len(split)), known)
    if len(known):
        dataset = Subset(dataset, rows)
    loader = DataLoader(
        dataset, min(BATCH_SIZE, options.batch_size), num_workers=options.num_workers, collate_fn=collate
    )
    loader = accelerator.prepare_data_loader(loader)
    loader.set_epoch(version)  # and so the data set's, at each start

    def compute(batch: dict[str, Tensor]) -> tuple[Tensor]:
        pixels = batch["pixel_values"].flip(-1) if mirrored else batch["pixel_values"]
        return (network.base_model(pixels, return_dict=True).pooler_output.float(),)

    words = f"features of the {description}, version {version + 1}"
    parts = [part.cpu() for (part,) in inferred([network], loader, accelerator, words, compute)] if len(rows) else []
    features = torch.cat([*([found] if len(known) else []), *parts])[np.argsort(np.concatenate([known, rows]))]
    seconds += time.perf_counter() - started
    if keeps and len(rows) and accelerator.is_local_main_process:
        with at_no_cost("keeping the features for another run"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if _make_room(path.parent, features.nbytes):
                with whole_file(path) as unfinished, unfinished.open("wb") as file:
                    np.savez(file, features=features.numpy(), seconds=seconds, contents=np.array(contents, "S"))
    accelerator.wait_for_everyone()
    return features, seconds


def _known(path: Path, contents: list[bytes]) -> tuple[np.ndarray, Tensor, float]:
    """Of images, by the hashes of their files: the rows, the features and the seconds of those that are in the files
    of the same network and transform, but of other splits."""
    rows, features, seconds = np.array([], int), [torch.empty(0)], 0.0
    for other in path.parent.glob(f"*-{path.name.partition('-')[2]}"):
        with suppress(OSError), np.load(other) as kept:  # gone in the meantime
            places = {content: place for place, content in enumerate(kept.get("contents", np.array([])).tolist())}
            new = np.setdiff1d([row for row, content in enumerate(contents) if content in places], rows).astype(int)
            if len(new):
                found = kept["features"][[places[contents[row]] for row in new]]
                rows, features = np.concatenate([rows, new]), [*features, torch.from_numpy(found)]
                seconds += float(kept["seconds"]) * len(new) / len(places)
                other.touch()
    return rows, torch.cat(features[1:] or features), seconds


def _make_room(folder: Path, size: int) -> bool:
    """Whether there is room for so many bytes of features, once files are gone that were of use the longest ago."""
    others = sorted(folder.glob("*.features.npz"), key=lambda path: path.stat().st_mtime)
    while others and not has_room(folder, size + sum(path.stat().st_size for path in others)):
        others.pop(0).unlink()
    return has_room(folder, size)
