"""The end of a training run: final metrics, provenance, baselines on frozen features, files."""

import platform
from pathlib import Path
from typing import Any

import timm

from ..backbones import timm_name
from ..errors import at_no_cost, errors_in_one_line
from ..evaluation.classifier_metrics import accuracy_by_frequency, evaluate_model
from ..evaluation.report import format_report
from ..inference.features import on_features
from ..inference.predictions import training_class_means
from ..metrics.monitoring import first_reached
from ..metrics.snapshot import SnapshotCollector
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots.text import say
from ..runs.checkpoints import save_model
from ..runs.files import write_json
from ..runs.metrics_log import read_metrics
from ..runs.plot import draw_run
from ..runs.snapshots import SNAPSHOT, save_snapshot
from .adaptation import count_parameters, count_trained_parameters
from .arguments import TrainArguments
from .environment import device_name, versions
from .monitoring import START
from .run import TrainingRun


def finish(run: TrainingRun) -> dict[str, Any]:
    """Write and evaluate the best epoch's model, and results.json; then draw and tell what came of it.

    What fails of that, of the provenance or the class means, is a warning, and costs no results."""
    accelerator, loaders, folder = run.accelerator, run.eval_loaders, run.output_dir
    best = folder / "best"
    with errors_in_one_line(f"{best} was damaged meanwhile", "The checkpoints are beside it."):
        model = ProtoSphereForImageClassification.from_pretrained(best)
    if accelerator.is_main_process:
        save_model(model, run.processor, folder)
    model.to(accelerator.device)
    model = on_features(model) if run.on_features else model
    held_out = [split for split in ("validation", "test") if split in loaders] or ["train"]
    collector = SnapshotCollector(model.prototypes)
    results = _measured(run, model, held_out, collector)
    if accelerator.is_main_process:
        records, pictures = [], []
        with at_no_cost("reading metrics.jsonl"):
            records = read_metrics(folder / "metrics.jsonl")
        results["first_reached"] = first_reached(records, run.arguments.nc_target)
        # Whole: where it is, the run is finished.
        write_json(folder / "results.json", results)
        with at_no_cost(f"writing {SNAPSHOT}"):
            save_snapshot(collector.snapshot(run.images.label_names, held_out[-1]), folder / SNAPSHOT)
        if run.arguments.pictures:
            with at_no_cost(f"drawing (`protosphere plot {folder}` draws again)"):
                pictures = draw_run(folder, target=run.arguments.nc_target)
        with at_no_cost("the summary"):
            say(_summary(run, results, records, pictures))
    accelerator.wait_for_everyone()
    return results


def _measured(
    run: TrainingRun, model: ProtoSphereForImageClassification, held_out: list[str], collector: SnapshotCollector
) -> dict[str, Any]:
    """What results.json holds. The collector takes part in the last split's evaluation."""
    arguments, accelerator, progress = run.arguments, run.accelerator, run.progress
    results: dict[str, Any] = {}
    with at_no_cost("the provenance"):
        results["provenance"] = provenance(run)
    results |= {
        "best_epoch": progress.best_epoch,
        "training_seconds": progress.training_seconds,
        "images_per_second": progress.step and progress.step * run.images_per_step / progress.training_seconds,
        "neural_collapse_seconds": run.monitor.stopwatch.seconds,
    }
    if run.on_features:
        results["feature_seconds"] = run.images.splits["train"].seconds
    if run.train_counts is not None:
        results["train_counts"] = dict(zip(run.images.label_names, run.train_counts))
    means = None
    with at_no_cost("classifying by class means", alone=accelerator.num_processes == 1):
        means = training_class_means(model, run.eval_loaders["train"], accelerator)
    for split in held_out:
        last, loader = collector if split == held_out[-1] else None, run.eval_loaders[split]
        report = evaluate_model(model, loader, accelerator, means=means, snapshot=last)
        if arguments.imbalance:
            report["accuracy_by_frequency"] = accuracy_by_frequency(report["class_accuracies"], run.train_counts)
        results[split] = report
    return results


def _summary(run: TrainingRun, results: dict[str, Any], records: list[dict[str, Any]], pictures: list[Path]) -> str:
    split = next(name for name in ("test", "validation", "train") if name in results)
    title, target = f"{split}, epoch {run.progress.best_epoch}", run.arguments.nc_target
    reached = results["first_reached"].get("validation", {})
    parts = [format_report(results[split], title, reached=reached, target=target, class_names=run.images.label_names)]
    collapse, spent = results["neural_collapse_seconds"], results["training_seconds"]
    if spent:
        parts.append(f"Measuring neural collapse took {collapse / (collapse + spent):.1%} of the training's time.")
    if run.on_features:
        took = results["feature_seconds"]
        parts.append(f"The features of the training images took {took:.1f} s, once; training on them {spent:.1f} s.")
    written = ["results.json", "metrics.jsonl", *(path.name for path in pictures)]
    parts.append(f"{run.output_dir}: the model, {', '.join(written)}")
    best, of_best = run.progress.best_epoch, "validation_accuracy"
    start = next((record[START] for record in records[:1] if START in record), 0.0)
    reached = next((r[of_best] for r in records if r["epoch"] == best and of_best in r), 1.0)
    if reached < start:
        rate = max(run.optimizer_step.scheduler.base_lrs)
        parts.append(
            f"This training ended below its start: {run.validation} accuracy {reached:.2%} at the best epoch, {best}, "
            f"but {start:.2%} by the class means of the network it started from. Try a --learning_rate below "
            f"{rate:.2g}, or `protosphere finetune` with --mode layerwise, head or prototypes."
        )
    return "\n" + "\n\n".join(parts)


def provenance(run: TrainingRun) -> dict[str, Any]:
    """For results.json. Paths do not enter, so that everything may be published: what is local has no name in it."""
    arguments, step, images = run.arguments, run.optimizer_step, run.images
    return {
        "dataset": hub_id(arguments.dataset_name),
        "splits": {role: {"from": name, "images": images.num_images(role)} for role, name in images.sources.items()},
        "base_model": base_model(arguments),
        "from_pretrained_weights": arguments.starts_from_weights,
        "parameters": count_parameters(run.model),
        "trainable_parameters": count_trained_parameters(run.model),
        "embedding_dim": run.model.protosphere.embedding_dim,
        "images_per_step": run.images_per_step,
        "learning_rate": max(step.scheduler.base_lrs),  # the peak
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
    if arguments.pretrained is not True:
        return None
    backbone = hub_id(arguments.backbone)
    if arguments.backbone_source == "transformers" or backbone is None:
        return backbone
    cfg = timm.get_pretrained_cfg(timm_name(backbone))
    return cfg.hf_hub_id if cfg else None
