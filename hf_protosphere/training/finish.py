"""The end of a training run: final metrics, provenance, baselines on frozen features, files."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm

from ..backbones import timm_name
from ..evaluation.classifier_metrics import accuracy_by_frequency, evaluate_model
from ..evaluation.report import format_classifiers, format_report
from ..inference.predictions import training_class_means
from ..inference.probes import frozen_images, train_probe
from ..metrics.monitoring import first_reached
from ..metrics.snapshot import SnapshotCollector
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots.text import say
from ..runs.checkpoints import save_model
from ..runs.files import write_json
from ..runs.metrics_log import read_metrics
from ..runs.plot import draw_run
from ..runs.reading import errors_in_one_line
from ..runs.snapshots import SNAPSHOT, save_snapshot
from .adaptation import count_parameters, count_trained_parameters
from .arguments import TrainArguments
from .environment import device_name, versions

if TYPE_CHECKING:
    from .run import TrainingRun


def finish(run: TrainingRun) -> dict[str, Any]:
    """Evaluate the best epoch's model on the held-out splits and write everything."""
    arguments, accelerator, progress = run.arguments, run.accelerator, run.progress
    loaders = run.eval_loaders
    best = run.output_dir / "best"
    with errors_in_one_line(f"{best} was damaged meanwhile", "The checkpoints are beside it."):
        model = ProtoSphereForImageClassification.from_pretrained(best)
    model.to(accelerator.device)
    started = time.perf_counter()
    means = training_class_means(model, loaders["train"], accelerator)
    seconds_of_means = time.perf_counter() - started
    held_out = [split for split in ("validation", "test") if split in loaders] or ["train"]
    snapshot = SnapshotCollector(model.prototypes)
    results: dict[str, Any] = {
        "provenance": provenance(run),
        "best_epoch": progress.best_epoch,
        "training_seconds": progress.training_seconds,
        "images_per_second": progress.step * run.images_per_step / progress.training_seconds,
        "neural_collapse_seconds": run.monitor.stopwatch.seconds,
    }
    if run.train_counts is not None:
        results["train_counts"] = dict(zip(run.images.label_names, run.train_counts))
    for split in held_out:
        last = snapshot if split == held_out[-1] else None
        report = evaluate_model(model, loaders[split], accelerator, means=means, snapshot=last)
        if arguments.imbalance:
            report["accuracy_by_frequency"] = accuracy_by_frequency(
                report["class_accuracies"], run.train_counts
            )
        results[split] = report
    if probes := _probes(run, model, held_out[-1]):
        accuracy = results[held_out[-1]]["class_means_accuracy"]
        of_means = {"accuracy": accuracy, "pass_seconds": seconds_of_means, "training_seconds": 0.0}
        results["classifiers"] = {"class_means": of_means} | probes
    if accelerator.is_main_process:
        records = read_metrics(run.output_dir / "metrics.jsonl")
        target = arguments.nc_target
        results["first_reached"] = first_reached(records, target)
        save_model(model, run.processor, run.output_dir)
        of_split = snapshot.snapshot(run.images.label_names, held_out[-1])
        save_snapshot(of_split, run.output_dir / SNAPSHOT)
        pictures = draw_run(run.output_dir, target=target) if arguments.pictures else []
        # Last, and whole: where it is, the run is finished.
        write_json(run.output_dir / "results.json", results)
        say(f"\n{_summary(run, results, held_out[-1])}")
        written = ["results.json", "metrics.jsonl", *(path.name for path in pictures)]
        say(f"\n{run.output_dir}: the model, {', '.join(written)}")
    accelerator.wait_for_everyone()
    return results


def _probes(
    run: TrainingRun, model: ProtoSphereForImageClassification, split: str
) -> dict[str, dict[str, float]]:
    """Those that were asked for, on features of the training images and of one split."""
    arguments = run.arguments
    kinds = ("linear", "normalized_linear")
    if not (asked := [kind for kind in kinds if getattr(arguments, f"{kind}_probe")]):
        return {}
    started = time.perf_counter()
    train = frozen_images(model, run.eval_loaders["train"], run.accelerator, "train")
    pass_seconds = time.perf_counter() - started
    held_out = frozen_images(model, run.eval_loaders[split], run.accelerator, split)
    probes = {}
    for kind in asked:
        probe = train_probe(
            kind, (train.features, train.labels), (held_out.features, held_out.labels),
            run.images.num_labels,
            epochs=arguments.probe_epochs, temperature=arguments.temperature, seed=arguments.seed,
        )  # fmt: skip
        probes[kind] = {
            "accuracy": probe.accuracy, "pass_seconds": pass_seconds,
            "training_seconds": probe.training_seconds,
        }  # fmt: skip
    return probes


def _summary(run: TrainingRun, results: dict[str, Any], split: str) -> str:
    title, target = f"{split}, epoch {run.progress.best_epoch}", run.arguments.nc_target
    reached = results["first_reached"].get("validation", {})
    parts = [format_report(results[split], title, reached=reached, target=target,
                           class_names=run.images.label_names)]  # fmt: skip
    if "classifiers" in results:
        parts.append(format_classifiers(results["classifiers"], split))
    seconds = results["neural_collapse_seconds"]
    share = seconds / (seconds + results["training_seconds"])
    parts.append(f"Measuring neural collapse took {share:.1%} of the training's time.")
    return "\n\n".join(parts)


def provenance(run: TrainingRun) -> dict[str, Any]:
    """For results.json. Paths do not enter, so that everything may be published.

    Returns:
        {"dataset" and "base_model" (their ids on the Hub; None for local ones, and without
        pretrained weights), "from_pretrained_weights" (whether there were any), "splits" (of each
        the number of images, and which of the data set's own splits they are from), "parameters",
        "trainable_parameters", "embedding_dim", "images_per_step", "learning_rate" (the peak),
        "weight_decay", "device", "processes", "versions"}.
    """
    arguments, splits, step = run.arguments, run.images.splits, run.optimizer_step
    return {
        "dataset": hub_id(arguments.dataset_name),
        "splits": {
            role: {
                "from": source,
                "images": run.images.num_train if role == "train" else len(splits[role]),
            }
            for role, source in run.images.sources.items()
        },
        "base_model": base_model(arguments),
        "from_pretrained_weights": bool(
            arguments.pretrained or arguments.resume_from or arguments.finetune_from
        ),
        "parameters": count_parameters(run.model),
        "trainable_parameters": count_trained_parameters(run.model),
        "embedding_dim": run.model.protosphere.embedding_dim,
        "images_per_step": run.images_per_step,
        "learning_rate": max(step.scheduler.base_lrs),
        "weight_decay": max(group["weight_decay"] for group in step.optimizer.param_groups),
        "device": device_name(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "versions": {"python": platform.python_version(), **versions()},
    }


def hub_id(name: str) -> str | None:
    """The name, unless it is a local path."""
    return None if Path(name).expanduser().exists() else name


def base_model(arguments: TrainArguments) -> str | None:
    """The id on the Hub of the pretrained weights that training starts from."""
    if (checkpoint := arguments.resume_from or arguments.finetune_from) is not None:
        return hub_id(checkpoint)
    if not arguments.pretrained:
        return None
    backbone = hub_id(arguments.backbone)
    if arguments.backbone_source == "transformers" or backbone is None:
        return backbone
    return timm.get_pretrained_cfg(timm_name(backbone)).hf_hub_id
