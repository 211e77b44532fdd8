"""What a run leaves on disk: checkpoints to resume from, the model, the log of metrics.

Everything is written under a temporary name and renamed, so that what has its final name is whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import BaseImageProcessor

from ..errors import ArgumentError, WriteError
from ..modeling_protosphere import ProtoSphereForImageClassification
from .files import put_in_place, refused_by_disk, replacing_files

# .replaced: the one of the same step, while another takes its place.
OURS = re.compile(r"step-\d{8}(\.unfinished|\.replaced)?")
MAY_DIFFER_ON_RESUME = {
    "output_dir", "dry_run", "resume", "overwrite", "num_workers", "eval_batch_size", "report_to",
    "project", "run_name", "checkpoint_every", "keep_checkpoints", "nc_target", "linear_probe",
    "normalized_linear_probe", "probe_epochs", "early_stopping_patience", "pictures",
    "batch_size", "gradient_accumulation_steps",  # their product with the processes may not
}  # fmt: skip
MAY_DIFFER_BETWEEN_ROWS = {"mode", "compare", "shots", "trials"}  # more or fewer of them


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    images_per_step: int  # of all processes
    sharding: str  # "none", "FSDP" or "DeepSpeed": their checkpoints have forms of their own
    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_score: float = -1.0
    best_epoch: int = 0  # the last one with that score
    improved_epoch: int = 0  # the first one with that score
    evaluated_epoch: int = 0  # the last one that has a score
    epoch_totals: tuple[float, float] = (0.0, 0.0)  # sums over the epoch's steps: loss, accuracy
    training_seconds: float = 0.0
    collapse_seconds: float = 0.0  # spent on measuring neural collapse

    @classmethod
    def start(cls, accelerator: Accelerator, images_per_step: int) -> Progress:
        sharding = {DistributedType.FSDP: "FSDP", DistributedType.DEEPSPEED: "DeepSpeed"}
        return cls(images_per_step, sharding.get(accelerator.distributed_type, "none"))

    def differences(self, other: Progress) -> list[str]:
        """Why steps of `other` cannot follow, in words; the number of processes is no reason."""
        found = []
        if self.images_per_step != other.images_per_step:
            found.append(
                f"a step had {self.images_per_step} images, has {other.images_per_step} "
                "(--batch_size x --gradient_accumulation_steps x processes)"
            )
        if self.sharding != other.sharding:
            found.append(f"the sharding was {self.sharding}, is {other.sharding}")
        return found


def save_checkpoint(
    accelerator: Accelerator, folder: Path, progress: Progress, keep: int = 1
) -> Path:
    """Everything to resume from. Once it is whole, all but the `keep` newest are removed.

    Raises:
        WriteError: the disk is full; the earlier ones are as they were.
    """
    final = folder / f"step-{progress.step:08d}"
    unfinished = final.with_suffix(".unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        with refused_by_disk(final):
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                (unfinished / "progress.json").write_text(json.dumps(asdict(progress)))
                put_in_place(unfinished, final)
    except WriteError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        kept = [path for path in complete_checkpoints(folder) if not path.suffix][-keep:]
        cut_short = [path for path in folder.glob("step-*.unfinished") if OURS.fullmatch(path.name)]
        for other in {*complete_checkpoints(folder), *cut_short} - {*kept}:
            shutil.rmtree(other)
    accelerator.wait_for_everyone()
    return final


def keep_unwrapped(accelerator: Accelerator) -> None:
    """Checkpoints hold the model without DistributedDataParallel's prefix of its names, so that
    another number of processes, or one, goes on from them."""

    def on_save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        if weights:  # FSDP and DeepSpeed have saved theirs
            weights[:] = [accelerator.get_state_dict(model) for model in models]

    def on_load(models: list[nn.Module], folder: str) -> None:
        models[:] = [accelerator.unwrap_model(model) for model in models]

    accelerator.register_save_state_pre_hook(on_save)
    accelerator.register_load_state_pre_hook(on_load)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The oldest first; other things may lie beside them."""
    # Of no length is what a machine left that went down.
    found = [p.parent for p in folder.glob("step-*/progress.json") if p.stat().st_size]
    complete = [p for p in found if OURS.fullmatch(p.name) and p.suffix != ".unfinished"]
    return sorted(complete, key=lambda path: (path.stem, not path.suffix))


def newest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint in the folder, if any."""
    return next(reversed(complete_checkpoints(folder)), None)


def read_progress(checkpoint: Path) -> Progress:
    progress = json.loads((checkpoint / "progress.json").read_text())
    return Progress(**progress | {"epoch_totals": tuple(progress["epoch_totals"])})


def changed_arguments(folder: Path, arguments: Mapping[str, Any]) -> list[str]:
    """What differs from the run in the folder and would change its results, in words."""
    may_differ = set(MAY_DIFFER_ON_RESUME)
    # Batches are then made for each process.
    if arguments["classes_per_batch"] or arguments["streaming"]:
        may_differ -= {"batch_size", "gradient_accumulation_steps"}
    return _changed(folder / "arguments.yaml", arguments, may_differ)


def refuse_changed_transfer(folder: Path, arguments: Mapping[str, Any]) -> None:
    """
    Raises:
        ArgumentError: naming what differs from the transfer in the folder and would change rows.
    """
    file = folder / "transfer.yaml"
    of_a_row = {"batch_size", "gradient_accumulation_steps", "probe_epochs"}
    may_differ = MAY_DIFFER_ON_RESUME - of_a_row | MAY_DIFFER_BETWEEN_ROWS
    if file.exists() and (changed := _changed(file, arguments, may_differ)):
        raise ArgumentError(
            f"--resume continues the transfer in {folder} as it was, but {'; '.join(changed)}. "
            "Give the same values, or another --output_dir."
        )


def _changed(file: Path, arguments: Mapping[str, Any], may_differ: set[str]) -> list[str]:
    before = yaml.safe_load(file.read_text()) or {}
    return [
        f"--{name} was {before[name]!r}, is {value!r}"
        for name, value in arguments.items()
        if name not in may_differ
        and name in before
        and before[name] != value
        # Left to the disk, it was written down as it was decided.
        and not (name == "cache_images" and value is None)
    ]


def refuse_changed_arguments(
    folder: Path, arguments: Mapping[str, Any], checkpoint: Progress, start: Progress
) -> None:
    """
    Args:
        checkpoint, start: of the run in the folder, and of the one that would go on.

    Raises:
        ArgumentError: naming what differs from the run in the folder and would change its results.
    """
    changed = changed_arguments(folder, arguments)
    if changed := changed + checkpoint.differences(start):
        raise ArgumentError(
            f"--resume continues the run in {folder} as it was, but {'; '.join(changed)}. Give the "
            "same values, or another --output_dir."
        )


def save_model(
    model: ProtoSphereForImageClassification, processor: BaseImageProcessor, folder: Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Weights, configuration, image processor and modelling code: a folder anyone can load.

    Args:
        state_dict: all weights, of a model that holds shards of them.
    """
    if state_dict is not None:  # FSDP has made the model one of its own classes
        model = ProtoSphereForImageClassification.from_pretrained(
            None, config=model.config, state_dict=state_dict
        )
    with replacing_files(folder) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
