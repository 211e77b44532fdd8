"""A trained classifier by its name, and every way in which that can go wrong, said in one line."""

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from PIL import Image
from transformers import BaseImageProcessor, PretrainedConfig
from transformers.utils import CONFIG_NAME, cached_file, logging

from ..backbones import timm_name
from ..checking import load_image_processor, of_the_hub, read_object
from ..configuration_protosphere import ProtoSphereConfig
from ..errors import ArgumentError, errors_in_one_line
from ..modeling_protosphere import ProtoSphereForImageClassification
from .files import sweep


def kind_of(name: str, flag: str = "--model") -> Literal["protosphere", "timm", "transformers"]:
    """What a model's name stands for: a checkpoint of ours, of timm or of transformers."""
    if not Path(name).is_dir() and timm.is_model(timm_name(name)):
        return "timm"
    _refuse_missing_folder(name, flag)
    with errors_in_one_line(f"{flag} {name} is no timm model, and no checkpoint either"):
        config = _configuration(name)
    if "architecture" in config:  # transformers gives such a configuration a type of its own
        return "timm"
    if "model_type" not in config:
        raise ArgumentError(f"{flag} {name}: config.json has no model type of transformers, nor timm's architecture.")
    return "protosphere" if config["model_type"] == ProtoSphereConfig.model_type else "transformers"


def _refuse_missing_folder(name: str, flag: str) -> None:
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ArgumentError(f"{flag} {name}: there is no such folder.")
    sweep(Path(name))


def _configuration(name: str) -> dict[str, Any]:
    """What config.json holds."""
    with of_the_hub(name):
        read_object(cached_file(name, CONFIG_NAME) or Path(name) / CONFIG_NAME)
        values, _ = PretrainedConfig.get_config_dict(name)
    return values


def load_config(name: str, flag: str = "--model") -> ProtoSphereConfig:
    """The configuration of a classifier in a folder or on the Hub, without its weights."""
    _refuse_missing_folder(name, flag)
    with errors_in_one_line(f"{flag} {name} is not a ProtoSphere checkpoint"):
        values = _configuration(name)
    with errors_in_one_line(f"{flag} {name} cannot be loaded"):
        if values.get("quantization_config"):
            raise ValueError("its weights are quantised: give the checkpoint that they were made from.")
        config = ProtoSphereConfig.from_pretrained(name)
        held = values.get("architectures") or [values.get("model_type", "no model type")]
        if not {"ProtoSphereForImageClassification", ProtoSphereConfig.model_type} & {*held}:
            raise ArgumentError(f"{flag} {name} holds {held}, not a ProtoSphere.")
    return config


def load_classifier(name: str, flag: str = "--model") -> tuple[ProtoSphereForImageClassification, BaseImageProcessor]:
    """Model and image processor from a folder or the Hub, which have classified an image."""
    load_config(name, flag)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers would report in a table is an error here
    try:
        with errors_in_one_line(f"{flag} {name} cannot be loaded"):
            model = ProtoSphereForImageClassification.from_pretrained(name)
            model.config.return_dict = True  # what every command reads
            processor = load_image_processor(name)
        with errors_in_one_line(f"{flag} {name} cannot classify an image"):
            _classify_noise(model, processor)
    finally:
        logging.set_verbosity(verbosity)
    return model, processor


@torch.no_grad()
def _classify_noise(model: ProtoSphereForImageClassification, processor: BaseImageProcessor) -> None:
    """Raises what it may for options that only using them shows to be wrong."""
    size = model.config.image_size
    image = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    pixels = processor([Image.fromarray(image)], return_tensors="pt")["pixel_values"]
    if (made := (*pixels.shape[1:],)) != (3, size, size):
        raise ValueError(f"its preprocessor_config.json makes {made}, its config.json asks for {(3, size, size)}.")
    output = model.eval()(pixels)
    on_sphere = (output.embeddings.norm(dim=-1) - 1).abs() < 0.01  # NaN is not
    if not (on_sphere.all() and output.logits.isfinite().all()):
        raise ValueError("what it makes of one is no point of the sphere: take an earlier one.")
