"""How well images of none of the classes are told from known ones, by four scores side by side.

Known images are the positive class everywhere: a score is larger for what looks known.
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
from ..prototypes import nearest_cosines
from .arguments import OpenSetArguments

SCORES = {
    "cosine": "cosine to the nearest prototype", "max_softmax": "maximum softmax",
    "energy": "energy", "mahalanobis": "Mahalanobis",
}  # fmt: skip
KNOWN_ACCEPTED = 0.95  # where the false positive rate is read
COVARIANCE_IMAGES = 20_000  # of the training images, balanced by class: bounded memory


@dataclass(frozen=True)
class Detection:
    """Scores of known and of unknown images, and what they are worth."""

    known: dict[str, Tensor]  # {name in SCORES: (N,)}, without "mahalanobis" where it is missing
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


def detect_unknown(
    model: ProtoSphereForImageClassification, loader: Callable[[Dataset], DataLoader],
    known_images: Dataset, unknown_images: Dataset, train_images: Dataset | None,
    accelerator: Accelerator,
) -> Detection:  # fmt: skip
    """Score known images and unknown ones.

    Maximum softmax and energy (Hendrycks & Gimpel 2017, Liu et al. 2020) are those of the logits
    that the model returns, with its calibration. Mahalanobis distances are those of the embeddings,
    with one covariance for all classes, of at most 20,000 training images.

    Args:
        loader: batches of images.
        train_images: to fit Mahalanobis distances on; None leaves them out.

    Returns:
        The report is {"num_images", the unknown ones, "scores": {name in SCORES: as
        `detection_metrics` returns them, or None without training images}, "rejected": {"known",
        "unknown"}, the shares that the model's own threshold rejects, None without one}.
    """
    distances, prototypes = None, model.prototypes.detach()
    if train_images is not None:
        sample = balanced_sample(train_images, COVARIANCE_IMAGES, seed=0)
        batches = predictions(model, loader(sample), accelerator, "covariance")
        embeddings, labels = zip(*((embeddings.cpu(), y.cpu()) for embeddings, _, y in batches))
        distances = ClassDistances.fit(torch.cat(embeddings), torch.cat(labels))

    def scores(images: Dataset, description: str) -> dict[str, Tensor]:
        parts = []
        for embeddings, logits, _ in predictions(model, loader(images), accelerator, description):
            found = {
                "cosine": nearest_cosines(embeddings, prototypes),
                # In double precision: float32 cannot tell two scores near 1 apart.
                "max_softmax": logits.double().softmax(-1).amax(-1),
                "energy": logits.double().logsumexp(-1),  # the negative free energy
            }
            if distances is not None:
                found["mahalanobis"] = -distances.nearest(embeddings.cpu())
            parts.append({name: values.cpu() for name, values in found.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    known, unknown = scores(known_images, "known images"), scores(unknown_images, "unknown images")
    metrics: dict[str, dict[str, float] | None] = dict.fromkeys(SCORES)
    metrics |= {name: detection_metrics(known[name], unknown[name]) for name in known}
    rejected, threshold = None, model.config.rejection_threshold
    if threshold is not None:
        shares = [(of["cosine"] < threshold).double().mean().item() for of in (known, unknown)]
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


@dataclass(frozen=True)
class ClassDistances:
    """Mahalanobis distances to the class means, under one covariance (Lee et al. 2018).

    The covariance is Ledoit and Wolf's: at neural collapse the plain one has no inverse.
    """

    whitened_means: Tensor  # (C, D) of the classes that occur
    whitening: Tensor  # (D, D) W with W Wᵀ = Σ⁻¹

    @classmethod
    def fit(cls, embeddings: Tensor, labels: Tensor) -> "ClassDistances":
        """From embeddings (N, D) and labels (N,) of known images."""
        from sklearn.covariance import LedoitWolf

        embeddings = embeddings.double()
        classes, index = labels.unique(return_inverse=True)
        sums = torch.zeros(len(classes), embeddings.shape[1], dtype=torch.float64)
        means = sums.index_add_(0, index, embeddings) / index.bincount()[:, None]
        residuals = (embeddings - means[index]).numpy()
        covariance = LedoitWolf(assume_centered=True).fit(residuals).covariance_
        # Σ = L Lᵀ, so that Σ⁻¹ = W Wᵀ with W = L⁻ᵀ.
        whitening = torch.linalg.cholesky(torch.from_numpy(covariance)).inverse().T
        return cls(means @ whitening, whitening)

    def nearest(self, embeddings: Tensor) -> Tensor:
        """(M,) squared distances of embeddings (M, D) to the nearest class mean, in float64."""
        whitened = embeddings.double() @ self.whitening
        return torch.cdist(whitened, self.whitened_means).amin(-1).square()


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
