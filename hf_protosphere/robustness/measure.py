"""How often a classifier errs on corrupted images, by itself and beside a baseline; as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader
from torchvision.transforms.functional import normalize
from transformers import BaseImageProcessor

from ..data.labels import some
from ..errors import ArgumentError
from ..inference.predictions import inferred
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots.table import format_table
from .corrupted_data import ResizedImages, input_size, make_corrupted, read_corrupted
from .corruptions import SEVERITIES, parse_corruptions, parse_severities


def corruption_errors(
    model: ProtoSphereForImageClassification, split: Dataset, processor: BaseImageProcessor, accelerator: Accelerator,
    *, corruptions: str | Sequence[str] = "all", severities: str | Sequence[int] = SEVERITIES,
    baseline: tuple[ProtoSphereForImageClassification, BaseImageProcessor] | None = None,
    corrupted_dataset: str | Path | None = None, max_images: int | None = None,
    batch_size: int = 256, num_workers: int = 2, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Top-1 errors on a split's images, clean and under corruptions, each image counted once.

    The images are resized and cropped first, then corrupted: as ImageNet-C was made.

    Args:
        model: on the accelerator's device.
        split: with columns "image" and "label", a ClassLabel of the model's classes.
        corruptions, severities: as `parse_corruptions` and `parse_severities` read them.
        baseline: model and image processor of the classifier to compare with, of the same classes. It sees the same
            corrupted images; at another input size those of the same seeds.
        corrupted_dataset: read corrupted images from this folder, as `read_corrupted` does, instead of making them.
        max_images: of each corruption and severity in that folder.
        seed: the same gives the same images, whatever the batches, workers and processes.

    Returns:
        {"num_images" (clean ones), "severities", "clean_error", "errors" ({corruption: [error at each severity]}), and
        the metrics of `corruption_metrics`; with `corrupted_dataset` "num_corrupted_images" and "num_resized", how
        many of them had another size; with a baseline the same of it as "baseline"}. Errors are in [0, 1].

    Raises:
        ArgumentError: an unknown corruption or severity, too small images, no library, or a baseline of other classes.
        DataError: the folder lacks corruptions, or has classes that the model does not know.
    """
    corruptions, severities = parse_corruptions(corruptions), parse_severities(severities)
    names = list(split.features["label"].names)
    classifiers = [MeasuredClassifier("the model", model, processor, names)]
    if baseline is not None:
        baseline[0].to(accelerator.device)
        classifiers.append(MeasuredClassifier("--baseline", *baseline, names))
    shared = all(c.resizing == classifiers[0].resizing for c in classifiers)
    reports = []
    for together in [classifiers] if shared else [[c] for c in classifiers]:
        processor = together[0].processor
        clean = ResizedImages(split, processor)
        if corrupted_dataset is None:
            corrupted = make_corrupted(clean, corruptions, severities, seed)
        else:
            corrupted = read_corrupted(corrupted_dataset, names, processor, corruptions, severities, max_images)
        errors, resized = _errors(together, ConcatDataset([clean, *corrupted]), accelerator, batch_size, num_workers)
        counts: dict[str, Any] = {"num_images": len(clean), "severities": severities}
        if corrupted_dataset is not None:
            counts["num_corrupted_images"] = sum(map(len, corrupted))
            counts["num_resized"] = resized - len(clean)
        for clean_error, *rest in errors:  # each corruption at each severity
            by_name = dict(zip(corruptions, map(list, zip(*[iter(rest)] * len(severities)))))
            reports.append(counts | {"clean_error": clean_error, "errors": by_name})
    report, *others = reports
    for other in others:
        report["baseline"] = other | corruption_metrics(other)
    return report | corruption_metrics(report, *others)


def corruption_metrics(report: dict[str, Any], baseline: dict[str, Any] | None = None) -> dict[str, Any]:
    """The means over corruptions c and severities s of errors E, beside a baseline's B.

    - "mean_corruption_error": mean_c mean_s E_cs, a plain error in [0, 1].
    - "errors_over_baseline": Σ_s E_cs / Σ_s B_cs for each c, the benchmark's corruption error CE.
    - "mean_corruption_error_over_baseline": its mean over c, the benchmark's mCE. 1 is as bad as the baseline.
    - "relative_mean_corruption_error_over_baseline": the benchmark's relative mCE, mean_c Σ_s (E_cs − E_clean) / Σ_s
      (B_cs − B_clean), from what each loses to its own clean error.

    The benchmark's baseline is an AlexNet: only with it are the metrics those of its papers.

    Args:
        report, baseline: with "clean_error" and "errors", as `corruption_errors` returns them.

    Returns:
        The first alone without a baseline. What a baseline leaves undefined, because it makes no
        error or loses nothing under a corruption, is None, and "undefined" says why, by name.
    """
    errors = report["errors"]
    metrics: dict[str, Any] = {"mean_corruption_error": fmean(map(fmean, errors.values()))}
    if baseline is None:
        return metrics

    def ratios(clean: float, baseline_clean: float) -> dict[str, float | None]:
        found = {}
        for c in errors:
            ours = sum(error - clean for error in errors[c])
            theirs = sum(error - baseline_clean for error in baseline["errors"][c])
            found[c] = None if theirs <= 1e-12 else ours / theirs  # differences miss 0 by rounding
        return found

    over, lost = ratios(0, 0), ratios(report["clean_error"], baseline["clean_error"])
    undefined = {}
    for name, by_corruption, what in (
        ("mean_corruption_error_over_baseline", over, "makes no error"),
        ("relative_mean_corruption_error_over_baseline", lost, "is no worse than on clean images"),
    ):
        without = [c for c, ratio in by_corruption.items() if ratio is None]
        metrics[name] = None if without else fmean(by_corruption.values())
        if without:
            undefined[name] = f"the baseline {what} under {', '.join(without)}"
    metrics["errors_over_baseline"] = over
    return metrics | ({"undefined": undefined} if undefined else {})


@dataclass(frozen=True)
class MeasuredClassifier:
    """A classifier of images at its input size, in uint8, with labels in the images' numbering.

    Raises:
        ArgumentError: the model's classes are not those of the labels.
    """

    name: str  # for messages
    model: ProtoSphereForImageClassification
    processor: BaseImageProcessor
    class_names: list[str]  # of the labels

    def __post_init__(self) -> None:
        if alone := sorted(set(self.model.config.class_names) ^ set(self.class_names)):
            raise ArgumentError(f"{self.name} must have the classes of the images; in one only: {some(alone)}.")

    @property
    def resizing(self) -> tuple:
        """Equal for classifiers whose images are resized and cropped alike."""
        return input_size(self.processor), dict(self.processor.size), self.processor.resample

    @cached_property
    def label_of_output(self) -> Tensor:
        """(K,): classifiers may number the same classes differently."""
        labels = [self.class_names.index(name) for name in self.model.config.class_names]
        return torch.tensor(labels, device=self.model.device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(M, 3, S, S) uint8 → (M,) labels."""
        pixels = normalize(pixels / 255, self.processor.image_mean, self.processor.image_std)
        return self.label_of_output[self.model(pixels).logits.argmax(-1)]


def _errors(
    classifiers: list[MeasuredClassifier], images: ConcatDataset, accelerator: Accelerator,
    batch_size: int, num_workers: int,
) -> tuple[list[list[float]], int]:  # fmt: skip
    """The error of each classifier on each part of the images, and how many were resized."""

    def compute(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = [classifier(batch["pixel_values"]) for classifier in classifiers]
        return torch.stack(labels, 1) != batch["labels"][:, None], batch["resized"]

    models = [classifier.model for classifier in classifiers]
    loader = accelerator.prepare_data_loader(DataLoader(images, batch_size, num_workers=num_workers))
    batches = inferred(models, loader, accelerator, "corruptions", compute)
    wrong, resized = zip(*((errs.cpu(), int(was.sum())) for errs, was in batches))
    # In the order of the images: each part's are together.
    parts = torch.cat(wrong).split([len(part) for part in images.datasets])
    return torch.stack([part.double().mean(0) for part in parts], 1).tolist(), sum(resized)


def format_robustness(report: dict[str, Any]) -> str:
    """Errors on corrupted images as `corruption_errors` returns them: a row for each corruption."""
    baseline, severities = report.get("baseline") or {}, report["severities"]
    over, blank = report.get("errors_over_baseline", {}), [None] * len(severities)
    table = [["(clean images)", *blank, report["clean_error"], baseline.get("clean_error"), None]]
    for name, errors in report["errors"].items():
        means = [sum(of["errors"][name]) / len(severities) for of in (report, baseline) if of]
        table.append([name, *errors, *means, over.get(name)])
    mean = "mean_corruption_error"
    table.append([f"mean of the {len(report['errors'])}", *blank, report[mean], baseline.get(mean),
                  report.get(f"{mean}_over_baseline")])  # fmt: skip
    notes = ["Mean: over severities, then over corruptions; not mCE, which is over a baseline."]
    if baseline:
        relative = report[f"relative_{mean}_over_baseline"]
        table.append(["mean of what is lost to clean images", *blank, None, None, relative])
        notes += [
            "Over baseline: the sum over severities over the baseline's, then the mean (mCE, where "
            "the baseline is AlexNet);",
            "in the last row after taking off the clean errors (relative mCE). 100 % is as bad as "
            f"the baseline{', ' + baseline['model'] if 'model' in baseline else ''}.",
        ]
    notes += [f"Undefined: {reason}." for reason in report.get("undefined", {}).values()]
    if "num_resized" in report:
        resized, all_ = report["num_resized"], report["num_corrupted_images"]
        stayed = f"{all_ - resized} had the model's input size and stayed as they are"
        notes.append(f"Of {all_} images that were corrupted already {stayed}, {resized} were resized and cropped.")
    header = ["error under corruption", *(f"severity {s}" for s in severities), "mean"]
    header += ["baseline", "over baseline"] if baseline else []
    rows = [[name, *("" if v is None else f"{v:.1%}" for v in values)] for name, *values in table]
    return "\n".join([format_table([row[: len(header)] for row in [header, *rows]]), *notes])
