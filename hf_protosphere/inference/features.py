"""Features of images by a frozen network: computed once, and trained on in place of the images."""

import copy
import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
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
from ..data.pixels import content_of, undecoded
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
    model, network = copy.copy(model), copy.copy(model.base_model)
    network._modules = network._modules | {"backbone": backbone}
    if "protosphere" not in model._modules:
        return network
    model._modules = model._modules | {"protosphere": network}
    return model


def on_features(model: ProtoSphereForImageClassification) -> ProtoSphereForImageClassification:
    """The same model, projection and head shared, for features (M[, V], F, 1, 1) in batches as of `FeatureSplit`."""
    passed = nn.Flatten()
    # Without any parameter, behind no projection, transformers would know no dtype.
    passed.none = nn.Parameter(torch.empty(0, dtype=model.dtype), requires_grad=False)
    return with_backbone(model, passed.to(model.device))


@torch.no_grad()
def embedded(model: ProtoSphereForImageClassification, split: FeatureSplit) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and logits (N, K), of a model with a head, of the plain images of a split, where it is."""
    output = on_features(model).eval()(split.versions[0, ..., None, None].to(model.device))
    return output.embeddings, output.get("logits")


def passed_once(
    model: nn.Module, processor: BaseImageProcessor, splits: dict[str, Dataset], accelerator: Accelerator, sizes: Any
) -> tuple[nn.Module, Mapping[str, Dataset | FeatureSplit]]:  # fmt: skip
    """A checkpoint `on_features`, and those of its images, so that none passes through its backbone twice; another
    classifier, and images too many for the memory, as they are. `sizes` has `batch_size` and `num_workers`."""
    if max(map(len, splits.values())) > MOST_IN_MEMORY or not isinstance(model, ProtoSphereForImageClassification):
        return model, splits
    options = BatchOptions(batch_size=sizes.batch_size, num_workers=sizes.num_workers)
    images = with_features(ImageDataset(splits, []), model, accelerator, options, processor=processor)
    return on_features(model).eval(), images.splits


def with_features(
    images: ImageDataset, network: ProtoSphereForImageClassification, accelerator: Accelerator,
    options: BatchOptions, versions: int = 1, processor: BaseImageProcessor | None = None, sample: int | None = None,
) -> ImageDataset:  # fmt: skip
    """The data set with the network's features in place of its images; what they took is said.

    They are kept in the cache of 🤗 datasets, by the weights, the transform and the contents of the image's file,
    where other commands find them; the longest unused go where there is no room; not with `cache_images=False`.

    Args:
        images: no stream.
        network: whose backbone makes the features; on the accelerator's device.
        options: `num_workers`, `batch_size` where it is less than 64, and how training images are augmented.
        versions: of each training image: plain, mirrored (with `horizontal_flip`), then augmented, by fixed seeds.
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
        kept = () if options.cache_images is False else undecoded(measured.select_columns("image"))
        contents = [content_of(row["image"]) for row in kept]
        made_by = measured, contents, network, processor, accelerator, options, key, f"{role} images"
        made = [_features(*made_by, version) for version in range(count)]
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
    split: Dataset, contents: list[str], network: ProtoSphereForImageClassification, processor: BaseImageProcessor,
    accelerator: Accelerator, options: BatchOptions, key: str, description: str, version: int,
) -> tuple[Tensor, float]:  # fmt: skip
    """(N, F) float32 on the CPU, on every process, of one version of each image, and the seconds that they took: as
    found in the cache by hashes of the images' `contents`, or computed and put there."""
    mirrored = version == 1 and options.horizontal_flip
    how, dataset = f"mirrored {mirrored}", EvaluationImages(split, processor)
    if version > 0 and not mirrored:
        augment = TrainTransform(network.config, options)
        # Of its share of blurred images torchvision's says nothing.
        how = f"{augment.transform} {options.blur} {options.seed} {version}"
        dataset = TrainingImages(split, augment, seed=options.seed)
        dataset.set_epoch(version)
        contents = [f"{content} {row}" for row, content in enumerate(contents)]  # by which it is augmented
    path = cache_path(split, processor, key, how, kind="features.npz")
    sweep(path.parent)
    features, seconds = torch.empty(len(split), 0), 0.0
    known = np.zeros(len(split), bool)  # which rows the cache has
    for other in path.parent.glob(f"*-{path.name.partition('-')[2]}") if contents else ():
        with suppress(OSError), np.load(other) as kept:  # gone in the meantime, or of others
            places = {content: place for place, content in enumerate(kept.get("contents", np.array([])).tolist())}
            if new := [row for row in (~known).nonzero()[0].tolist() if contents[row] in places]:
                stored = torch.from_numpy(kept["features"])
                features = features if known.any() else stored.new_empty(len(split), stored.shape[1])
                features[new], known[new] = stored[[places[contents[row]] for row in new]], True
                seconds += float(kept["seconds"]) * len(new) / len(places)
                other.touch()  # the longest unused go first
    if any((others != known).any() for others in gather_object([known])):  # each machine has a cache of its own
        known, seconds = np.zeros_like(known), 0.0
    if rows := (~known).nonzero()[0].tolist():
        size, started = min(BATCH_SIZE, options.batch_size), time.perf_counter()
        loader = DataLoader(Subset(dataset, rows), size, num_workers=options.num_workers, collate_fn=collate)

        def compute(batch: dict[str, Tensor]) -> tuple[Tensor]:
            pixels = batch["pixel_values"].flip(-1) if mirrored else batch["pixel_values"]
            return (network.base_model(pixels, return_dict=True).pooler_output.float(),)

        words = f"features of the {description}, version {version + 1}"
        parts = inferred([network], accelerator.prepare_data_loader(loader), accelerator, words, compute)
        new = torch.cat([part.cpu() for (part,) in parts])
        features = new if len(rows) == len(split) else features.index_copy(0, torch.tensor(rows), new)
        seconds += time.perf_counter() - started
    if rows and contents and accelerator.is_local_main_process:
        with at_no_cost("keeping the features for another run"):
            path.parent.mkdir(parents=True, exist_ok=True)
            others = sorted(path.parent.glob("*.features.npz"), key=os.path.getmtime)
            while not (room := has_room(path.parent, features.nbytes + sum(map(os.path.getsize, others)))) and others:
                others.pop(0).unlink()
            if room:
                with whole_file(path) as unfinished, unfinished.open("wb") as file:
                    np.savez(file, features=features.numpy(), seconds=seconds, contents=np.array(contents))
    accelerator.wait_for_everyone()
    return features, seconds
