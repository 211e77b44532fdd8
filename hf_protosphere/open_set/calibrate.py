"""What `protosphere calibrate` does: a threshold for "unknown", sets of classes, and scores that can be trusted."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..configuration_protosphere import FITTED_SCORES, REJECTION_SCORES
from ..data.dataset import ImageDataset, load_data
from ..data.labels import labels_of, some
from ..data.loaders import evaluation_loader
from ..errors import ArgumentError, errors_in_one_line
from ..inference.features import passed_once
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..pipeline_protosphere import nonconformity, prediction_sets
from ..plots.table import format_table
from ..plots.text import say
from ..runs.checkpoints import save_model
from ..runs.files import whole_file, writable_folder, write_json
from ..runs.finished_run import read_run_arguments
from ..runs.folders import CALIBRATION_FILES, MODEL_FILES, held_for_all
from ..runs.loading import load_classifier
from ..runs.processes import check_processes, main_process_first, own_accelerate_state
from . import confidence
from .arguments import CalibrateArguments
from .detection import best_score, compare_scores, format_detection, load_unknown_images, outputs_of
from .plots import plot_reliability
from .scores import FITTED, SCORES, Outputs, halves, score_by

CALIBRATION, PICTURE = CALIBRATION_FILES
WHAT_A_RUN_HELD_OUT = ("train_split", "on_bad_image", "check_images", "labels", "exclude")  # follows from them


@own_accelerate_state()
def calibrate(arguments: CalibrateArguments) -> dict[str, Any]:
    """Choose a checkpoint's temperature, how it knows unknown images, and its sets of classes; save it with them.

    Returns:
        The report, as calibration.json holds it: "source" (the images, in words), "num_images",
        "classes_without_images" (of which nothing is promised), "rejection_threshold" (of the "rejection_score"),
        "false_rejection_rate", "rejected" (the share), "accuracy", "accuracy_of_accepted", "calibration_temperature",
        "has_best_temperature", "expected_calibration_error" and "negative_log_likelihood", each {"before", "after"};
        with --score auto "ood", as `detect_unknown` reports it (without a data set, of classes left out); and with
        --coverage "prediction_sets": {"set_score", "set_coverage", "set_thresholds", "mean_size" (of these images)}.

    Raises:
        ArgumentError: no images but those of training, or too few; a folder that cannot be written.
    """
    if arguments.output_dir is None and not Path(arguments.model).is_dir():
        raise ArgumentError(f"--model {arguments.model} is no folder here: give --output_dir, for the result.")
    folder = writable_folder(arguments.output_dir or arguments.model, "--output_dir")
    accelerator = Accelerator()
    check_processes(accelerator)
    with held_for_all(accelerator, folder, "--output_dir", (*MODEL_FILES, *CALIBRATION_FILES)):
        return _calibrate(arguments, accelerator, folder)


def _calibrate(arguments: CalibrateArguments, accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    model, processor = load_classifier(arguments.model)
    with main_process_first(accelerator):
        images, source = calibration_images(arguments, model)
        others = None if arguments.ood_dataset is None else load_unknown_images(arguments)
    split, config = images.splits["validation"], model.config
    # On zeros: so that too few images are said before they are looked at.
    zeros, half = torch.zeros(len(split)), arguments.score in FITTED_SCORES
    _thresholds(arguments, config.class_names, zeros[half :: 1 + half], zeros, torch.tensor(labels_of(split)))
    model.forget_calibration()  # an earlier one plays no part
    model.to(accelerator.device)

    splits = {"calibration": split} | ({} if others is None else {"unknown": others})
    network, splits = passed_once(model, processor, splits, accelerator, arguments)

    def outputs(what: str) -> Outputs:
        loader = evaluation_loader(splits[what], processor, arguments.batch_size, arguments.num_workers, accelerator)
        return outputs_of(network, loader, accelerator, what)[:]

    known, unknown = outputs("calibration"), outputs("unknown") if others else None
    undivided, labels = known.logits, known.labels
    temperature = confidence.fit_temperature(undivided, labels)
    config.calibration_temperature = temperature or 1.0
    known, unknown = (x and replace(x, logits=x.logits / config.calibration_temperature) for x in (known, unknown))
    both = {"before": undivided, "after": known.logits}
    bins = {when: confidence.reliability(logits, labels) for when, logits in both.items()}
    likelihoods = {when: confidence.negative_log_likelihood(logits, labels) for when, logits in both.items()}
    report = {
        "model": arguments.model, "source": source, "num_images": len(labels),
        "classes_without_images": images.classes_without_images("validation"),
        **_decide(model, known, unknown, arguments),
        "calibration_temperature": config.calibration_temperature, "has_best_temperature": temperature is not None,
        "expected_calibration_error": {when: of_bins.expected_calibration_error for when, of_bins in bins.items()},
        "negative_log_likelihood": likelihoods,
    }  # fmt: skip
    if accelerator.is_main_process:
        save_model(model.cpu(), processor, folder)
        _write(report, bins, folder, arguments.json)
    accelerator.wait_for_everyone()
    return report


def _decide(
    model: ProtoSphereForImageClassification, known: Outputs, unknown: Outputs | None, arguments: CalibrateArguments
) -> dict[str, Any]:
    """Give the model its score and threshold for unknown images, and its sets; what they are like."""
    config, prototypes, labels = model.config, model.prototypes.detach().cpu(), known.labels
    compared = compare_scores(known, prototypes, unknown) if arguments.score == "auto" else {}
    name = arguments.score
    if name == "auto":
        # What has to be fitted takes unknown images to tell, images of each class, and half of all for the promise.
        enough = unknown is not None and len(halves(known)[0].labels.unique()) == config.num_labels
        enough = enough and len(labels) // 2 >= 1 / arguments.false_rejection_rate - 1
        name = best_score({of: compared[of] for of in compared if enough or of not in FITTED_SCORES})
    first, judged = halves(known) if name in FITTED_SCORES else (None, known)
    if first is not None:
        model.hold_score(name, *FITTED[name](first))
    held = score_by(name, prototypes, (model.rejection_axes, model.rejection_centers))
    scores = held(judged).clamp(*REJECTION_SCORES[name])
    misfit = nonconformity(known.logits, arguments.sets).gather(1, labels[:, None])[:, 0]
    room = 1e-4 * scores.abs() if first is not None else 0.0  # what axes make of float32's rounding
    threshold, of_sets = _thresholds(arguments, config.class_names, scores - room, misfit, labels)
    rejection = {"rejection_score": name, "rejection_threshold": threshold}
    rejection |= {"false_rejection_rate": arguments.false_rejection_rate}
    sets = {"set_score": arguments.sets, "set_coverage": arguments.coverage, "set_thresholds": of_sets}
    config.update(rejection | (sets if of_sets else {}))
    accepted = scores >= threshold
    right, right_of_judged = (x.logits.argmax(-1) == x.labels for x in (known, judged))
    others = {"dataset": arguments.ood_dataset, "num_images": len((unknown or known).labels)}
    if of_sets:
        sets["mean_size"] = prediction_sets(known.logits, config).sum(1).double().mean().item()
    return rejection | {
        "rejected": (~accepted).double().mean().item(),
        "accuracy": right.double().mean().item(),
        "accuracy_of_accepted": right_of_judged[accepted].double().mean().item(),
        "ood": others | {"scores": compared, "rejected": None} if compared else None,
        "prediction_sets": sets if of_sets else None,
    }  # fmt: skip


def _thresholds(
    arguments: CalibrateArguments, class_names: list[str], scores: Tensor, misfit: Tensor, labels: Tensor
) -> tuple[float, list[float]]:
    """Of scores (N,), and of sets: none, one for all classes, or one for each.

    Raises:
        ArgumentError: too few images for what is promised.
    """
    rate, coverage = arguments.false_rejection_rate, arguments.coverage
    promises = {f"--false_rejection_rate {rate}": (1 - rate, -scores)}
    if arguments.class_wise:
        classes = enumerate(class_names)
        promises |= {
            f"--coverage {coverage} of class {name!r}": (coverage, misfit[labels == c]) for c, name in classes
        }
    elif coverage is not None:
        promises[f"--coverage {coverage}"] = coverage, misfit
    found = []
    for promise, (share, values) in promises.items():
        with errors_in_one_line(promise, "Promise less, or give --split with more images."):
            found.append(confidence.conformal_threshold(values, share))
    return -found[0], found[1:]


def calibration_images(
    arguments: CalibrateArguments, model: ProtoSphereForImageClassification
) -> tuple[ImageDataset, str]:
    """Images that the model was not trained on, as split "validation", and what they are in words.

    Those of `--split`; else of the split that the run in the folder validated on; else those that it held out of its
    training split, found again by its arguments.yaml; else of a split called validation, valid, val or dev.

    Raises:
        ArgumentError: there are none but those of training.
    """
    run = read_run_arguments(arguments.model)
    split = arguments.split or (run.validation_split if run else None)
    fraction = run.validation_fraction if run and split is None else 0.0
    train_split = run.train_split if run else arguments.train_split
    # What it held out is counted as it was then.
    of_run = WHAT_A_RUN_HELD_OUT[: None if fraction else 1] if run else ()
    for name in of_run:
        asked, had = getattr(arguments, name), getattr(run, name)
        if name in arguments.given and asked != had:
            raise ArgumentError(
                f"--{name} {asked} does not fit the run in --model {arguments.model}, which had {had}: leave it out."
            )
    if split == train_split:
        raise _trained_on(split)
    given = run if fraction else arguments
    images = load_data(
        arguments, validation_split=split, validation_fraction=fraction,
        image_column=arguments.image_column or given.image_column,
        label_column=arguments.label_column or given.label_column,
        **{name: getattr(given, name) for name in WHAT_A_RUN_HELD_OUT},
        seed=run.seed if run else 0, need_train=fraction > 0,
        need_all_classes=False,  # some may have been added to those of the run
        label_names=model.config.class_names, roles=["validation"],
        flags={"validation": "--split"},
    )  # fmt: skip
    if "validation" not in images.splits:
        reason = "held none of its training images out" if run else "has no arguments.yaml that tells what it held out"
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
        f"--split {split}: training images are nearer to their prototypes than others. Give one not trained on."
    )


def format_calibration(report: dict[str, Any]) -> str:
    """The report as tables for people."""
    threshold, score, sets = report["rejection_threshold"], report["rejection_score"], report["prediction_sets"]
    error, likelihood = report["expected_calibration_error"], report["negative_log_likelihood"]
    temperature = f"{report['calibration_temperature']:.4f}"
    if not report["has_best_temperature"]:
        temperature += " (none is best: all right, or no better than chance)"
    rows = [
        [f"{report['source']} ({report['num_images']} images)", "value"],
        [f"unknown below ({SCORES[score]})", f"{threshold:.6f}"],
        ["target false rejection rate", f"{report['false_rejection_rate']:.2%}"],
        ["rejected", f"{report['rejected']:.2%}"],
        ["accuracy", f"{report['accuracy']:.2%}"],
        ["accuracy of the accepted", f"{report['accuracy_of_accepted']:.2%}"],
        ["temperature", temperature],
        *([f"expected calibration error {when}", f"{e:.2%}"] for when, e in error.items()),
        *([f"negative log-likelihood {when}", f"{loss:.4f}"] for when, loss in likelihood.items()),
    ]
    if score == "cosine":
        rows.insert(2, ["unknown beyond the angle", f"{math.degrees(math.acos(threshold)):.2f}°"])
    if sets is not None:
        each = " of each class" if len(sets["set_thresholds"]) > 1 else ""
        rows.append([f"coverage{each} by sets ({sets['set_score']})", f"{sets['set_coverage']:.2%}"])
        rows.append(["classes in a set", f"{sets['mean_size']:.3f}"])
    if (compared := report["ood"]) is None:
        return format_table(rows)
    comparison = format_detection(compared | {"dataset": compared["dataset"] or "classes left out in turn"})
    return f"{format_table(rows)}\n\n{comparison}\nChosen: {SCORES[score]}."


def _write(report: dict[str, Any], bins: dict[str, confidence.Reliability], folder: Path, as_json: bool) -> None:
    write_json(folder / CALIBRATION, report)
    after = f"After, temperature {report['calibration_temperature']:.3f}"
    with whole_file(folder / PICTURE) as unfinished:
        plot_reliability({"Before": bins["before"], after: bins["after"]}, unfinished)
    if as_json:
        return say(json.dumps(report, indent=2))
    say(format_calibration(report))
    if missing := report["classes_without_images"]:
        say(f"There was no image of {some(missing)}: how many of theirs are rejected is unknown.")
    for name in ("config.json", CALIBRATION, PICTURE):
        say(folder / name)
