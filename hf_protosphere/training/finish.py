"""The end of a training run: final metrics, baselines on frozen features, files and pictures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..evaluation.classifier_metrics import accuracy_by_frequency, evaluate_model
from ..evaluation.report import format_classifiers, format_report
from ..inference.predictions import training_class_means
from ..inference.probes import frozen_images, train_probe
from ..metrics.monitoring import first_reached
from ..metrics.snapshot import SnapshotCollector
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..runs.checkpoints import save_model
from ..runs.files import write_json
from ..runs.metrics_log import read_metrics
from ..runs.plot import draw_run
from ..runs.snapshots import SNAPSHOT, save_snapshot
from .provenance import provenance

if TYPE_CHECKING:
    from .train import TrainingRun


def finish(run: TrainingRun) -> dict[str, Any]:
    """Evaluate the best epoch's model on the held-out splits and write everything."""
    arguments, accelerator, progress, loaders = (
        run.arguments, run.accelerator, run.progress, run.eval_loaders
    )  # fmt: skip
    model = ProtoSphereForImageClassification.from_pretrained(run.output_dir / "best")
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
            by_frequency = accuracy_by_frequency(report["class_accuracies"], run.train_counts)
            report["accuracy_by_frequency"] = by_frequency
        results[split] = report
    if probes := _probes(run, model, held_out[-1]):
        accuracy = results[held_out[-1]]["class_means_accuracy"]
        of_means = {"accuracy": accuracy, "pass_seconds": seconds_of_means, "training_seconds": 0.0}
        results["classifiers"] = {"class_means": of_means} | probes
    if accelerator.is_main_process:
        records = read_metrics(run.output_dir / "metrics.jsonl")
        results["first_reached"] = first_reached(records, arguments.nc_target)
        save_model(model, run.processor, run.output_dir)
        save_snapshot(
            snapshot.snapshot(run.images.label_names, held_out[-1]), run.output_dir / SNAPSHOT
        )
        pictures = []
        if arguments.pictures:
            pictures = draw_run(run.output_dir, target=arguments.nc_target)
        # Last, and whole: where it is, the run is finished.
        write_json(run.output_dir / "results.json", results)
        print(f"\n{_summary(run, results, held_out[-1])}")
        written = ["results.json", "metrics.jsonl", *(path.name for path in pictures)]
        print(f"\n{run.output_dir}: the model, {', '.join(written)}")
    accelerator.wait_for_everyone()
    return results


def _probes(
    run: TrainingRun, model: ProtoSphereForImageClassification, split: str
) -> dict[str, dict[str, float]]:
    """Those that were asked for, on features of the training images and of one split."""
    arguments = run.arguments
    asked = []
    if arguments.linear_probe:
        asked.append("linear")
    if arguments.normalized_linear_probe:
        asked.append("normalized_linear")
    if not asked:
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
            "accuracy": probe.accuracy,
            "pass_seconds": pass_seconds,
            "training_seconds": probe.training_seconds,
        }
    return probes


def _summary(run: TrainingRun, results: dict[str, Any], split: str) -> str:
    parts = [
        format_report(
            results[split],
            f"{split}, epoch {run.progress.best_epoch}",
            reached=results["first_reached"].get("validation", {}),
            target=run.arguments.nc_target,
        )
    ]
    if "classifiers" in results:
        parts.append(format_classifiers(results["classifiers"], split))
    seconds = results["neural_collapse_seconds"]
    share = seconds / (seconds + results["training_seconds"])
    parts.append(f"Measuring neural collapse took {share:.1%} of the training's time.")
    return "\n\n".join(parts)
