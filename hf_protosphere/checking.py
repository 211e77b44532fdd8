"""Refuses a checkpoint whose files, tensors and configuration do not fit together.

What is in a folder or a repository may be anybody's: no code of it is run, nothing is unpickled, no other file is
fetched, and nothing is built that is larger than what the weights fill. Travels to the Hub with every checkpoint."""

import argparse
import json
import logging
import math
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import constants, get_session
from huggingface_hub.utils import httpx
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn.modules import module as registering
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_protosphere import WHOLE

logger = logging.getLogger(__name__)
HEADS = ("head.", "classifier.")
OF_HEADS = ("head", "heads", "fc", "classifier", "head_dist", "pooler")  # in backbones of others
IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
MAX_JSON, MAX_HEADER = 2**26, 2**23  # bytes: of a million names; of some fifty thousand tensors
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


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
            f"or save it again. ({error})"
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
    """Says in one line why a model cannot be loaded; where the Hub cannot be reached, its cache is asked, at once."""
    offline, is_folder = constants.HF_HUB_OFFLINE, Path(name).is_dir()
    try:
        if not (offline or is_folder):
            get_session().head(constants.ENDPOINT, timeout=5)
    except httpx.TransportError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {name} do not fit the image size, the channels or the backbone_kwargs that are asked "
            f"for: {' '.join(str(error).split())[:300]}"
        ) from error
    except OSError as error:
        if is_folder or not constants.HF_HUB_OFFLINE:
            raise
        raise OSError(
            f"{name} is not in the cache, and {constants.ENDPOINT} cannot be reached: name a folder that holds it, or "
            "give timm's name and your weights: --pretrained WHERE, from_backbone(..., pretrained=WHERE)."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def no_larger_than(stored: dict[str, StoredTensor], new_head: int = 0) -> Iterator[None]:
    """A network that is built meanwhile has about as many tensors, and numbers, as are stored:
    where it outgrows twice that, it is refused before it takes time or memory. Of nothing stored,
    nothing is known; `new_head` classes have a head that is not stored. (Parameters are counted twice: built, loaded.)
    """
    numbers = 4 * sum(math.prod(tensor.shape) for tensor in stored.values()) + 2**20
    numbers += 2 * new_head * max((max(t.shape, default=0) for t in stored.values()), default=0)
    tensors = 4 * len(stored) + 1000

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal numbers, tensors
        if parameter is not None:
            numbers, tensors = numbers - parameter.numel(), tensors - 1
        if numbers < 0 or tensors < 0:
            raise ValueError(
                "the configuration describes a network that is much larger than the weights that "
                f"are stored, from {type(module).__name__}.{name} {(*parameter.shape,)} on."
            )

    kinds = ("parameter", "buffer") if stored else ()
    hooks = [getattr(registering, f"register_module_{kind}_registration_hook")(count) for kind in kinds]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def has_new_head(info: dict[str, Any]) -> bool:
    """Whether, by `output_loading_info`, a tensor of the head is not the checkpoint's."""
    new = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    return any(key.startswith(HEADS) for key in new)


def check_fit(
    model: PreTrainedModel, name: Any, info: dict[str, Any], stored: dict[str, StoredTensor], *, any_head: bool
) -> None:
    """Refuse tensors that are missing, too many, of another shape or kind than the configuration's, or not finite.

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
            raise ValueError(f"{name} cannot be used: {key!r} holds {count:,} values not finite in {tensor.dtype}.")


def load_weights(
    backbone: nn.Module, weights: Mapping[str, Tensor], *,
    new_stem: bool = False, partial: bool = False, where: str = "",
) -> None:  # fmt: skip
    """Those of a backbone of the same kind, maybe for another image size or number of channels: what it learned
    about positions and colours is then resampled. With `new_stem`, a stem for small images stays as it is. With
    `partial` tensors may be missing, and left over of other parts than a head. What came from `where` is logged."""
    ours = backbone.state_dict()
    theirs = {n: _resampled(weights[n], n, own.shape, backbone) for n, own in ours.items() if n in weights}
    fitting = {name: weight for name, weight in theirs.items() if weight.shape == ours[name].shape}
    missing = sorted(name for name in ours.keys() - fitting.keys() if not name.endswith("num_batches_tracked"))
    left = sorted(weights.keys() - fitting.keys())
    said = f"{len(fitting):,} of {len(ours):,} tensors loaded"
    for names, what in ((missing, "missing"), (left, "left over")):
        said += f"; {len(names):,} {what}" + (f": {', '.join(names[:3])}{', ...' * (len(names) > 3)}" if names else "")
    parts = {name for name, child in backbone.named_children() if child.state_dict()}.difference(OF_HEADS)
    is_other = (missing and not new_stem) or any(name.split(".")[0] in parts for name in left)
    if not fitting or (is_other and not partial):
        raise ValueError(
            f"the weights{where and f' in {where}'} do not fit {type(backbone).__name__} ({said}): another backbone, "
            f"image size or number of channels.{where and ' What fits, if anything, is taken with --partial_weights.'}"
        )
    if wild := [name for name, weight in fitting.items() if not weight.isfinite().all()]:
        raise ValueError(f"the weights{where and f' in {where}'} cannot be used: {wild[0]!r} has values not finite.")
    backbone.load_state_dict(fitting, strict=False)
    if where:
        logger.warning_once(f"{where}: {said}.")  # transformers gives it to all loggers


def _resampled(weight: Tensor, name: str, shape: torch.Size, backbone: nn.Module) -> Tensor:
    """As the backbone takes it, where that can be made; else as it is."""
    owner, _, last = name.rpartition(".")
    if weight.dim() == 4 and weight.shape[1] == 3 and shape == (len(weight), shape[1], *weight.shape[2:]):
        return adapt_input_conv(shape[1], weight)
    if last == "relative_position_bias_table" and weight.shape != shape:
        return resize_rel_pos_bias_table(weight, backbone.get_submodule(owner).window_size, shape)
    if "pos" not in name or len(shape) not in (2, 3) or weight.shape[-1] != shape[-1]:
        return weight
    # A token for each place in a square grid, behind those of no place.
    old, new = math.isqrt(weight.shape[-2]), math.isqrt(shape[-2])
    others = weight.shape[-2] - old**2
    if others != shape[-2] - new**2:
        return weight
    embedding = weight.reshape(1, -1, shape[-1])
    return resample_abs_pos_embed(embedding, [new, new], [old, old], others).reshape(shape)


def load_from(backbone: nn.Module, where: str | Path, **options: bool) -> None:
    """`load_weights` from `where`, after the prefix (`module.`, `teacher.backbone.`, ...) of most own names."""
    own, given = backbone.state_dict(), read_weights(where)
    cuts = [(key, dot) for key in given for dot in (0, *(found.end() for found in re.finditer(r"\.", key)))]
    prefixes = Counter(key[:dot] for key, dot in cuts if key[dot:] in own)
    usual = next((name for name in ("model.", "state_dict.") if any(key.startswith(name) for key in given)), "")
    prefix = max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix), prefix), default=usual)
    weights = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
    if convert := getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None):
        with suppress(AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            weights = convert(dict(weights), backbone)  # timm knows the names that authors gave
    load_weights(backbone, weights, where=f"{where}{prefix and f' after {prefix!r}'}", **options)


def read_weights(where: str | Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file, in one that `torch.save` wrote of a state dict, or in a folder that
    timm or transformers saved, by their names, of dicts in dicts joined by points; never code: ValueError."""
    folder = Path(str(where).removeprefix("local-dir:")).expanduser()
    path = next((folder / name for name in IN_FOLDERS if (folder / name).is_file()), folder)
    if not path.is_file():
        raise ValueError(f"{path} is neither a file of weights nor a folder with {' or '.join(IN_FOLDERS)}.")
    if path.suffix == ".json":
        stored_tensors(path.parent)  # refuses files that lie elsewhere
        names = sorted({*read_object(path)["weight_map"].values()})
        return {key: tensor for name in names for key, tensor in read_weights(path.parent / name).items()}
    if path.suffix == ".safetensors":
        read_header(path)
        return load_file(path)
    try:
        if zipfile.is_zipfile(path) and any(file.compress_type for file in zipfile.ZipFile(path).infolist()):
            raise ValueError("it is compressed, which torch.save never does")  # a small one could fill the memory
        with torch.serialization.safe_globals([argparse.Namespace]):  # the flags of a run, often beside
            return dict(_tensors("", torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # of damaged files torch raises many kinds
        raise ValueError(
            f"{path} is no state dict that can be read without running code ({' '.join(str(error).split())[:150]}). "
            "Where you trust it, load it there and save torch.save(model.state_dict(), ...), or as .safetensors."
        ) from error


def _tensors(prefix: str, values: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _tensors(f"{prefix}.{name}" if prefix else str(name), value)
    elif isinstance(values, Tensor) and values.layout == torch.strided and values.device.type == "cpu":
        is_whole = values.untyped_storage().nbytes() >= values.nbytes  # no view that makes a giant of a few bytes
        yield from [(prefix, values)] * (is_whole and not values.is_quantized)
