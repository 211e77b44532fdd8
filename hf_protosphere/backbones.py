"""Backbones from timm, which `airnet` here joins, and from transformers: built without weights, or loaded with them.

Travels to the Hub with every checkpoint."""

import inspect
import logging
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from .checking import auto, load_image_processor, no_larger_than, of_the_hub, read_object, stored_tensors
from .configuration_protosphere import ProtoSphereConfig, refuse_fetching
from .prototypes import nonnegative_limit

logger = logging.getLogger(__name__)
Loaded = tuple[nn.Module | None, dict[str, Any]]  # a network with weights, if any; what its config says
MLP_DIM = 128  # SCL's (Khosla et al. 2020)


def build_backbone(config: ProtoSphereConfig) -> tuple[nn.Module, int]:
    """Without weights, and the number of its pooled features."""
    build = _build_timm if config.backbone_source == "timm" else _build_transformers
    backbone, feature_dim = build(config)
    if config.small_images:
        use_small_image_stem(backbone, config.backbone)
    return backbone, feature_dim


def _build_timm(config: ProtoSphereConfig) -> tuple[nn.Module, int]:
    name, kwargs = timm_name(config.backbone), dict(config.backbone_kwargs)
    if not timm.is_model(name):
        raise ValueError(_unknown(name, timm.list_models(), "timm", "timm.list_models()"))
    if not kwargs.get("global_pool", "avg") or kwargs.get("features_only"):
        raise ValueError(f"backbone_kwargs {kwargs} must leave the pooling to the backbone (no features_only).")
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:  # transformers with position embeddings
        kwargs.setdefault("img_size", config.image_size)
    backbone = timm.create_model(name, num_classes=0, in_chans=config.num_channels, **kwargs)
    return backbone, getattr(backbone, "head_hidden_size", None) or backbone.num_features


def _build_transformers(config: ProtoSphereConfig) -> tuple[nn.Module, int]:
    if config.backbone not in CONFIG_MAPPING:
        known = list(CONFIG_MAPPING.keys())
        hint = "a model type such as 'vit' or 'resnet'; for a checkpoint, use from_backbone(...)"
        raise ValueError(_unknown(config.backbone, known, "transformers", hint))
    kwargs = dict(config.backbone_kwargs)
    backbone_config = AutoConfig.for_model(config.backbone, **kwargs)
    backbone_config.return_dict = True
    for name, value in (("image_size", config.image_size), ("num_channels", config.num_channels)):
        if name not in kwargs and hasattr(backbone_config, name):
            setattr(backbone_config, name, value)
    model_class, options = _model_class(backbone_config)
    backbone = model_class(backbone_config, **options)
    for parameter_name, parameter in backbone.named_parameters():
        # Only masked pretraining uses it; DistributedDataParallel would wait for its gradient.
        if parameter_name.endswith("mask_token"):
            parameter.requires_grad_(False)
    sizes = getattr(backbone_config, "hidden_sizes", None)
    return backbone, sizes[-1] if sizes else backbone_config.hidden_size


def pooled_features(output: Tensor | ModelOutput) -> Tensor:
    """(M, F) from a timm backbone's tensor or a transformers backbone's output."""
    if isinstance(output, Tensor):
        if output.dim() != 2:
            raise ValueError(
                "the backbone must pool its features to one vector an image, (M, F), but returned "
                f"{(*output.shape,)}: leave its options of pooling out of backbone_kwargs."
            )
        return output
    if getattr(output, "pooler_output", None) is not None:
        return output.pooler_output.flatten(1)
    hidden = output.last_hidden_state
    return hidden[:, 0] if hidden.dim() == 3 else hidden.mean((2, 3))


def decide_projection(config: ProtoSphereConfig, backbone: nn.Module, feature_dim: int) -> None:
    """Write into the configuration which projection "auto" is here, and how wide one is by default.

    Warns, once, of prototypes that are compared with non-negative features themselves."""
    compared = config.has_prototypes and config.projection in ("auto", "none")
    limited = compared and config.num_labels and has_nonnegative_features(backbone, config)
    if config.projection == "auto":
        config.projection = "linear" if limited or config.projection_dim else "none"
    elif limited and config.prototypes != "class_means" and not next(backbone.parameters()).is_meta:
        limit = nonnegative_limit(config.num_labels)
        logger.warning_once(  # transformers gives it to all loggers
            f"projection='none': the pooled features of {config.backbone} are hardly negative, and "
            f"prototypes of {config.num_labels} classes come to class means hardly nearer than a "
            f"squared distance of 2 - 2*sqrt(1 - 1/K) = {limit:.3g}. With 'linear' they can."
        )
    if config.projection_dim is None and config.projection != "none":
        config.projection_dim = feature_dim if config.projection == "linear" else MLP_DIM


@torch.no_grad()
def has_nonnegative_features(backbone: nn.Module, config: ProtoSphereConfig) -> bool:
    """Whether pooled features have no negative entries to speak of, as after a ReLU, or a GELU or
    SiLU and a mean: less than half of the norm in the features of noise, which changes nothing here."""
    if any(weight.is_meta or not weight.numel() for weight in backbone.parameters()):
        # While weights are loaded, or sharded by DeepSpeed, nothing can run: the order of layers has to do, an
        # activation without a layer norm behind it. (A block may register its shortcut's batch norm behind its last.)
        activations = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU)
        kinds = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Hardswish, *activations)
        last = [layer for layer in backbone.modules() if isinstance(layer, kinds)][-1:]
        return any(isinstance(layer, activations) for layer in last)
    weight = next(backbone.parameters())
    shape = (4, config.num_channels, config.image_size, config.image_size)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    modes = {layer: layer.training for layer in backbone.modules()}
    for layer in modes:
        # By their first statistics values would be so small that a SiLU is linear.
        layer.training = isinstance(layer, nn.BatchNorm2d)
    statistics = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    with torch.random.fork_rng([weight.device] if weight.is_cuda else []):
        output = torch.func.functional_call(backbone, statistics, (noise.to(weight),))
    for layer, mode in modes.items():
        layer.training = mode
    features = pooled_features(output)
    return bool(features.clamp(max=0).norm() < 0.5 * features.norm())


def build_projection(config: ProtoSphereConfig, feature_dim: int) -> tuple[nn.Module, int]:
    """The map from pooled features to what is normalised, and its width."""
    if config.projection == "none":
        return nn.Identity(), feature_dim
    dim = config.projection_dim
    if config.projection == "linear":
        layers = [nn.Linear(feature_dim, dim)]
    else:
        hidden = config.projection_hidden_dim or feature_dim
        norm = [nn.BatchNorm1d(hidden)] if config.projection_batch_norm else []
        layers = [nn.Linear(feature_dim, hidden), *norm, nn.ReLU(), nn.Linear(hidden, dim)]
    for layer in layers:
        layer.is_projection_or_head = True
    if config.projection_dropout:
        layers = [nn.Dropout(config.projection_dropout), *layers]
        if config.projection == "mlp":
            layers.insert(-1, nn.Dropout(config.projection_dropout))
    return nn.Sequential(*layers), dim


def features_of(
    backbone: nn.Module, images: Tensor, hidden_states: bool = False, attentions: bool = False
) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    """(M, F) pooled features; where asked for, hidden states and attentions of all layers."""
    if not (hidden_states or attentions):
        return pooled_features(backbone(images)), None, None
    asked = {"hidden_states": hidden_states, "attentions": attentions}
    found: dict[str, Any] = {}
    if isinstance(backbone, PreTrainedModel):
        found = backbone(images, **{f"output_{name}": True for name in asked if asked[name]})
        pooled = pooled_features(found)
    elif hasattr(backbone, "forward_intermediates"):
        last, found["hidden_states"] = backbone.forward_intermediates(images)
        pooled = backbone.forward_head(last)
    for name in asked:
        if asked[name] and not found.get(name):
            raise ValueError(
                f"output_{name}=True: {type(backbone).__name__} gives none. Attentions need "
                "backbone_source='transformers' and attn_implementation='eager'."
            )
    return pooled, *(tuple(found[name]) if asked[name] else None for name in asked)


def attention_of(backbone: nn.Module, asked: str | None) -> str:
    """How a backbone computes attention ("eager", "sdpa", ...): as is asked for, if anything."""
    if isinstance(backbone, PreTrainedModel):
        if asked is not None:
            backbone.set_attn_implementation(asked)
        return backbone.config._attn_implementation
    layers = [module for module in backbone.modules() if hasattr(module, "fused_attn")]
    if asked not in (None, "eager", *(["sdpa"] if layers else [])):
        raise ValueError(
            f'Specified `attn_implementation="{asked}"` is not supported by timm\'s '
            f'{type(backbone).__name__}: take "eager", "sdpa" where it has attention, or '
            "backbone_source='transformers'."
        )
    for layer in layers if asked else []:
        layer.fused_attn = asked == "sdpa"
    return "sdpa" if any(layer.fused_attn for layer in layers) else "eager"


def use_small_image_stem(backbone: nn.Module, name: str) -> None:
    """A ResNet's stem without its four-fold reduction: 3×3, stride 1, no max-pooling."""
    # transformers calls them embedder.convolution and pooler, timm conv1 and maxpool.
    owner = getattr(backbone, "embedder", backbone)
    conv, pool = ("conv1", "maxpool") if owner is backbone else ("embedder", "pooler")
    if not isinstance(getattr(owner, pool, None), nn.MaxPool2d):
        raise ValueError(
            f"small_images=True replaces the stem of a ResNet, which backbone {name!r} is not: use "
            "its own options instead, such as backbone_kwargs={'patch_size': 4} for a ViT."
        )
    convs = [(m, n) for m in getattr(owner, conv).modules() for n, c in m.named_children() if type(c) is nn.Conv2d]
    parent, child = convs[0] if convs else (owner, conv)
    old = getattr(parent, child)
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    setattr(parent, child, new)
    setattr(owner, pool, nn.Identity())


def source_of(name: str) -> str:
    """ "timm" where it knows the name or saved the folder, else "transformers"."""
    saved = Path(name) / "config.json"
    if saved.is_file():
        return "timm" if "architecture" in read_object(saved) else "transformers"
    return "timm" if timm.is_model(timm_name(name)) else "transformers"


def timm_name(name: str) -> str:
    return name.removeprefix("hf-hub:").removeprefix("timm/")


def _unknown(name: str, known: list[str], library: str, hint: str) -> str:
    near = get_close_matches(name.split("/")[-1].split(".")[0], known, n=3, cutoff=0.5)
    suggestion = f"Did you mean {', '.join(map(repr, near))}? " if near else ""
    return f"{library} has no backbone {name!r}. {suggestion}See {hint}."


def load_timm(name: str, pretrained: bool, kwargs: dict[str, Any], config: dict[str, Any]) -> Loaded:
    refuse_fetching(kwargs)
    if (folder := Path(name)).is_dir():  # as timm saves models for the Hub
        saved = read_object(folder / "config.json")
        name = str(saved.get("architecture"))
    else:
        saved, name = {}, timm_name(name)
    if not timm.is_model(name):
        raise ValueError(_unknown(name, timm.list_models(), "timm", "timm.list_models()"))
    cfg = timm.get_pretrained_cfg(name)
    for key in ("input_size", "interpolation", "crop_pct", "mean", "std"):
        if key in (saved.get("pretrained_cfg") or {}):
            setattr(cfg, key, saved["pretrained_cfg"][key])
    channels = config.get("num_channels", 3)
    defaults = {
        "backbone": name, "backbone_kwargs": kwargs, "image_size": cfg.input_size[-1],
        "interpolation": cfg.interpolation, "crop_pct": cfg.crop_pct,
        "image_mean": list(cfg.mean) if channels == 3 else [sum(cfg.mean) / 3],
        "image_std": list(cfg.std) if channels == 3 else [sum(cfg.std) / 3],
    }  # fmt: skip
    if not pretrained:
        return None, defaults
    if cfg.fixed_input_size:
        kwargs = {"img_size": config.get("image_size", defaults["image_size"]), **kwargs}
    with of_the_hub(name):
        source = timm.create_model(name, pretrained=True, num_classes=0, in_chans=channels, **kwargs)
    return source, defaults


def load_transformers(name: str, pretrained: bool, kwargs: dict[str, Any], config: dict[str, Any]) -> Loaded:
    refuse_fetching(kwargs)
    try:
        with of_the_hub(name):
            backbone_config = auto(AutoConfig, name, **kwargs)
    except OSError as error:
        raise ValueError(
            f"{name!r} is neither a timm model ({_unknown(name, timm.list_models(), 'timm', '')}) "
            f"nor a transformers checkpoint that can be reached ({error})"
        ) from error
    defaults = {
        "backbone": backbone_config.model_type, "image_size": getattr(backbone_config, "image_size", 224),
        "backbone_kwargs": _architecture(backbone_config),
    }  # fmt: skip
    with suppress(OSError):  # a checkpoint without a processor: the defaults of the config remain
        processor = load_image_processor(name)
        defaults["image_mean"] = list(processor.image_mean)
        defaults["image_std"] = list(processor.image_std)
    if not pretrained:
        return None, defaults
    model_class, options = _model_class(backbone_config)
    if not (stored := stored_tensors(name)):
        raise ValueError(
            f"{name} has no model.safetensors, and nothing is unpickled. Where you trust its weights, load them there "
            "and save them again: model.save_pretrained(...) of transformers writes that file."
        )
    with no_larger_than(stored), of_the_hub(name):
        source = model_class.from_pretrained(name, config=backbone_config, use_safetensors=True, **options)
    return source, defaults


def _model_class(config: Any) -> tuple[type[nn.Module], dict[str, Any]]:
    """The transformers class and its options. Image checkpoints have no pooling layer: the class token serves."""
    model_class = AutoModel._model_mapping.get(type(config), None)
    if getattr(model_class, "main_input_name", None) != "pixel_values":
        raise ValueError(f"model type {config.model_type!r} of transformers takes no images.")
    takes_pooling = "add_pooling_layer" in inspect.signature(model_class).parameters
    return model_class, {"add_pooling_layer": False} if takes_pooling else {}


def _architecture(config: Any) -> dict[str, Any]:
    """What differs from the model type's defaults and describes the network, but labels and the image size."""
    skip = {
        "architectures", "id2label", "label2id", "transformers_version", "model_type", "dtype",
        "image_size", "auto_map", "quantization_config", "return_dict",
    }  # fmt: skip
    return {k: v for k, v in config.to_diff_dict().items() if k not in skip and k[0] != "_"}


def _whitening(in_chans: int) -> nn.Sequential:
    """2 × 2 windows → decorrelated values and their negatives, (M, 8 C, H − 1, W − 1).

    The covariance of small windows of photographs is diagonal, but for little, in Hadamard's basis of 2 × 2 pixels
    and, of RGB, in luminance and two opponent colours: a fixed convolution, and a batch norm without weights."""
    steps = torch.tensor([[1.0, 1], [1, -1]]) / 2**0.5
    windows = torch.einsum("ay,bx->abyx", steps, steps).reshape(4, 1, 2, 2)
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]) if in_chans == 3 else torch.eye(in_chans)
    weight = torch.einsum("woyx,kc->wkcyx", windows, F.normalize(colours, dim=1)).flatten(0, 1)
    conv = nn.Conv2d(in_chans, 8 * in_chans, 2, bias=False)
    conv.weight = nn.Parameter(torch.cat([weight, -weight]), requires_grad=False)
    return nn.Sequential(conv, nn.BatchNorm2d(8 * in_chans, affine=False))


class AirNet(nn.Module):
    """For images of 32 or 64 pixels: it learns CIFAR-10 in minutes, on a CPU too. After Jordan 2024, "94% on CIFAR-10
    in 3.29 Seconds on a Single GPU" (arXiv 2404.00498).

    Whitening; for each width a block of two 3 × 3 convolutions, which halves the sides; and the maximum over the
    image. Convolutions begin by handing on their input. Batch norms have no scale, which the next layer has, and a
    short memory, as trainings take few steps."""

    def __init__(self, widths: Sequence[int] = (64, 128, 256), num_classes: int = 0, in_chans: int = 3) -> None:
        super().__init__()
        layers, before = [_whitening(in_chans), nn.GELU()], 8 * in_chans
        for width in widths:
            convs = [nn.Conv2d(w, width, 3, padding=1, bias=False) for w in (before, width)]
            norms = [nn.BatchNorm2d(width, momentum=0.2) for _ in convs]
            for conv, norm in zip(convs, norms):
                nn.init.dirac_(conv.weight.data[: conv.in_channels])
                norm.weight.requires_grad_(False)
            layers += [convs[0], nn.MaxPool2d(2), norms[0], nn.GELU(), convs[1], norms[1], nn.GELU()]
            before = width
        self.num_features, self.layers = before, nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).amax((2, 3)))


default_cfgs = {"airnet": {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}}


def airnet(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> AirNet:
    if pretrained:
        raise ValueError("airnet has no pretrained weights: leave out pretrained.")
    return AirNet(**{name: value for name, value in kwargs.items() if value is not None})


if not timm.is_model("airnet"):  # by the package, where this is the code beside a checkpoint
    timm.models.register_model(airnet)
