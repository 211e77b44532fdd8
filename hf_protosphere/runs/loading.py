"""A trained classifier by its name, and every way in which that can go wrong, said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import timm
from safetensors import SafetensorError
from transformers import AutoImageProcessor, BaseImageProcessor, PretrainedConfig
from transformers.utils import logging

from ..backbones import timm_name
from ..configuration_protosphere import ProtoSphereConfig
from ..errors import ArgumentError
from ..modeling_protosphere import ProtoSphereForImageClassification
from .files import sweep


def kind_of(name: str, flag: str = "--model") -> Literal["protosphere", "timm", "transformers"]:
    """What a model's name stands for: a checkpoint of ours, of timm or of transformers.

    Raises:
        ArgumentError: there is nothing of that name.
    """
    if not Path(name).is_dir() and timm.is_model(timm_name(name)):
        return "timm"
    _refuse_missing_folder(name, flag)
    try:
        config, _ = PretrainedConfig.get_config_dict(name)
        if not config:
            raise OSError("it has no config.json.")
    except OSError as error:
        raise ArgumentError(
            f"{flag} {name} is no timm model, and no checkpoint either: {error}"
        ) from error
    if "architecture" in config:  # transformers gives such a configuration a type of its own
        return "timm"
    if "model_type" not in config:
        raise ArgumentError(
            f"{flag} {name} has a config.json that names neither a model type of transformers nor "
            "an architecture of timm."
        )
    return "protosphere" if config["model_type"] == ProtoSphereConfig.model_type else "transformers"


def _refuse_missing_folder(name: str, flag: str) -> None:
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ArgumentError(f"{flag} {name}: there is no such folder.")
    sweep(Path(name))


def load_config(name: str, flag: str = "--model") -> ProtoSphereConfig:
    """The configuration of a classifier in a folder or on the Hub, without its weights.

    Args:
        flag: that gave the name, for messages.

    Raises:
        ArgumentError: there is none, or it is damaged, or not that of a classifier.
    """
    with _errors_in_one_line(name, flag):
        values, _ = PretrainedConfig.get_config_dict(name)
        if not values:  # transformers would take the defaults
            raise OSError("it has no config.json.")
        config = ProtoSphereConfig.from_pretrained(name)
    held = config.architectures or [values.get("model_type", "no model type")]
    if not {"ProtoSphereForImageClassification", ProtoSphereConfig.model_type} & {*held}:
        raise ArgumentError(f"{flag} {name} holds {held}, not a ProtoSphere.")
    return config


def load_classifier(
    name: str, flag: str = "--model"
) -> tuple[ProtoSphereForImageClassification, BaseImageProcessor]:
    """Model and image processor from a folder or the Hub.

    Args:
        flag: that gave the name, for messages.

    Raises:
        ArgumentError: there is none, or it is damaged, or does not fit its configuration.
    """
    load_config(name, flag)
    with _errors_in_one_line(name, flag):
        model = ProtoSphereForImageClassification.from_pretrained(name)
        return model, AutoImageProcessor.from_pretrained(name)


@contextmanager
def _errors_in_one_line(name: str, flag: str) -> Iterator[None]:
    _refuse_missing_folder(name, flag)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers would report in a table is an error here
    try:
        yield
    except OSError as error:
        raise ArgumentError(f"{flag} {name} is not a ProtoSphere checkpoint: {error}") from error
    except (ValueError, TypeError, SafetensorError) as error:
        # TypeError: an option that the backbone does not know.
        raise ArgumentError(f"{flag} {name} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
