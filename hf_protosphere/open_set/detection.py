"""How well images of none of the classes are told from known ones, by all scores side by side.

Known images are the positive class everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
from .scores import SCORES, Outputs, fit_scores

KNOWN_ACCEPTED = 0.95  # where the false positive rate is read
FITTED_IMAGES = 20_000  # of the training images, balanced by class: bounded memory


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
        raise DataError(
            f"--ood_split {name}: {arguments.ood_dataset} has no such split, but "
            f"{', '.join(loaded)}: give one of them."
        )
    column = find_image_column(loaded[name], arguments.ood_image_column, "--ood_image_column")
    split = two_columns(loaded[name], column, None, arguments.ood_dataset)
    if arguments.check_images:
        split, _ = without_bad_images(split, "unknown", arguments.on_bad_image)
    if len(split) == 0:
        raise DataError(f"split {name!r} of --ood_dataset {arguments.ood_dataset} has no images.")
    split = split.add_column("label", [-1] * len(split))
    limit = arguments.max_eval_samples
    return split if limit is None else balanced_sample(split, limit, 0)


def outputs_of(
    model: ProtoSphereForImageClassification, loader: DataLoader, accelerator: Accelerator, description: str
) -> Outputs:
    """Of all images, on the CPU, the same on every process."""
    parts = zip(*((x.cpu() for x in batch) for batch in predictions(model, loader, accelerator, description)))
    return Outputs(*map(torch.cat, parts))


def detect_unknown(
    model: ProtoSphereForImageClassification, loader: Callable[[Dataset], DataLoader],
    known_images: Dataset, unknown_images: Dataset, train_images: Dataset | None,
    accelerator: Accelerator,
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
    fitted_on = None
    if train_images is not None:
        sample = balanced_sample(train_images, FITTED_IMAGES, seed=0)
        fitted_on = outputs_of(model, loader(sample), accelerator, "fitting of scores")
    by_name = fit_scores(model.prototypes.detach().cpu(), fitted_on)

    def scores(images: Dataset, description: str) -> dict[str, Tensor]:
        parts = []
        for outputs in predictions(model, loader(images), accelerator, description):
            embeddings, logits, _ = (x.cpu() for x in outputs)
            parts.append({name: score(embeddings, logits) for name, score in by_name.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    known, unknown = scores(known_images, "known images"), scores(unknown_images, "unknown images")
    metrics: dict[str, dict[str, float] | None] = dict.fromkeys(SCORES)
    metrics |= {name: detection_metrics(known[name], unknown[name]) for name in known}
    rejected, threshold = None, model.config.rejection_threshold
    if threshold is not None:
        shares = [(of[model.config.rejection_score] < threshold).double().mean().item() for of in (known, unknown)]
        rejected = dict(zip(("known", "unknown"), shares))
    report = {"num_images": len(unknown["cosine"]), "scores": metrics, "rejected": rejected}
    return Detection(known, unknown, report)


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
        if metrics is None:
            rows.append([f"{SCORES[name]} (no training images)", "-", "-", "-", "-"])
        else:
            rows.append([SCORES[name], *(f"{value:.2%}" for value in metrics.values())])
    lines = [format_table(rows)]
    if report["rejected"] is not None:
        shares = (f"{share:.2%} of the {name}" for name, share in report["rejected"].items())
        lines.append(f'"unknown" by the model\'s own threshold: {", ".join(shares)} images')
    return "\n".join(lines)
