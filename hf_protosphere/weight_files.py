"""Weights of a backbone from a file of yours: read without running code, and fitted by their names.

Travels to the Hub with every checkpoint.
"""

import argparse
import logging
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .backbones import load_weights, resampled
from .checking import read_header, read_object

logger = logging.getLogger(__name__)
IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
HEADS = ("head", "heads", "fc", "classifier", "head_dist", "pooler")


def read_weights(where: str | Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file, in one that `torch.save` wrote of a state dict, or in a folder that
    timm or transformers saved, by their names; those of dicts in dicts are joined by points.

    Raises:
        ValueError: there is none, it is damaged, or it holds more than tensors, which is not unpickled.
    """
    path = Path(str(where).removeprefix("local-dir:")).expanduser()
    if path.is_dir():
        found = [path / name for name in IN_FOLDERS if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} holds none of {', '.join(IN_FOLDERS)}: give the file of weights itself.")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file or folder.")
    if path.suffix == ".json":
        names = {str(name) for name in dict(read_object(path).get("weight_map") or {}).values()}
        parts = [read_weights(path.parent / Path(name).name) for name in sorted(names)]
        return {key: tensor for part in parts for key, tensor in part.items()}
    if path.suffix == ".safetensors":
        read_header(path)
        return load_file(path)
    try:
        if zipfile.is_zipfile(path):  # what torch saves is not compressed: a small file stays small
            with zipfile.ZipFile(path) as archive:
                if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                    raise ValueError("it is compressed, which torch.save never does")
        with torch.serialization.safe_globals([argparse.Namespace]):  # the flags of a run, often beside
            return dict(_tensors("", torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # of damaged files torch raises many kinds
        raise ValueError(
            f"{path} is no state dict that can be read without running code ({' '.join(str(error).split())[:150]}). "
            "Where you trust it, load it there and save torch.save(model.state_dict(), ...), or as .safetensors."
        ) from error


def _tensors(prefix: str, values: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        # Not of a view that makes a giant of a few bytes.
        if values.layout == torch.strided and values.untyped_storage().nbytes() >= values.nbytes:
            yield prefix, values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from _tensors(f"{prefix}.{name}" if prefix else str(name), value)


def load_from(backbone: nn.Module, where: str | Path, *, partial: bool = False, new_stem: bool = False) -> None:
    """Give a backbone the weights in `where`; of the prefix (`module.`, `teacher.backbone.`, ...) by which most
    of its own names are found. Logs in a line what was loaded, missing and left over.

    Args:
        partial: accept missing tensors, and left over ones of another part than a head.
        new_stem: a stem for small images stays as it is.
    """
    given, own = read_weights(where), backbone.state_dict()

    def fitting(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        prefixes = {key[: -len(name)] for key in weights for name in own if key.endswith(name)}
        best = ("", {})
        for prefix in sorted((p for p in prefixes if p == "" or p[-1] == "."), key=lambda p: (-len(p), p)):
            found = {name: weights[prefix + name] for name in own if prefix + name in weights}
            found = {n: resampled(w, n, own[n].shape, backbone) for n, w in found.items()}
            found = {name: weight for name, weight in found.items() if weight.shape == own[name].shape}
            if len(found) >= len(best[1]):
                best = prefix, found
        return best

    prefix, loaded = fitting(given)
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if len(loaded) < len(own) and convert is not None:  # timm knows the names that authors gave
        try:
            theirs = fitting(convert({k.removeprefix(prefix): w for k, w in given.items()}, backbone))
            prefix, loaded = theirs if len(theirs[1]) > len(loaded) else (prefix, loaded)
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError):
            logger.debug("timm cannot convert %s", where, exc_info=True)
    missing = [name for name in own if name not in loaded and not name.endswith("num_batches_tracked")]
    left = sorted(key for key in given if key.removeprefix(prefix) not in loaded)
    parts = {name for name, child in backbone.named_children() if any(True for _ in child.parameters())} - {*HEADS}
    foreign = [key for key in left if key.startswith(prefix) and key.removeprefix(prefix).split(".")[0] in parts]
    said = f"{where}: {len(loaded):,} of {len(own):,} tensors loaded" + (f" (after {prefix!r})" if prefix else "")
    said += f"; {_some(missing)} missing; {_some(left)} left over"
    if not loaded:
        raise ValueError(f"{said}: they are of another backbone than {type(backbone).__name__}.")
    if ((missing and not new_stem) or foreign) and not partial:
        raise ValueError(f"{said}. It is another backbone, or a part of one: --partial_weights takes what fits.")
    for name, weight in loaded.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(f"{where}: {name!r} holds values that are not finite. Take an earlier checkpoint.")
    load_weights(backbone, loaded, new_stem=True)
    logger.warning_once(f"{said}.")  # transformers gives it to all loggers


def _some(names: list[str]) -> str:
    return f"{len(names):,}" + (f" ({', '.join(names[:3])}{', ...' if names[3:] else ''})" if names else "")
