"""ProtoSphere models: backbone → projection → unit sphere → cosines to one prototype per class.

Travels to the Hub with every checkpoint, beside the files it imports.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import IMAGE_PROCESSOR_NAME, can_return_tuple

from .backbones import build_backbone, load_timm, load_transformers, pooled_features, source_of
from .checking import check_fit, has_new_head, no_larger_than, stored_tensors
from .configuration_protosphere import ProtoSphereConfig, build_image_processor
from .contrast import full_precision
from .editable_classes import EditableClasses
from .losses import nonl_loss, normface_loss, ntce_loss, supcon_loss
from .prototypes import cosines_to, nearest_cosines, simplex_etf

if TYPE_CHECKING:
    # Never imported here: it is copied beside every checkpoint because this line names it.
    from .pipeline_protosphere import OpenSetImageClassificationPipeline  # noqa: F401

logger = logging.getLogger(__name__)
PROTOTYPE_LOSSES = {"nonl": nonl_loss, "ntce": ntce_loss, "normface": normface_loss}
TRANSFORM = ("size", "crop_size", "resample", "image_mean", "image_std")  # of an image processor
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601-2, the weights of Pillow's convert("L")


@dataclass
class ProtoSphereModelOutput(ModelOutput):
    """
    Args:
        embeddings: (M, D) or (M, V, D), unit norm, float32 or wider.
        pooler_output: (M, F) or (M, V, F), the backbone's pooled features.
        projected: (M, D) or (M, V, D), the projection before normalisation.
    """

    embeddings: Tensor | None = None
    pooler_output: Tensor | None = None
    projected: Tensor | None = None


@dataclass
class ProtoSphereImageClassifierOutput(ModelOutput):
    """
    Args:
        loss: scalar, the configured objective, when labels were given.
        logits: (M, K), cosines / softmax_temperature / calibration_temperature; the mean over views
            where there are several.
        embeddings: (M, D) or (M, V, D), unit norm.
        is_unknown: (M,) bool, where the largest cosine to a prototype is below the configuration's
            `rejection_threshold`; None without one.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None
    is_unknown: Tensor | None = None


class PrototypeHead(nn.Module):
    """K prototypes on the unit sphere; trained when learned, a saved buffer when fixed."""

    def __init__(self, num_classes: int, dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        weight = torch.empty(num_classes, dim)
        if kind == "learned":
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    @property
    def prototypes(self) -> Tensor:
        """(K, D), unit rows, float32 or wider. Of a sharded model all processes ask together."""
        weight = _whole(self.weight)
        return F.normalize(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=-1)

    @torch.no_grad()
    def initial_weight(self) -> Tensor:
        num_classes, dim = self.weight.shape
        if self.kind == "simplex_etf":
            return simplex_etf(num_classes, dim)
        return F.normalize(torch.randn(num_classes, dim), dim=-1)


class ProtoSpherePreTrainedModel(PreTrainedModel):
    config_class = ProtoSphereConfig
    base_model_prefix = "protosphere"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False  # the objectives average over the batch by themselves

    def get_input_embeddings(self) -> None:
        """Images have no table of embeddings: Accelerate asks when it shards a model (FSDP2)."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PrototypeHead):
            init.copy_(module.weight, module.initial_weight())
        elif isinstance(module, nn.Linear) and getattr(module, "is_projection_or_head", False):
            init.kaiming_uniform_(module.weight, a=5**0.5)  # torch's own default
            init.zeros_(module.bias)
        elif hasattr(module, "init_non_persistent_buffers"):
            # timm's position indices and the like are not saved: built on the meta device while
            # loading, they would stay uninitialised memory. timm initialised everything else.
            module.init_non_persistent_buffers()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As `PreTrainedModel.from_pretrained`, from safetensors files only, and strict.

        Args:
            ignore_mismatched_sizes: start with a new head where the checkpoint's does not fit: for
                other classes, or another objective. A calibration is that of the old head: a new
                one has none.

        Raises:
            ValueError: the file is damaged, or does not fit the configuration; in one line.
            OSError: there is no safetensors file.
        """
        name, kwargs = pretrained_model_name_or_path, {**kwargs, "use_safetensors": True}
        stored = stored_tensors(name, **kwargs)
        asked = kwargs.get("num_labels") or len(kwargs.get("id2label") or ())
        asked = max(asked, getattr(kwargs.get("config"), "num_labels", 0))
        # Misfits are all let through here, and judged below.
        with no_larger_than(stored, new_head=asked if ignore_mismatched_sizes else 0):
            model, info = super().from_pretrained(
                name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        any_head = ignore_mismatched_sizes or model.base_model is model
        check_fit(model, name, info, stored, any_head=any_head)
        if has_new_head(info):
            model.config.forget_calibration()
        for tensor in [*model.parameters(), *model.buffers()]:
            # safetensors maps tensors where they lie in the file. At an odd address matrix kernels
            # round differently, and the reloaded model would differ in the last bit.
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; a classifier's folder serves AutoModel too.

        The image processor that the configuration describes is saved along, unless the folder has
        one: another one stays, with a warning.
        """
        self.config.auto_map = {
            "AutoConfig": "configuration_protosphere.ProtoSphereConfig",
            "AutoModel": "modeling_protosphere.ProtoSphereModel",
        }
        super().save_pretrained(save_directory, *args, **kwargs)
        if args[:1] != (False,) and kwargs.get("is_main_process", True):
            self._save_image_processor(save_directory)

    def _save_image_processor(self, folder: Any) -> None:
        processor, file = build_image_processor(self.config), Path(folder) / IMAGE_PROCESSOR_NAME
        if not file.exists():
            processor.save_pretrained(folder)
            return
        saved, described = map(json.loads, (file.read_text(), processor.to_json_string()))
        if any(saved.get(name) != described[name] for name in TRANSFORM):
            logger.warning(
                f"{file} makes other images than the model's configuration describes, and stays as "
                "it is: delete it and save the model again, if it is that of an earlier model."
            )

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        self._save_image_processor(working_dir)  # `save_pretrained(..., push_to_hub=True)` is here
        return super()._upload_modified_files(working_dir, *args, **kwargs)


class ProtoSphereModel(ProtoSpherePreTrainedModel):
    """Backbone and projection: images to embeddings on the unit sphere.

    `__init__` builds the architecture and never downloads anything; for pretrained backbones see
    `ProtoSphereForImageClassification.from_backbone`.
    """

    def __init__(self, config: ProtoSphereConfig) -> None:
        super().__init__(config)
        self.backbone, feature_dim = build_backbone(config)
        self.projection, self.embedding_dim = _build_projection(config, feature_dim)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ProtoSphereModelOutput:
        """Embed images.

        Args:
            pixel_values: (M, C, H, W), or (M, V, C, H, W) for V views of each image, normalised.
        """
        views = pixel_values.shape[1] if pixel_values.dim() == 5 else None
        images = pixel_values.flatten(0, 1) if views else pixel_values
        if images.dim() != 4:
            raise ValueError(
                "expected pixel_values (M, C, H, W), or (M, V, C, H, W) for views, but got "
                f"{tuple(pixel_values.shape)}."
            )
        if images.shape[1] == 3 and self.config.num_channels == 1:
            weights = images.new_tensor(LUMINANCE).view(1, 3, 1, 1)
            images = (images * weights).sum(1, keepdim=True)
        # All views in one forward: two would break DistributedDataParallel with batch norm.
        features = pooled_features(self.backbone(images.to(self.dtype)))  # (M·V, F)
        projected = self.projection(features)  # (M·V, D)
        with full_precision(projected):
            embeddings = F.normalize(
                projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1
            )
        if views:
            features, projected, embeddings = (
                x.unflatten(0, (-1, views)) for x in (features, projected, embeddings)
            )
        return ProtoSphereModelOutput(embeddings, features, projected)


class ProtoSphereForImageClassification(EditableClasses, ProtoSpherePreTrainedModel):
    """Classifies by the cosine to one prototype per class.

    With `labels` the forward computes the configured objective, so that `transformers.Trainer` or
    any loop trains it. While training, the contrast spans all processes of the default group; in
    evaluation mode it is this process's batch.

    Example:
        >>> config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=4)
        >>> model = ProtoSphereForImageClassification(config)
        >>> output = model(torch.randn(8, 3, 32, 32), labels=torch.arange(8) % 4)
        >>> output.logits.shape, output.embeddings.shape
        (torch.Size([8, 4]), torch.Size([8, 96]))
    """

    def __init__(self, config: ProtoSphereConfig) -> None:
        super().__init__(config)
        if not config.num_labels or config.num_labels < 2:
            raise ValueError(f"num_labels must be at least 2, but got {config.num_labels}.")
        self.protosphere = ProtoSphereModel(config)
        dim = self.protosphere.embedding_dim
        if not config.has_prototypes:
            self.classifier = nn.Linear(dim, config.num_labels)
            self.classifier.is_projection_or_head = True
        else:
            if config.prototypes == "simplex_etf" and config.num_labels > dim + 1:
                simplex_etf(config.num_labels, dim)  # raises, also on the meta device
            self.head = PrototypeHead(config.num_labels, dim, config.prototypes)
        self.post_init()

    @property
    def prototypes(self) -> Tensor:
        """(K, D), unit norm; of a cross-entropy model, the directions of its linear head."""
        if not self.config.has_prototypes:
            return F.normalize(_whole(self.classifier.weight).float(), dim=-1)
        return self.head.prototypes

    @torch.no_grad()
    def set_prototypes(self, prototypes: Tensor) -> None:
        """Replace the prototypes, for instance by `class_means`. An earlier calibration, which was
        that of the old ones, is forgotten.

        Args:
            prototypes: (K, D), any norm but zero; stored with unit norm.

        Raises:
            ValueError: another shape, zero or non-finite rows, or a cross-entropy model.
        """
        if not self.config.has_prototypes:
            raise ValueError(
                "a cross_entropy model has a linear head, no prototypes: build the model with "
                "another objective, or classify by `embeddings @ prototypes.T` yourself."
            )
        if prototypes.shape != self.head.weight.shape:
            raise ValueError(
                f"expected prototypes (K, D) = {tuple(self.head.weight.shape)}, one row per class, "
                f"but got {tuple(prototypes.shape)}."
            )
        norms = prototypes.double().norm(dim=-1)
        if wrong := (~(norms.isfinite() & (norms > 0))).nonzero().flatten().tolist():
            raise ValueError(f"prototypes must be finite and not zero, but rows {wrong[:5]} are.")
        self.head.weight.copy_(F.normalize(prototypes.double(), dim=-1))
        self.config.forget_calibration()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ProtoSphereImageClassifierOutput:
        """Classify images, and with labels compute the objective.

        Args:
            pixel_values: (M, C, H, W), or (M, V, C, H, W) for V views of each image, normalised.
            labels: (M,) int64 in [0, K).
        """
        output = self.protosphere(pixel_values, return_dict=True)
        embeddings = output.embeddings  # (M[, V], D)
        with full_precision(embeddings):
            if not self.config.has_prototypes:
                operands = (output.projected, self.classifier.weight, self.classifier.bias)
                logits = F.linear(*(x.to(embeddings.dtype) for x in operands))
            else:
                prototypes = self.prototypes.to(embeddings.dtype)
                if self.training:  # one product is faster than many that promise the last bit
                    cosines = embeddings @ prototypes.T
                else:
                    cosines = cosines_to(embeddings, prototypes)
                logits = cosines / self.config.softmax_temperature  # (M[, V], K)
            loss = None if labels is None else self.objective(embeddings, logits, labels)
            is_unknown, threshold = None, self.config.rejection_threshold
            if threshold is not None:
                is_unknown = nearest_cosines(embeddings, self.prototypes) < threshold
        if logits.dim() == 3:
            logits = logits.mean(1)
        logits = logits / self.config.calibration_temperature  # by 1.0 nothing changes
        return ProtoSphereImageClassifierOutput(loss, logits, embeddings, is_unknown)

    def objective(self, embeddings: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The configured loss of embeddings (M[, V], D) and logits (M[, V], K): what `forward`
        computes when it is given labels."""
        objective, temperature = self.config.objective, self.config.softmax_temperature
        group = None if self.training else "local"
        if objective == "scl":
            # What the model returns has unit norm already: normalising again would cost a pass.
            return supcon_loss(embeddings, labels, temperature, group=group, normalize=False)
        if embeddings.dim() == 3:  # views: each one is an instance of its class
            labels = labels.repeat_interleave(embeddings.shape[1])
            embeddings, logits = embeddings.flatten(0, 1), logits.flatten(0, 1)
        if not self.config.has_prototypes:
            return F.cross_entropy(logits, labels)
        loss = PROTOTYPE_LOSSES[objective]
        return loss(embeddings, self.head.weight, labels, temperature, group=group)

    @classmethod
    def from_backbone(
        cls, name: str, *, pretrained: bool | str | Path = True, backbone_source: str | None = None,
        backbone_kwargs: dict[str, Any] | None = None, **config_kwargs: Any,
    ) -> ProtoSphereForImageClassification:  # fmt: skip
        """A new classifier that starts from pretrained backbone weights.

        Args:
            name: a timm model ("resnet18", "timm/vit_tiny_patch16_224.augreg_in21k") or a folder
                that timm saved, or a transformers checkpoint on the Hub or in a folder.
            pretrained: download or read the weights; `False` for random ones; or the path of a
                file with weights of a timm model.
            backbone_source: "timm" or "transformers"; by default timm where it knows the name.
            backbone_kwargs: as in `ProtoSphereConfig`.
            **config_kwargs: anything else of `ProtoSphereConfig`. Image size, mean, std,
                interpolation and crop default to what the backbone was trained with.
        """
        if backbone_source is None:
            backbone_source = source_of(name)
        load = load_timm if backbone_source == "timm" else load_transformers
        source, defaults = load(name, pretrained, dict(backbone_kwargs or {}), config_kwargs)
        config = ProtoSphereConfig(backbone_source=backbone_source, **{**defaults, **config_kwargs})
        model = cls(config)
        if source is not None:
            # With a small-image stem the first convolution has another shape and stays new.
            ours = model.protosphere.backbone.state_dict()
            fitting = {k: v for k, v in source.state_dict().items() if ours[k].shape == v.shape}
            model.protosphere.backbone.load_state_dict(fitting, strict=not config.small_images)
        return model


def _build_projection(config: ProtoSphereConfig, feature_dim: int) -> tuple[nn.Module, int]:
    if config.projection == "none":
        return nn.Identity(), feature_dim
    dim = config.projection_dim
    if config.projection == "linear":
        layers = [nn.Linear(feature_dim, dim)]
    else:
        hidden = config.projection_hidden_dim or feature_dim
        layers = [nn.Linear(feature_dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)]
    for layer in layers:
        layer.is_projection_or_head = True
    return nn.Sequential(*layers), dim


def _whole(weight: Tensor) -> Tensor:
    """FSDP2 leaves a shard of a DTensor in each process, put together within `forward` only."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


ProtoSphereConfig.register_for_auto_class()
ProtoSphereModel.register_for_auto_class("AutoModel")
ProtoSphereForImageClassification.register_for_auto_class("AutoModelForImageClassification")
