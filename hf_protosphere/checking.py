"""Refuses a checkpoint whose file, tensors and configuration do not fit together.

Travels to the Hub with every checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

HEADS = ("head.", "classifier.")
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
HUB_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip


def stored_dtypes(name: Any, variant: str | None = None, **options: Any) -> dict[str, str]:
    """Dtypes of the tensors in a checkpoint, {"head.weight": "F32", ...}, from its file's header.

    Empty when the weights are not in one file, or there are none: transformers will say it.

    Args:
        name, variant, options: as for `PreTrainedModel.from_pretrained`.

    Raises:
        ValueError: the file is cut short, or no safetensors file.
    """
    if name is None:  # the weights were given as a `state_dict`
        return {}
    file = SAFE_WEIGHTS_NAME.replace(".", f".{variant}.") if variant else SAFE_WEIGHTS_NAME
    options = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    try:
        path = Path(cached_file(name, file, **options))
    except OSError:
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or no safetensors file ({path.stat().st_size:,} bytes): download "
            f"or save it again. Weights in other formats are never loaded. ({error})"
        ) from error


def has_new_head(info: dict[str, Any]) -> bool:
    """Whether a tensor of the head is not the checkpoint's.

    Args:
        info: from `PreTrainedModel.from_pretrained`, with `output_loading_info`.
    """
    new = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    return any(key.startswith(HEADS) for key in new)


def check_fit(
    model: PreTrainedModel, name: Any, info: dict[str, Any], dtypes: dict[str, str], *,
    any_head: bool,
) -> None:  # fmt: skip
    """
    Args:
        model, info: from `PreTrainedModel.from_pretrained`, with `output_loading_info`.
        dtypes: of the file, from `stored_dtypes`.
        any_head: the head may be missing, of another shape or kind, or too much.

    Raises:
        ValueError: tensors are missing or too many, of another shape or kind of number than the
            configuration makes them, or not finite.
    """
    tensors = model.state_dict()
    ignored = HEADS if any_head else ()
    prefix = f"{model.base_model_prefix}."
    stored = {key.removeprefix(prefix): dtype for key, dtype in dtypes.items()}
    problems = []
    for what in ("missing", "unexpected"):
        if keys := sorted(key for key in info[f"{what}_keys"] if not key.startswith(ignored)):
            more = f" and {len(keys) - 1} more" if keys[1:] else ""
            problems.append(f"{what} tensors: {keys[0]!r}{more}")
    for key, in_file, by_config in sorted(info["mismatched_keys"]):
        if not key.startswith(ignored):
            labels = f" for {model.config.num_labels} classes" if key.startswith(HEADS) else ""
            problems.append(f"{key!r} is {(*in_file,)}, and should be {(*by_config,)}{labels}")
    for key, tensor in tensors.items():
        dtype = stored.get(key.removeprefix(prefix))
        if dtype and (dtype in FLOATS) != tensor.is_floating_point():
            problems.append(f"{key!r} is stored as {dtype}, and should be {tensor.dtype}")
    if problems:
        raise ValueError(
            f"{name} does not fit its configuration: {'; '.join(problems[:3])}. Load it with the "
            "config it was saved with, or give ignore_mismatched_sizes=True for a new head."
        )
    for key, tensor in tensors.items():
        if not tensor.is_meta and tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{name} cannot be used: {key!r} holds {count:,} values that are not finite in "
                f"{tensor.dtype}. Take an earlier checkpoint, or another dtype."
            )
