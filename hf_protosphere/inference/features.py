"""Features of images by a frozen network: computed once, and trained on in place of the images."""

import copy
import dataclasses
import hashlib
import time

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..configuration_protosphere import build_image_processor
from ..data.arguments import BatchOptions
from ..data.dataset import ImageDataset
from ..data.image_cache import FeatureSplit, cache_path, has_room
from ..data.labels import labels_of
from ..data.transforms import EvaluationImages, TrainingImages, TrainTransform, collate
from ..errors import at_no_cost
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..runs.files import sweep, whole_file
from ..runs.processes import announce
from .predictions import inferred

BATCH_SIZE = 64  # images: as many as features would not fit in memory


def with_backbone(model: ProtoSphereForImageClassification, backbone: nn.Module) -> ProtoSphereForImageClassification:
    """The same model, its projection and head shared, but for the backbone."""
    model, network = copy.copy(model), copy.copy(model.protosphere)
    network._modules = network._modules | {"backbone": backbone}
    model._modules = model._modules | {"protosphere": network}
    return model


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


def with_features(
    images: ImageDataset, network: ProtoSphereForImageClassification, accelerator: Accelerator,
    options: BatchOptions, versions: int = 1, *, sample: int | None = None,
) -> ImageDataset:  # fmt: skip
    """The data set with the network's features in place of its images; what they took is said.

    They are kept in the cache of 🤗 datasets, in files named after images, weights and transform,
    where another run finds them; not with `cache_images=False`, nor where there is no room.

    Args:
        images: no stream.
        network: whose backbone makes the features; on the accelerator's device.
        options: `num_workers`, and how training images are augmented.
        versions: of each training image: 1, the plain one, under the evaluation transform; then,
            with `horizontal_flip`, its mirror image; the others are augmented, by fixed seeds.
        sample: the features of so many images stand for those of all, and their time too.
    """
    digest, splits, said = hashlib.sha256(), {}, []
    for tensor in network.protosphere.backbone.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    key = f"{network.protosphere.backbone}{digest.hexdigest()}{accelerator.mixed_precision}"
    if sample is not None:
        options = dataclasses.replace(options, cache_images=False)
    started = time.perf_counter()
    for role, split in images.splits.items():
        measured = split if sample is None else split.select(range(min(sample, len(split))))
        count = versions if role == "train" else 1
        made = [
            _features(measured, network, accelerator, options, key, f"{role} images", version)
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
    split: Dataset, network: ProtoSphereForImageClassification, accelerator: Accelerator,
    options: BatchOptions, key: str, description: str, version: int,
) -> tuple[Tensor, float]:  # fmt: skip
    """(N, F) float32 on the CPU, on every process, of one version of each image, and the seconds
    that they took: as found in the cache, or computed and put there."""
    processor, keeps = build_image_processor(network.config), options.cache_images is not False
    mirrored = version == 1 and options.horizontal_flip
    how, dataset = f"mirrored {mirrored}", EvaluationImages(split, processor)
    if version > 0 and not mirrored:
        augment = TrainTransform(network.config, options)
        # Of its share of blurred images torchvision's says nothing.
        how = f"{augment.transform} {options.blur} {options.seed} {version}"
        dataset = TrainingImages(split, augment, seed=options.seed)
    path = cache_path(split, processor, key, how, kind="features.npz")
    sweep(path.parent)
    if keeps and all(gather_object([path.exists()])):
        with np.load(path) as kept:
            return torch.from_numpy(kept["features"]), float(kept["seconds"])
    loader = DataLoader(dataset, BATCH_SIZE, num_workers=options.num_workers, collate_fn=collate)
    loader = accelerator.prepare_data_loader(loader)
    loader.set_epoch(version)  # and so the data set's, at each start

    def compute(batch: dict[str, Tensor]) -> tuple[Tensor]:
        pixels = batch["pixel_values"].flip(-1) if mirrored else batch["pixel_values"]
        return (network.protosphere(pixels, return_dict=True).pooler_output.float(),)

    words, started = f"features of the {description}, version {version + 1}", time.perf_counter()
    parts = inferred([network], loader, accelerator, words, compute)
    features, seconds = torch.cat([part.cpu() for (part,) in parts]), time.perf_counter() - started
    if keeps and accelerator.is_local_main_process:
        with at_no_cost("keeping the features for another run"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if has_room(path.parent, features.nbytes):
                with whole_file(path) as unfinished, unfinished.open("wb") as file:
                    np.savez(file, features=features.numpy(), seconds=seconds)
    accelerator.wait_for_everyone()
    return features, seconds
