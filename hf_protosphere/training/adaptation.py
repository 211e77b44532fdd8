"""Transfer of a trained network: its weights for other classes, and which of them are trained.

What the backbone knows is kept whole (`--freeze_backbone`), changed less the nearer a layer is to the image
(`--layer_decay`), or by low-rank adapters only (`--lora_rank`; Hu et al. 2021, by peft), merged when it is saved."""

import copy
import math
import re
from types import SimpleNamespace
from typing import Any

import timm.optim
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import load_weights
from ..configuration_protosphere import ProtoSphereConfig
from ..errors import ArgumentError
from ..modeling_protosphere import ProtoSphereForImageClassification
from .arguments import TrainArguments

# What a checkpoint decides of a network that starts from it, with the argument of training, or with none.
NETWORK = {
    "backbone": "backbone", "backbone_source": "backbone_source", "backbone_kwargs": "backbone_options",
    "small_images": "small_images", "projection": "projection", "projection_dim": "projection_dim",
    "projection_hidden_dim": "projection_hidden_dim", "projection_batch_norm": "projection_batch_norm",
    "projection_dropout": "projection_dropout", "image_size": "image_size", "num_channels": "num_channels",
}  # fmt: skip
PREPROCESSING = ("image_mean", "image_std", "interpolation", "crop_pct")
# And of its head, as long as its classes stay.
HEAD = {
    "objective": "objective", "prototypes": "prototypes", "softmax_temperature": "temperature", "margin": "margin",
    "reserved_classes": "reserve_classes", "learned_temperature": "learn_temperature", "margin_type": "margin_type",
}  # fmt: skip


def with_new_classes(
    source: ProtoSphereForImageClassification, class_names: list[str], **config: Any
) -> ProtoSphereForImageClassification:
    """The network of a trained classifier, for other classes: backbone and projection are copied, and what the head
    knows of classes of the same name, where both heads are of a kind. `config` is as of `ProtoSphereConfig`; without a
    temperature it stays that of the source, for the same objective and number of classes."""
    config = {name: getattr(source.config, name) for name in (*NETWORK, *PREPROCESSING)} | config
    if config["image_size"] != source.config.image_size:
        kwargs = config["backbone_kwargs"].items()
        config["backbone_kwargs"] = {k: v for k, v in kwargs if k not in ("image_size", "img_size")}
    made_of = ProtoSphereConfig(**config, id2label=dict(enumerate(class_names)))
    ours, theirs = ((x.objective, x.num_labels) for x in (made_of, source.config))
    if made_of.softmax_temperature is None and ours == theirs:
        made_of.softmax_temperature = source.config.softmax_temperature
    model = ProtoSphereForImageClassification(made_of)
    network, trained = model.protosphere, source.protosphere
    load_weights(network.backbone, trained.backbone.state_dict())
    shapes = [{name: x.shape for name, x in of.projection.state_dict().items()} for of in (network, trained)]
    if shapes[0] != shapes[1]:
        return model
    network.projection.load_state_dict(trained.projection.state_dict())
    if model.config.has_prototypes != source.config.has_prototypes:
        return model
    known = classes_in_common(source.config, class_names)
    rows, theirs = list(known), list(known.values())
    with torch.no_grad():
        if not model.config.has_prototypes:
            model.classifier.weight[rows] = source.classifier.weight[theirs]
            model.classifier.bias[rows] = source.classifier.bias[theirs]
        elif model.config.prototypes == "learned":
            model.head.weight[rows] = source.prototypes[theirs]
    return model


def classes_in_common(config: ProtoSphereConfig, class_names: list[str]) -> dict[int, int]:
    """{index in class_names: index in the configuration} of classes that both have, by name."""
    return {i: config.label2id[name] for i, name in enumerate(class_names) if name in config.label2id}


def first_prototypes(
    model: ProtoSphereForImageClassification, means: Tensor, source: ProtoSphereConfig | None
) -> Tensor:
    """(K, D) class means, but the model's own prototypes of classes its source knew, beside which they are centred."""
    has_prototypes = source is not None and source.has_prototypes
    rows = list(classes_in_common(source, model.config.class_names)) if has_prototypes else []
    if not rows:
        return means
    prototypes = F.normalize(means - means.mean(0), dim=1)
    prototypes[rows] = model.prototypes[rows].detach().to(prototypes)
    return prototypes


def freeze(model: ProtoSphereForImageClassification, arguments: TrainArguments) -> None:
    """Leave gradients to what `--freeze_backbone` and `--lora_rank` let be trained."""
    if arguments.freeze_backbone:
        model.protosphere.backbone.requires_grad_(False)
        if arguments.epochs and not any(parameter.requires_grad for parameter in model.parameters()):
            raise ArgumentError(
                f"--freeze_backbone leaves nothing to train with --projection none and {model.config.prototypes} "
                "prototypes: take --projection linear, or `protosphere finetune --mode prototypes`."
            )
    if (rank := arguments.lora_rank) is None:
        return
    from peft import LoraConfig, inject_adapter_in_model

    layers = [
        f"protosphere.backbone.{name}"
        for name, layer in model.protosphere.backbone.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    if not layers:
        raise ArgumentError(f"--lora_rank {rank}: {model.config.backbone} has no layer that an adapter fits.")
    trained = [p for name, p in model.named_parameters() if p.requires_grad and ".backbone." not in name]
    # Alpha of twice the rank: the scale that most recipes of the method share.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), model)
    for parameter in trained:
        parameter.requires_grad_(True)


def without_adapters(model: ProtoSphereForImageClassification) -> ProtoSphereForImageClassification:
    """A copy with the adapters merged into the weights they adapt."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model


def parameter_groups(
    model: ProtoSphereForImageClassification, learning_rate: float, weight_decay: float,
    layer_decay: float | None, *, decay_all: bool = False, fallback: tuple[str, ...] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Groups for an optimiser: weight decay of biases, norms and prototypes only with `decay_all`; with `layer_decay`
    a learning rate for each layer of the backbone; names that match `fallback` apart, as timm's Muon takes them."""
    # Decay would only shrink the prototypes' norm, which is not used.
    spared = ("head.log_temperature", *(() if decay_all else ("head.weight",)))
    of_all = timm.optim.param_groups_weight_decay(
        model, weight_decay, not decay_all, no_weight_decay_list=spared, fallback_list=fallback
    )
    if layer_decay is None:
        return of_all
    layers: Any = model.protosphere.backbone
    if not hasattr(layers, "group_matcher"):
        layers = SimpleNamespace(named_parameters=layers.named_parameters, group_matcher=lambda coarse: _depth)
    groups = timm.optim.param_groups_layer_decay(
        layers, weight_decay, weight_decay_exclude_1d=not decay_all, layer_decay=layer_decay
    )
    for group in groups:
        group["lr"] = learning_rate * group["lr_scale"]
    of_backbone = {id(parameter) for group in groups for parameter in group["params"]}
    for group in of_all:
        rest = [p for p in group["params"] if id(p) not in of_backbone]
        groups.append({**group, "params": rest, "lr": learning_rate})
    return [group for group in groups if group["params"]]


def _depth(name: str) -> tuple[float, ...]:
    """Where a parameter of a transformers backbone is, for timm: smaller is nearer to the image."""
    if name.startswith("embed"):
        return (-1.0,)
    numbers = re.findall(r"(?:stages|layers?|blocks?)\.(\d+)", name)[:2]
    return tuple(map(float, numbers)) or (math.inf,)


def count_parameters(model: nn.Module) -> int:
    """Without adapters, which are merged when the model is saved."""
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)


def count_trained_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
