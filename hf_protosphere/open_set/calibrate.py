"""What `protosphere calibrate` does: a threshold for "unknown", and scores that can be trusted."""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.dataset import ImageDataset, load_data
from ..data.labels import some
from ..data.loaders import evaluation_loader
from ..errors import ArgumentError, errors_in_one_line
from ..inference.predictions import predictions
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots.table import format_table
from ..plots.text import say
from ..prototypes import nearest_cosines
from ..runs.checkpoints import save_model
from ..runs.files import whole_file, writable_folder, write_json
from ..runs.finished_run import read_run_arguments
from ..runs.folders import CALIBRATION_FILES, MODEL_FILES, held_for_all
from ..runs.loading import load_classifier
from ..runs.processes import check_processes, main_process_first, own_accelerate_state
from . import confidence
from .arguments import CalibrateArguments
from .plots import plot_reliability

CALIBRATION, PICTURE = CALIBRATION_FILES


@own_accelerate_state()
def calibrate(arguments: CalibrateArguments) -> dict[str, Any]:
    """Choose a checkpoint's rejection threshold and temperature, and save it with them.

    Returns:
        The report, as calibration.json holds it: "source" (the images, in words), "num_images",
        "classes_without_images" (of which nothing is promised), "rejection_threshold" (a cosine),
        "false_rejection_rate", "rejected" (the share), "accuracy", "accuracy_of_accepted",
        "calibration_temperature", "has_best_temperature", and "expected_calibration_error" and
        "negative_log_likelihood", each {"before", "after"}.

    Raises:
        ArgumentError: no images but those of training, or too few; a folder that cannot be written.
    """
    if arguments.output_dir is None and not Path(arguments.model).is_dir():
        raise ArgumentError(
            f"--output_dir is needed for --model {arguments.model}, which is no folder here to "
            "save the calibrated model in."
        )
    folder = writable_folder(arguments.output_dir or arguments.model, "--output_dir")
    accelerator = Accelerator()
    check_processes(accelerator)
    with held_for_all(accelerator, folder, "--output_dir", (*MODEL_FILES, *CALIBRATION_FILES)):
        return _calibrate(arguments, accelerator, folder)


def _calibrate(arguments: CalibrateArguments, accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    model, processor = load_classifier(arguments.model)
    with main_process_first(accelerator):
        images, source = calibration_images(arguments, model)
    config = model.config
    config.forget_calibration()  # an earlier one plays no part
    loader = evaluation_loader(
        images.splits["validation"], processor, arguments.batch_size, arguments.num_workers,
        accelerator,
    )  # fmt: skip
    prototypes = model.to(accelerator.device).prototypes.detach()
    parts = [
        (nearest_cosines(embeddings, prototypes).cpu(), logits.cpu(), labels.cpu())
        for embeddings, logits, labels in predictions(model, loader, accelerator, "calibration")
    ]
    cosines, logits, labels = map(torch.cat, zip(*parts))  # (N,), (N, K), (N,), on every process
    rate = arguments.false_rejection_rate
    then = "Give a larger rate, or --split with more images."
    with errors_in_one_line(f"--false_rejection_rate {rate}", then):
        threshold = confidence.rejection_threshold(cosines, rate)
    temperature = confidence.fit_temperature(logits, labels)
    config.rejection_threshold = threshold
    config.false_rejection_rate = rate
    config.calibration_temperature = temperature or 1.0

    right, accepted = logits.argmax(-1) == labels, cosines >= threshold
    both = {"before": logits, "after": logits / config.calibration_temperature}
    bins = {when: confidence.reliability(scores, labels) for when, scores in both.items()}
    report = {
        "model": arguments.model,
        "source": source,
        "num_images": len(labels),
        "classes_without_images": images.classes_without_images("validation"),
        "rejection_threshold": threshold,
        "false_rejection_rate": rate,
        "rejected": (~accepted).double().mean().item(),
        "accuracy": right.double().mean().item(),
        "accuracy_of_accepted": right[accepted].double().mean().item(),
        "calibration_temperature": config.calibration_temperature,
        "has_best_temperature": temperature is not None,
        "expected_calibration_error": {when: of_bins.expected_calibration_error for when, of_bins in bins.items()},
        "negative_log_likelihood": {
            when: confidence.negative_log_likelihood(scores, labels) for when, scores in both.items()
        },
    }
    if accelerator.is_main_process:
        save_model(model.cpu(), processor, folder)
        _write(report, bins, folder)
    accelerator.wait_for_everyone()
    return report


def calibration_images(
    arguments: CalibrateArguments, model: ProtoSphereForImageClassification
) -> tuple[ImageDataset, str]:
    """Images that the model was not trained on, as split "validation", and what they are in words.

    Those of `--split`; else of the split that the run in the folder validated on; else those that
    it held out of its training split, found again by its arguments.yaml; else of a split called
    validation, valid, val or dev.

    Raises:
        ArgumentError: there are none but those of training.
    """
    run = read_run_arguments(arguments.model)
    split = arguments.split or (run.validation_split if run else None)
    fraction = run.validation_fraction if run and split is None else 0.0
    train_split = run.train_split if run else arguments.train_split
    # What it held out is counted as it was then.
    of_run = ("train_split", "on_bad_image", "check_images")[: 3 if fraction else 1] if run else ()
    for name in of_run:
        if name in arguments.given and getattr(arguments, name) != getattr(run, name):
            raise ArgumentError(
                f"--{name} {getattr(arguments, name)} does not fit the run in --model "
                f"{arguments.model}, which had {getattr(run, name)}: leave it out."
            )
    if split == train_split:
        raise _trained_on(split)
    given = run if fraction else arguments
    images = load_data(
        arguments, validation_split=split, validation_fraction=fraction,
        image_column=arguments.image_column or given.image_column,
        label_column=arguments.label_column or given.label_column,
        **{name: getattr(given, name) for name in ("train_split", "on_bad_image", "check_images")},
        seed=run.seed if run else 0, need_train=fraction > 0,
        need_all_classes=False,  # some may have been added to those of the run
        label_names=model.config.class_names, roles=["validation"],
        flags={"validation": "--split"},
    )  # fmt: skip
    if "validation" not in images.splits:
        reason = "has no arguments.yaml that tells which training images it held out"
        if run:
            reason = "held none of its training images out"
        raise ArgumentError(
            f"--dataset_name {arguments.dataset_name} has no validation split, and --model "
            f"{arguments.model} {reason}: give --split, one that was not trained on."
        )
    source = images.sources["validation"]
    if source != train_split:
        return images, source
    if not fraction:  # --train_split names a split that is called validation
        raise _trained_on(source)
    words = f"held out of {source} by the run"
    if run.dataset_name != arguments.dataset_name:  # the same one by another path, one hopes
        words += f", of {run.dataset_name}"
    return images, words


def _trained_on(split: str) -> ArgumentError:
    return ArgumentError(
        f"--split {split}: images of training are nearer to their prototypes than others, and "
        "tell nothing of those. Give a split that was not trained on."
    )


def format_calibration(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    degrees = math.degrees(math.acos(report["rejection_threshold"]))
    error, likelihood = report["expected_calibration_error"], report["negative_log_likelihood"]
    temperature = f"{report['calibration_temperature']:.4f}"
    if not report["has_best_temperature"]:
        temperature += " (none is best: all right, or no better than chance)"
    rows = [
        [f"{report['source']} ({report['num_images']} images)", "value"],
        ["unknown below the cosine", f"{report['rejection_threshold']:.6f}"],
        ["unknown beyond the angle", f"{degrees:.2f}°"],
        ["target false rejection rate", f"{report['false_rejection_rate']:.2%}"],
        ["rejected", f"{report['rejected']:.2%}"],
        ["accuracy", f"{report['accuracy']:.2%}"],
        ["accuracy of the accepted", f"{report['accuracy_of_accepted']:.2%}"],
        ["temperature", temperature],
        *([f"expected calibration error {when}", f"{e:.2%}"] for when, e in error.items()),
        *([f"negative log-likelihood {when}", f"{loss:.4f}"] for when, loss in likelihood.items()),
    ]
    return format_table(rows)


def _write(report: dict[str, Any], bins: dict[str, confidence.Reliability], folder: Path) -> None:
    write_json(folder / CALIBRATION, report)
    after = f"After, temperature {report['calibration_temperature']:.3f}"
    with whole_file(folder / PICTURE) as unfinished:
        plot_reliability({"Before": bins["before"], after: bins["after"]}, unfinished)
    say(format_calibration(report))
    if missing := report["classes_without_images"]:
        say(f"There was no image of {some(missing)}: how many of theirs are rejected is unknown.")
    for name in ("config.json", CALIBRATION, PICTURE):
        say(folder / name)
