"""How well unknown images are told from known ones: all scores, near and far, as OpenOOD asks.

    python -m scripts.benchmarks.unknown --clothing path --cifar10 path --model local-dir:path

Heads of the engine, by prototypes and by cross-entropy, on features of a frozen network that has ImageNet weights, as
`protosphere finetune --mode head` trains them: on seven of ten classes, drawn by the seed. Near are test images of the
three others; far are the other data set's, handwritten digits and textures of noise. Of CIFAR-10 a part is taken.
Means over seeds, in per cent: AUROC with its standard deviation · FPR95.
"""

import argparse
import dataclasses
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from statistics import fmean

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from sklearn.datasets import load_digits

from hf_protosphere.data.dataset import ImageDataset, load_image_dataset
from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.data.labels import labels_of
from hf_protosphere.data.subsets import drawn
from hf_protosphere.open_set.detection import compare_scores, detection_metrics
from hf_protosphere.open_set.scores import SCORES, Outputs, fit_scores
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.transfer.arguments import HEAD_PROJECTION
from hf_protosphere.transfer.features import embedded, features_of, train_head
from hf_protosphere.transfer.finetune import head_epochs

from ..markdown import markdown_table

Rows = dict[str, dict[str, tuple[float, ...]]]
LEFT_OUT = "classes left out"  # by `compare_scores`: what `calibrate` sees without unknown images
SEEDS, UNSEEN = range(3), 3  # classes that are left out
CIFAR = {"train": 200, "validation": 30, "test": 150}  # images of each class
DIGITS, TEXTURES = 360, 300  # images


def arguments_of(model: str, **options: object) -> TrainArguments:
    """As `finetune --mode head` has them by default, but for one view of each image."""
    return TrainArguments(**{
        "dataset_name": "given", "backbone": model, "pretrained": True, "freeze_backbone": True, "feature_views": 1,
        "imprint": True, "nc_every": 0, "nc_train_samples": 0, "learning_rate": 0.1, "batch_size": 256,
    } | HEAD_PROJECTION | options)  # fmt: skip


def textures(count: int = TEXTURES, side: int = 128) -> list[Pillow.Image]:
    """Noise with spectra |f|^-a, a from 0 (white) to 3 (clouds), some of it stretched, in mixed colours."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        y, x = np.meshgrid(*(np.fft.fftfreq(side),) * 2, indexing="ij")
        turn, stretch = rng.uniform(0, np.pi), 2 ** rng.uniform(0, 3)
        u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        power = np.maximum(np.hypot(u, stretch * v), 1 / side) ** -rng.uniform(0, 3)
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, side, side))) * power).real
        colours = np.tensordot(rng.standard_normal((3, 3)), noise, 1)  # (3, side, side)
        low, high = np.quantile(colours, (0.01, 0.99))
        pixels = (255 * (colours - low) / (high - low)).clip(0, 255).astype(np.uint8)
        made.append(Pillow.fromarray(pixels.transpose(1, 2, 0)))
    return made


def features_of_data(arguments: argparse.Namespace) -> dict[str, ImageDataset]:
    """Of both data sets; the first has "digits" and "textures" beside its splits."""
    clothing, cifar10 = (
        load_image_dataset(path, validation_fraction=0, check_images=False)
        for path in (arguments.clothing, arguments.cifar10)
    )
    digits = [Pillow.fromarray((x * 15).astype(np.uint8)) for x in load_digits().images[:DIGITS]]
    shape = Features({"image": Image(), "label": Value("int64")})
    far = {
        name: Dataset.from_dict({"image": images, "label": [0] * len(images)}, shape)
        for name, images in (("digits", digits), ("textures", textures()))
    }
    clothing = dataclasses.replace(clothing, splits=dict(clothing.splits) | far)
    parts, labels = {}, labels_of(cifar10.splits["train"])
    both = drawn(labels, [CIFAR["train"] + CIFAR["validation"]] * 10, 0)
    kept = drawn(labels, [CIFAR["train"]] * 10, 0)
    parts["train"] = cifar10.splits["train"].select(kept)
    parts["validation"] = cifar10.splits["train"].select(np.setdiff1d(both, kept))
    test = cifar10.splits["test"]
    parts["test"] = test.select(drawn(labels_of(test), [CIFAR["test"]] * 10, 0))
    cifar10 = dataclasses.replace(cifar10, splits=parts)
    made_by = arguments_of(arguments.model, epochs=1)
    return {"clothing": features_of(made_by, clothing), "CIFAR-10": features_of(made_by, cifar10)}


def part(split: FeatureSplit, classes: list[int]) -> FeatureSplit:
    """Images of these classes, which are numbered anew."""
    rows = np.flatnonzero(np.isin(split.labels, classes))
    return FeatureSplit(split.versions[:, rows], torch.from_numpy(np.searchsorted(classes, split.labels[rows])))


def measured(features: ImageDataset, far: dict[str, FeatureSplit], objective: str, model: str, seed: int) -> Rows:
    """Of one head: {name of a score: {kind of unknown images: (AUROC, FPR95)}}, and its accuracy."""
    order = np.random.default_rng(seed).permutation(features.num_labels).tolist()
    unseen, seen = sorted(order[:UNSEEN]), sorted(order[UNSEEN:])
    roles = ("train", "validation", "test")
    known = ImageDataset(
        {role: part(features.splits[role], seen) for role in roles}, [features.label_names[c] for c in seen]
    )
    epochs = head_epochs(known.num_train // 256)
    options = {"objective": objective, "seed": seed, "epochs": epochs, "evaluate_every": epochs}
    with redirect_stdout(sys.stderr):
        head, results = train_head(arguments_of(model, **options), known)
    prototypes = head.prototypes.detach()

    def outputs_of(split: FeatureSplit) -> Outputs:
        embeddings, logits = embedded(head, split)
        return Outputs(embeddings.double(), logits.double(), split.labels)

    of = {role: outputs_of(known.splits[role]) for role in roles}
    unknown = {"near": part(features.splits["test"], unseen), **far}
    outputs = {name: outputs_of(split) for name, split in unknown.items()}
    found: Rows = defaultdict(dict)
    for name, score in fit_scores(prototypes, of["train"]).items():
        test = score(of["test"])
        for kind, x in outputs.items():
            metrics = detection_metrics(test, score(x))
            found[name][kind] = metrics["auroc"], metrics["fpr95"]
    for name, metrics in compare_scores(of["validation"], prototypes).items():
        found[name][LEFT_OUT] = metrics["auroc"], metrics["fpr95"]
    found["accuracy"]["test"] = (results["test"]["accuracy"],)
    return found


def run(arguments: argparse.Namespace) -> None:
    data = features_of_data(arguments)
    made = {name: data["clothing"].splits[name] for name in ("digits", "textures")}
    for name, features in data.items():
        others = next(of.splits["test"] for other, of in data.items() if other != name)
        for objective in ("ntce", "cross_entropy"):
            far = {"the other data set": others, **made}
            rows = [measured(features, far, objective, arguments.model, seed) for seed in SEEDS]
            found = {
                (score, kind): [row[score][kind] for row in rows]
                for score in SCORES
                for kind in ("near", *far, LEFT_OUT)
            }
            for score in SCORES:  # of each seed the mean over data sets, as OpenOOD has it
                found[score, "far"] = np.mean([found[score, kind] for kind in far], axis=0)
            kinds = ["near", "far", *far, LEFT_OUT]
            table = [[f"{name}, {objective}", *kinds]]
            table += [[title, *(cell(found[score, kind]) for kind in kinds)] for score, title in SCORES.items()]
            accuracy = 100 * fmean(row["accuracy"]["test"][0] for row in rows)
            print(f"{markdown_table(table)}\n\nAccuracy on the seven classes: {accuracy:.1f} %.\n", flush=True)


def cell(values: list[tuple[float, ...]]) -> str:
    """Of (AUROC, FPR95) of each seed."""
    auroc, fpr95 = (100 * x for x in np.transpose(values))
    return f"{auroc.mean():.1f} ± {auroc.std(ddof=1):.1f} · {fpr95.mean():.0f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clothing", required=True, help="photographs of clothing, ten classes")
    parser.add_argument("--cifar10", default="cifar10", help="CIFAR-10")
    parser.add_argument("--model", required=True, help="whose features: a timm model, or a folder of one")
    run(parser.parse_args())
