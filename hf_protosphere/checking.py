"""Refuses a checkpoint whose files, tensors and configuration do not fit together.

What is in a folder or a repository may be anybody's: no code of it is run, nothing is unpickled,
no other file is fetched, and nothing is built that is larger than what the weights fill. Travels to
the Hub with every checkpoint.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_protosphere import WHOLE

HEADS = ("head.", "classifier.")
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
MAX_JSON, MAX_HEADER = 2**26, 2**23  # bytes: of a million names; of some fifty thousand tensors
HUB_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip


class StoredTensor(NamedTuple):
    """What a safetensors file says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def auto(auto_class: Any, name: Any, **options: Any) -> Any:
    """`AutoConfig.from_pretrained` and the like: never by code that lies beside the checkpoint."""
    return auto_class.from_pretrained(name, trust_remote_code=False, **options)


def load_image_processor(name: Any, **options: Any) -> BaseImageProcessor:
    """One that transformers knows, and that makes no giant images."""
    processor = auto(AutoImageProcessor, name, **options)
    for which in ("size", "crop_size", "pad_size"):
        for side in dict(getattr(processor, which, None) or {}).values():
            if side is not None and not 0 < side <= 2 * WHOLE["image_size"]:
                raise ValueError(f"preprocessor_config.json must name a {which} but {side}.")
    return processor


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file, which is no giant."""
    path = Path(path)
    if (size := path.stat().st_size) > MAX_JSON:
        raise ValueError(f"{path} has {size:,} bytes, more than the {MAX_JSON:,} that are read.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds a {type(value).__name__}.")
    return value


def read_header(path: str | Path) -> dict[str, StoredTensor]:
    """Of the tensors in a whole safetensors file, {"head.weight": ("F32", (10, 512)), ...}."""
    path = Path(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    try:
        if MAX_HEADER < length < path.stat().st_size:  # reading would take minutes
            raise SafetensorError(f"a header of {length:,} bytes, more than {MAX_HEADER:,}")
        with safe_open(path, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {k: StoredTensor(s.get_dtype(), (*s.get_shape(),)) for k, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or no safetensors file ({path.stat().st_size:,} bytes): download "
            f"or save it again. Weights in other formats are never loaded. ({error})"
        ) from error


def stored_tensors(name: Any, variant: str | None = None, **options: Any) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint, from the headers of its file or of its several files, which lie
    beside their index. The arguments are those of `PreTrainedModel.from_pretrained`.

    Empty when there are none: transformers will say it."""
    if name is None:  # the weights were given as a `state_dict`
        return {}
    options = {key: value for key, value in options.items() if key in HUB_OPTIONS}

    def found(file: str) -> Path | None:
        try:
            return Path(cached_file(name, file, **options))
        except OSError:
            return None

    if found("adapter_config.json"):  # peft would take weights from where it says
        raise ValueError(f"{name} has an adapter_config.json: merge the adapter and save it.")
    infix = f".{variant}." if variant else "."
    if path := found(SAFE_WEIGHTS_NAME.replace(".", infix)):
        return read_header(path)
    if not (index := found(infix.join(SAFE_WEIGHTS_INDEX_NAME.rsplit(".", 1)))):
        return {}
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index} must map the names of tensors to files in its weight_map.")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted({*files.values()}):
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file) or not (path := found(file)):
            raise ValueError(f"{index} names {file!r}, which is no .safetensors file beside it.")
        tensors |= read_header(path)
    return tensors


@contextmanager
def of_the_hub(name: Any) -> Iterator[None]:
    """Where the Hub cannot be reached its cache alone is asked, at once: huggingface_hub would try for a minute."""
    url, offline = urlsplit(constants.ENDPOINT), constants.HF_HUB_OFFLINE
    try:
        if not (offline or getproxies() or Path(name).is_dir()):
            create_connection((url.hostname, url.port or 443), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        if not constants.HF_HUB_OFFLINE:
            raise
        raise OSError(
            f"{name} is not in the cache, and {constants.ENDPOINT} cannot be reached: give weights that you have "
            "by --pretrained FOLDER_OR_FILE, from_backbone(..., pretrained=FOLDER_OR_FILE)."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def no_larger_than(stored: dict[str, StoredTensor], new_head: int = 0) -> Iterator[None]:
    """A network that is built meanwhile has about as many tensors, and numbers, as are stored:
    where it outgrows twice that, it is refused before it takes time or memory. Of nothing stored,
    nothing is known. (Parameters are counted twice: as they are built, and as they are loaded.)

    Args:
        new_head: classes of a head that is not stored.
    """
    numbers = 4 * sum(math.prod(tensor.shape) for tensor in stored.values()) + 2**20
    numbers += 2 * new_head * max((max(t.shape, default=0) for t in stored.values()), default=0)
    tensors = 4 * len(stored) + 1000

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal numbers, tensors
        if parameter is not None:
            numbers, tensors = numbers - parameter.numel(), tensors - 1
        if numbers < 0 or tensors < 0:
            raise ValueError(
                "the configuration describes a network that is much larger than the weights that "
                f"are stored, from {type(module).__name__}.{name} {(*parameter.shape,)} on."
            )

    hook = register_module_parameter_registration_hook(count) if stored else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def has_new_head(info: dict[str, Any]) -> bool:
    """Whether, by `output_loading_info`, a tensor of the head is not the checkpoint's."""
    new = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    return any(key.startswith(HEADS) for key in new)


def check_fit(
    model: PreTrainedModel, name: Any, info: dict[str, Any], stored: dict[str, StoredTensor], *,
    any_head: bool,
) -> None:  # fmt: skip
    """Refuse tensors that are missing or too many, of another shape or kind of number than the
    configuration makes them, or not finite.

    Args:
        info: from `PreTrainedModel.from_pretrained`, with `output_loading_info`.
        any_head: the head may be missing, of another shape or kind, or too much.
    """
    tensors = model.state_dict()
    ignored = HEADS if any_head else ()
    prefix = f"{model.base_model_prefix}."
    dtypes = {key.removeprefix(prefix): tensor.dtype for key, tensor in stored.items()}
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
        dtype = dtypes.get(key.removeprefix(prefix))
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
