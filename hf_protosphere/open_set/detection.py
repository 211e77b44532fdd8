"""How well images of none of the classes are told from known ones, by all scores side by side.

Known images are the positive class everywhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.dataset import without_bad_images
from ..data.sources import find_image_column, load_splits, two_columns
from ..data.subsets import balanced_sample
from ..errors import DataError
from ..inference.predictions import predictions
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots.table import format_table
from .arguments import OpenSetArguments
from .scores import SCORES, Outputs, fit_scores, halves, score_by

KNOWN_ACCEPTED = 0.95  # where the false positive rate is read
FITTED_IMAGES = 20_000  # of the training images, balanced by class: bounded memory
COMPARED_IMAGES = 5_000  # of each kind at most, to choose a score by
GROUPS = 5  # of classes, each left out once
MARGIN = 0.01  # of AUROC, by which another score must be better than the cosine to be chosen


@dataclass(frozen=True)
class Detection:
    """Scores of known and of unknown images, and what they are worth."""

    known: dict[str, Tensor]  # {name in SCORES: (N,)}, without those that could not be fitted
    unknown: dict[str, Tensor]  # {name: (U,)}
    report: dict[str, Any]


def load_unknown_images(arguments: OpenSetArguments) -> Dataset:
    """The split of `--ood_dataset` that was asked for: "image", and -1 for every "label".

    Args:
        arguments: with `on_bad_image`, `check_images` and `max_eval_samples` too.

    Raises:
        DataError: naming the flag, what was found, and the way out.
    """
    name, named = arguments.ood_split, {arguments.ood_split} - {None}
    loaded = load_splits(arguments.ood_dataset, arguments.ood_config, flag="--ood_dataset", named=named)
    if name is None:
        name = "test" if "test" in loaded else next(iter(loaded)) if len(loaded) == 1 else None
    if name not in loaded:
        raise DataError(f"--ood_split {name}: {arguments.ood_dataset} has no such split, but {', '.join(loaded)}.")
    column = find_image_column(loaded[name], arguments.ood_image_column, "--ood_image_column")
    split = two_columns(loaded[name], column, None, arguments.ood_dataset)
    if arguments.check_images:
        split, _ = without_bad_images(split, "unknown", arguments.on_bad_image)
    if len(split) == 0:
        raise DataError(f"split {name!r} of --ood_dataset {arguments.ood_dataset} has no images.")
    split = split.add_column("label", [-1] * len(split))
    return split if (limit := arguments.max_eval_samples) is None else balanced_sample(split, limit, 0)


def outputs_of(
    model: ProtoSphereForImageClassification, loader: DataLoader, accelerator: Accelerator, description: str
) -> Outputs:
    """Of all images, the same on every process."""
    parts = zip(*((x.cpu() for x in batch) for batch in predictions(model, loader, accelerator, description)))
    return Outputs(*map(torch.cat, parts))


def detect_unknown(
    model: ProtoSphereForImageClassification, loader: Callable[[Dataset], DataLoader], known_images: Dataset,
    unknown_images: Dataset, train_images: Dataset | None, accelerator: Accelerator,
) -> Detection:  # fmt: skip
    """Score known images and unknown ones, by the logits that the model returns, with its calibration.

    Args:
        loader: batches of images.
        train_images: to fit scores on, at most 20,000 of them; None leaves those out that need them.

    Returns:
        The report is {"num_images", the unknown ones, "scores": {name in SCORES: as
        `detection_metrics` returns them, or None without training images}, "rejected": {"known",
        "unknown"}, the shares that the model's own threshold rejects, None without one}.
    """

    def outputs(images: Dataset, what: str) -> Outputs:
        return outputs_of(model, loader(images), accelerator, what)

    fitted_on = train_images and outputs(balanced_sample(train_images, FITTED_IMAGES, seed=0), "fitting of scores")
    both = outputs(known_images, "known images"), outputs(unknown_images, "unknown images")
    prototypes, config, rejected = model.prototypes.detach().cpu(), model.config, None
    scores, own_name, threshold = fit_scores(prototypes, fitted_on), config.rejection_score, config.rejection_threshold
    if config.rejection_sizes:  # as the model holds it, whose threshold is no other's
        scores[own_name] = score_by(own_name, prototypes, (model.rejection_axes, model.rejection_centers))
    known, unknown = ({name: score(images) for name, score in scores.items()} for images in both)
    if threshold is not None:
        own = {"known": known[own_name], "unknown": unknown[own_name]}
        rejected = {what: (scores < threshold).double().mean().item() for what, scores in own.items()}
    metrics = {name: detection_metrics(known[name], unknown[name]) if name in known else None for name in SCORES}
    return Detection(known, unknown, {"num_images": len(unknown_images), "scores": metrics, "rejected": rejected})


def compare_scores(known: Outputs, prototypes: Tensor, unknown: Outputs | None = None) -> dict[str, dict[str, float]]:
    """What each score in `SCORES` is worth, on images that the model was not trained on. What it needs beside the
    model is fitted on one half of the known images and measured on the other.

    Without unknown images some classes are taken for unknown, in turn: to the scores they do not exist, neither as
    prototypes and logits nor among the images that they are fitted on. But the network has learned to set them apart,
    so that figures are better than for new classes, by some 20 points of AUROC where that was measured; and of the
    scores that are fitted, Mahalanobis and ViM come out last, which are ahead for new classes.

    Args:
        known, unknown: labels of the unknown ones are not looked at.
        prototypes: (K, D), unit rows.

    Returns:
        {name: as `detection_metrics`}, means over groups and halves; {} where there is nothing to leave out.
    """
    known, unknown = (x and x[:: -(-len(x.labels) // COMPARED_IMAGES)] for x in (known, unknown))
    group = torch.arange(len(prototypes)) % GROUPS  # of each class
    found = []
    for left_out in [-1] if unknown else group.unique().tolist():
        stays = group != left_out  # (K,) bool
        images = Outputs(known.embeddings, known.logits[:, stays], known.labels)
        inside, outside = images[stays[known.labels]], unknown or images[~stays[known.labels]]
        if len(inside.labels) < 2 or not len(outside.labels):
            continue
        first, second = halves(inside)
        for fitted_on, measured in ((first, second), (second, first)):
            scores = fit_scores(prototypes[stays], fitted_on)
            found.append({name: detection_metrics(of(measured), of(outside)) for name, of in scores.items()})
    if not found:
        return {}
    return {name: {key: fmean(of[name][key] for of in found) for key in found[0][name]} for name in SCORES}


def best_score(compared: Mapping[str, Mapping[str, float]]) -> str:
    """Of the largest AUROC; the cosine, whose threshold is an angle, unless another is better by more than a point."""
    return max(compared, key=lambda name: compared[name]["auroc"] + MARGIN * (name == "cosine"), default="cosine")


def detection_metrics(known: Tensor, unknown: Tensor) -> dict[str, float]:
    """What a score is worth that is larger for known images; all metrics are in [0, 1].

    Args:
        known, unknown: (N,) and (U,), finite.

    Returns:
        {"auroc": the probability that a known image scores higher than an unknown one, ties half;
        "aupr": average precision with the known images as the positive class, and "aupr_unknown"
        with the unknown ones (AUPR-In and AUPR-Out in the literature); "fpr95": the share of
        unknown images accepted where at least 95 % of the known ones are}.

    Example:
        >>> detection_metrics(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.5]))["auroc"]
        0.75
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    truth = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))]).numpy()
    scores = torch.cat([known, unknown]).double().numpy()
    accepted_unknown, accepted_known, _ = roc_curve(truth, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(truth, scores)),
        "aupr": float(average_precision_score(truth, scores)),
        "aupr_unknown": float(average_precision_score(1 - truth, -scores)),
        "fpr95": float(accepted_unknown[accepted_known >= KNOWN_ACCEPTED].min()),
    }


def format_detection(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    title = f"known against {report['dataset']} ({report['num_images']} images)"
    rows = [[title, "AUROC", "AUPR", "AUPR unknown", "FPR95"]]
    for name, metrics in report["scores"].items():
        cells = ["-"] * 4 if metrics is None else [f"{value:.2%}" for value in metrics.values()]
        rows.append([SCORES[name] + " (no training images)" * (metrics is None), *cells])
    if report["rejected"] is None:
        return format_table(rows)
    shares = ", ".join(f"{share:.2%} of the {name}" for name, share in report["rejected"].items())
    return f'{format_table(rows)}\n"unknown" by the model\'s own threshold: {shares} images'
