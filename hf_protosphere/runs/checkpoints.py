"""What a run leaves on disk: checkpoints to resume from, the model, the log of metrics.

Everything is written under a temporary name and renamed, so that what has its final name is whole."""

import json
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, patch_environment
from safetensors.torch import load_model, save_file
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.optim.lr_scheduler import LambdaLR
from transformers import BaseImageProcessor

from ..checking import read_header, read_object
from ..errors import ArgumentError, WriteError, errors_in_one_line
from ..modeling_protosphere import ProtoSphereForImageClassification
from .files import put_in_place, refused_by_disk, replacing_files, whole_file
from .processes import SHARDED
from .reading import read_yaml

AVERAGE, QUEUE = "average.safetensors", "queue-%d.safetensors"  # the latter of each process
METADATA_MODULES = (
    "torch", "collections", "pathlib", "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
)  # fmt: skip
METADATA_KINDS = (type, torch.dtype, torch.layout, torch.memory_format)

# .replaced: the one of the same step, while another takes its place.
OURS = re.compile(r"step-\d{8}(\.unfinished|\.replaced)?")
MAY_DIFFER_ON_RESUME = {
    "output_dir", "dry_run", "resume", "overwrite", "num_workers", "eval_batch_size", "report_to", "project",
    "run_name", "checkpoint_every", "keep_checkpoints", "nc_target", "early_stopping_patience", "pictures",
    "batch_size", "gradient_accumulation_steps",  # their product with the processes may not
}  # fmt: skip
# Defaults of version 0.1.0, of SGD.
BEFORE = {"learning_rate": "0.1 * (images per step) / 256", "weight_decay": "1e-4"}
MAY_DIFFER_BETWEEN_ROWS = {"mode", "compare", "shots", "trials"}  # more or fewer of them


class DamagedCheckpoint(ArgumentError):
    """A checkpoint that cannot be resumed from; the one before may be whole."""


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
    streams: list[dict[str, Any]] | None = None  # the position of each process in `StreamedBatches`

    @classmethod
    def start(cls, accelerator: Accelerator, images_per_step: int) -> "Progress":
        sharding = {DistributedType.FSDP: "FSDP", DistributedType.DEEPSPEED: "DeepSpeed"}
        return cls(images_per_step, sharding.get(accelerator.distributed_type, "none"))

    def differences(self, other: "Progress") -> list[str]:
        """Why steps of `other` cannot follow, in words; the number of processes is no reason."""
        found = []
        if self.images_per_step != other.images_per_step:
            of_all = "--batch_size x --gradient_accumulation_steps x processes"
            found.append(f"a step had {self.images_per_step} images, has {other.images_per_step} ({of_all})")
        if self.sharding != other.sharding:
            found.append(f"the sharding was {self.sharding}, is {other.sharding}")
        return found


def save_checkpoint(
    accelerator: Accelerator, folder: Path, progress: Progress, keep: int = 1, *,
    average: nn.Module | None = None, queue: nn.Module | None = None,
) -> Path:  # fmt: skip
    """Everything to resume from. Once it is whole, all but the `keep` newest are removed, and none on a full disk.

    The average of the weights is not registered with Accelerate, which would unpickle it."""
    final = folder / f"step-{progress.step:08d}"
    unfinished = final.with_suffix(".unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        with refused_by_disk(final):
            accelerator.save_state(str(unfinished))
            if queue is not None:
                save_weights(queue, str(unfinished / (QUEUE % accelerator.process_index)))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                if average is not None:
                    save_weights(average, str(unfinished / AVERAGE))
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


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, step: int, *,
    scheduler: LambdaLR, average: nn.Module | None = None, queue: nn.Module | None = None,
) -> None:  # fmt: skip
    """What `save_checkpoint` saved beside the progress, read as if it came from a stranger: nothing in it can run code
    (DeepSpeed alone unpickles its own files), and of the optimiser only its moments are taken. The schedule follows
    from the step of the progress. Queues belong to their processes: another number of those begins with empty ones."""
    optimizer, kind = scheduler.optimizer, accelerator.distributed_type
    with errors_in_one_line(f"{checkpoint} is damaged", kind=DamagedCheckpoint):
        if accelerator.is_main_process:
            _convert_pickles(checkpoint)
        accelerator.wait_for_everyone()
        for path in [*checkpoint.glob("*.safetensors"), checkpoint / "model.safetensors"]:
            if path.exists() or kind not in SHARDED:
                read_header(path)
        for path in checkpoint.rglob(".metadata"):
            with path.open("rb") as file:
                _Metadata(file).load()
        options = [{**group, "params": None} for group in optimizer.param_groups]
        # torch.load reads weights only, also where a library asks it for more.
        deepspeed = kind == DistributedType.DEEPSPEED  # whose files hold its classes
        variables = {} if deepspeed else {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
        try:
            with patch_environment(**variables):
                accelerator.load_state(str(checkpoint))
        except CheckpointException as error:  # of sharded models; a BaseException
            cause, _ = next(iter(error.failures.values()))
            raise ValueError(f"its shards cannot be read: {cause}") from error
        rates = [rate * at(step) for rate, at in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, before, rate in zip(optimizer.param_groups, options, rates):
            group |= before | {"params": group["params"], "lr": rate}
        counters = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        scheduler.load_state_dict(scheduler.state_dict() | counters)
        if average is not None:
            load_model(average, str(checkpoint / AVERAGE))
        saved = len([*checkpoint.glob(QUEUE.replace("%d", "*"))]) or 1  # none: then it is damaged
        if queue is not None and saved == accelerator.num_processes:
            load_model(queue, str(checkpoint / (QUEUE % accelerator.process_index)))
        _refuse_misfits(accelerator, average, queue)


class _Metadata(pickle.Unpickler):
    """What torch writes of a sharded checkpoint is a pickle: of its own classes, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        layout = (module, name) == ("torch.serialization", "_get_layout")
        found = super().find_class(module, name) if layout or module in METADATA_MODULES else None
        if not layout and not isinstance(found, METADATA_KINDS):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}.")
        return found


def _convert_pickles(checkpoint: Path) -> None:
    """A checkpoint of version 0.1.0, whose average was pickled, as one of today."""
    if (pickled := checkpoint / "custom_checkpoint_1.pkl").exists():
        state = torch.load(pickled, map_location="cpu", weights_only=True)
        with whole_file(checkpoint / AVERAGE) as unfinished:
            save_file({k: v.contiguous() for k, v in state.items()}, unfinished)
    for path in checkpoint.glob("custom_checkpoint_[01].pkl"):  # the first held the schedule
        path.unlink()


def _refuse_misfits(accelerator: Accelerator, *more: nn.Module | None) -> None:
    """Refuse weights or moments of the optimiser that are not finite, or of another shape."""
    networks = [*accelerator._models, *filter(None, more)]
    tensors = [tensor for network in networks for tensor in network.state_dict().values()]
    for optimizer in accelerator._optimizers:
        for parameter, state in getattr(optimizer, "state", {}).items():
            moments = [value for value in state.values() if isinstance(value, Tensor) and value.dim()]
            if any(moment.shape != parameter.shape for moment in moments):
                raise ValueError("its optimiser is that of another model.")
            tensors += moments
    whole = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    if not all(t.isfinite().all() for t in whole if t.is_floating_point()):
        raise ValueError("it holds values that are not finite.")


def keep_unwrapped(accelerator: Accelerator) -> None:
    """Checkpoints have no names of DistributedDataParallel's: any number of processes goes on from them."""

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
    with errors_in_one_line(f"{checkpoint} is damaged", kind=DamagedCheckpoint):
        values = read_object(checkpoint / "progress.json")
        loss, accuracy = values["epoch_totals"]
        progress = Progress(**values | {"epoch_totals": (loss, accuracy)})
        numbers = {**vars(progress), "epoch_totals": loss + accuracy, "sharding": 0, "streams": 0}
        counts = [progress.step, progress.epoch, progress.step_in_epoch]
        finite = torch.tensor([*numbers.values()], dtype=torch.float64).isfinite().all()
        whole = all(isinstance(count, int) and count >= 0 for count in counts)
        if not finite or not whole or (progress.step and not progress.training_seconds > 0):
            raise ValueError(f"it counts {numbers}.")
    return progress


def changed_arguments(folder: Path, arguments: Mapping[str, Any]) -> list[str]:
    """What differs from the run in the folder and would change its results, in words."""
    may_differ, file = set(MAY_DIFFER_ON_RESUME), folder / "arguments.yaml"
    # Batches are then made for each process.
    if arguments["classes_per_batch"] or arguments["streaming"]:
        may_differ -= {"batch_size", "gradient_accumulation_steps"}
    changed = []
    if b"decay_all:" not in file.read_bytes():  # of a version whose defaults were others
        for name, value in BEFORE.items():
            if arguments[name] is None:
                changed.append(f"--{name} is no longer what it was by default: give {value}")
        may_differ |= BEFORE.keys()
    return changed + _changed(file, arguments, may_differ)


def refuse_changed_transfer(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Refuse what differs from the transfer in the folder and would change its rows."""
    file = folder / "transfer.yaml"
    of_a_row = {"batch_size", "gradient_accumulation_steps"}
    may_differ = MAY_DIFFER_ON_RESUME - of_a_row | MAY_DIFFER_BETWEEN_ROWS
    changed = _changed(file, arguments, may_differ) if file.exists() else []
    refuse_changes(f"transfer in {folder}", changed)


def _changed(file: Path, arguments: Mapping[str, Any], may_differ: set[str]) -> list[str]:
    before = read_yaml(file, "Give another --output_dir, or --overwrite.")
    return [
        f"--{name} was {before[name]!r}, is {value!r}"
        for name, value in arguments.items()
        if name not in may_differ
        and name in before
        and before[name] != value
        # Left to the disk, it was written down as it was decided.
        and not (name == "cache_images" and value is None)
    ]


def refuse_changes(work: str, changed: list[str]) -> None:
    """Refuse to resume a run or a transfer where anything has changed, in words."""
    if changed:
        raise ArgumentError(f"--resume goes on with the {work}, but {'; '.join(changed)}. Give the same values.")


def save_model(
    model: ProtoSphereForImageClassification, processor: BaseImageProcessor, folder: Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Weights (`state_dict` of a model in shards), configuration, image processor and code, for anyone to load."""
    if state_dict is not None:  # FSDP has made the model one of its own classes
        model = ProtoSphereForImageClassification.from_pretrained(None, config=model.config, state_dict=state_dict)
    with replacing_files(folder) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
