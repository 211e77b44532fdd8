"""ProtoSphere models: backbone → projection → unit sphere → cosines to one prototype per class.

Travels to the Hub with every checkpoint, beside the files it imports."""

import math
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .backbones import (
    attention_of,
    build_backbone,
    build_projection,
    decide_projection,
    features_of,
    load_timm,
    load_transformers,
    source_of,
)
from .checking import check_fit, has_new_head, load_from, load_weights, no_larger_than, stored_tensors
from .configuration_protosphere import ProtoSphereConfig, save_image_processor
from .contrast import full_precision
from .editable_classes import EditableClasses
from .objectives import EmbeddingQueue, default_temperature, objective_loss
from .prototypes import PrototypeHead, known_score, simplex_etf, whole

if TYPE_CHECKING:
    # Never imported here: it is copied beside every checkpoint because this line names it.
    from .pipeline_protosphere import OpenSetImageClassificationPipeline  # noqa: F401

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601-2, the weights of Pillow's convert("L")


@dataclass
class ProtoSphereModelOutput(ModelOutput):
    """
    Args:
        embeddings: (M, D) or (M, V, D), unit norm, float32 or wider.
        pooler_output: (M, F) or (M, V, F), the backbone's pooled features.
        projected: (M, D) or (M, V, D), the projection before normalisation.
        hidden_states, attentions: of all layers, of M or M·V images, as the backbone's library gives them, if asked.
    """

    embeddings: Tensor | None = None
    pooler_output: Tensor | None = None
    projected: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class ProtoSphereImageClassifierOutput(ModelOutput):
    """
    Args:
        loss: scalar, the configured objective, when labels were given.
        logits: (M, K), cosines / softmax_temperature / calibration_temperature; of several views their mean.
        embeddings: (M, D) or (M, V, D), unit norm.
        is_unknown: (M,) bool, where the configuration's `rejection_score` is below its `rejection_threshold`;
            None without one.
        hidden_states, attentions: as in `ProtoSphereModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None
    is_unknown: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ProtoSpherePreTrainedModel(PreTrainedModel):
    config_class = ProtoSphereConfig
    base_model_prefix = "protosphere"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False  # the objectives average over the batch by themselves
    supports_gradient_checkpointing = True  # but for some backbones, which are then named

    def get_input_embeddings(self) -> nn.Module | None:
        """Of patches, in a transformers backbone; timm's have no common name for them: None.
        Accelerate asks when it shards a model (FSDP2)."""
        with suppress(AttributeError, NotImplementedError):
            return self.base_model.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.backbone.set_input_embeddings(value)  # timm's have no such method

    def _set_gradient_checkpointing(self, enable: bool = True, **options: Any) -> None:
        base = self.base_model
        try:
            if not hasattr(base.backbone, "set_grad_checkpointing"):
                return super()._set_gradient_checkpointing(enable, **options)
            # timm's, of every block; the options are those of transformers' layers.
            base.backbone.set_grad_checkpointing(enable)
            base.gradient_checkpointing = enable  # what `is_gradient_checkpointing` looks for
        except (AssertionError, ValueError) as error:
            if enable:
                raise ValueError(
                    f"backbone {self.config.backbone!r} has no gradient checkpointing: leave it out, or take another."
                ) from error

    def _check_and_adjust_attn_implementation(self, asked: Any, *args: Any, **kwargs: Any) -> Any:
        backbone = getattr(self.base_model, "backbone", None)  # it knows, once it is built
        return asked if backbone is None else attention_of(backbone, asked)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PrototypeHead):
            module.start(init.copy_)
            if self.config.learned_temperature:
                init.constant_(module.log_temperature, math.log(self.config.softmax_temperature))
        elif isinstance(module, nn.Linear) and getattr(module, "is_projection_or_head", False):
            init.kaiming_uniform_(module.weight, a=5**0.5)  # torch's own default
            init.zeros_(module.bias)
        elif hasattr(module, "init_non_persistent_buffers"):
            # timm's position indices and the like are not saved: built on the meta device while
            # loading, they would stay uninitialised memory. timm initialised everything else.
            module.init_non_persistent_buffers()
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As `PreTrainedModel.from_pretrained`, from safetensors files only, and strict.

        Args:
            ignore_mismatched_sizes: start with a new head where the checkpoint's does not fit: for other classes, or
                another objective. A calibration is that of the old head: a new one has none.

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
            model.forget_calibration()
            model.config.class_margins = None
            if model.config.reserved_classes and model.config.has_prototypes:
                model.head.start()  # all vertices of one frame
        for tensor in [*model.parameters(), *model.buffers()]:
            # safetensors maps tensors where they lie in the file. At an odd address matrix kernels
            # round differently, and the reloaded model would differ in the last bit.
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; a classifier's folder serves AutoModel too.

        The image processor that the configuration describes is saved along, unless the folder has
        one: another one stays, with a warning."""
        self.config.auto_map = {
            "AutoConfig": "configuration_protosphere.ProtoSphereConfig",
            "AutoModel": "modeling_protosphere.ProtoSphereModel",
        }
        weights = kwargs.get("state_dict") or self.state_dict()
        if (learned := weights.get("head.log_temperature")) is not None:
            self.config.softmax_temperature = PrototypeHead.temperature(learned).item()
        super().save_pretrained(save_directory, *args, **kwargs)
        if args[:1] != (False,) and kwargs.get("is_main_process", True):
            save_image_processor(self.config, save_directory)
            mode = Path(save_directory, "config.json").stat().st_mode
            for weights in Path(save_directory).glob("model*.safetensors"):
                weights.chmod(mode)  # safetensors lets nobody but their owner read them

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        save_image_processor(self.config, working_dir)  # before `save_pretrained` comes to it
        return super()._upload_modified_files(working_dir, *args, **kwargs)


class ProtoSphereModel(ProtoSpherePreTrainedModel):
    """Backbone and projection: images to embeddings on the unit sphere.

    `__init__` builds the architecture and never downloads anything; for pretrained backbones see
    `ProtoSphereForImageClassification.from_backbone`."""

    def __init__(self, config: ProtoSphereConfig) -> None:
        super().__init__(config)
        self.backbone, feature_dim = build_backbone(config)
        config._attn_implementation_internal = attention_of(self.backbone, config._attn_implementation)
        decide_projection(config, self.backbone, feature_dim)
        self.projection, self.embedding_dim = build_projection(config, feature_dim)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ProtoSphereModelOutput:
        """Embed images.

        Args:
            pixel_values: (M, C, H, W), or (M, V, C, H, W) for V views of each image, normalised.
            **kwargs: output_hidden_states, output_attentions; by default the configuration's.

        Raises:
            ValueError: another shape, or the backbone does not give what is asked for.
        """
        views = pixel_values.shape[1] if pixel_values.dim() == 5 else None
        images = pixel_values.flatten(0, 1) if views else pixel_values
        if images.dim() != 4:
            raise ValueError(f"expected pixel_values (M[, V], C, H, W), but got {tuple(pixel_values.shape)}.")
        if images.shape[1] == 3 and self.config.num_channels == 1:
            images = (images * images.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
        # All views in one forward: two would break DistributedDataParallel with batch norm.
        asked = [
            getattr(self.config, name) if kwargs.get(name) is None else kwargs[name]
            for name in ("output_hidden_states", "output_attentions")
        ]
        features, *layers = features_of(self.backbone, images.to(self.dtype), *asked)  # (M·V, F)
        projected = self.projection(features)  # (M·V, D)
        with full_precision(projected):
            embeddings = F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)
        if views:
            features, projected, embeddings = (x.unflatten(0, (-1, views)) for x in (features, projected, embeddings))
        return ProtoSphereModelOutput(embeddings, features, projected, *layers)


class ProtoSphereForImageClassification(EditableClasses, ProtoSpherePreTrainedModel):
    """Classifies by the cosine to one prototype per class.

    With `labels` the forward computes a loss, so that `transformers.Trainer` or any loop trains and evaluates it. In
    training mode that is the configured objective, and the contrast spans all processes of the default group. In
    evaluation mode it is, under every objective, the negative log-likelihood of the labels, of softmax(logits) before
    any calibration: a mean over images, so that order and size of the batches are nothing to it. Where the prototypes
    are class means (scl) it says as much as they do: give them by `set_prototypes` first.

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
        if config.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"problem_type must be 'single_label_classification', but got {config.problem_type!r}.")
        if config.softmax_temperature is None:
            config.softmax_temperature = default_temperature(config.objective, config.num_labels)
        self.protosphere = ProtoSphereModel(config)
        dim = self.protosphere.embedding_dim
        if not config.has_prototypes:
            self.classifier = nn.Linear(dim, config.num_labels)
            self.classifier.is_projection_or_head = True
        else:
            reserved, vertices = config.reserved_classes, config.num_labels + config.reserved_classes
            if config.prototypes == "simplex_etf" and vertices > dim + 1:
                simplex_etf(vertices, dim)  # raises, also on the meta device
            self.head = PrototypeHead(config.num_labels, dim, config.prototypes, config.learned_temperature, reserved)
        fitted = config.rejection_sizes
        self.register_buffer("rejection_axes", fitted and torch.empty(dim, fitted[0]))
        self.register_buffer("rejection_centers", fitted and torch.empty(fitted[1], dim))
        # For training only. A queue is of one process: no module, which others would be told.
        self.register_buffer("class_weight", None, persistent=False)
        self.register_buffer("class_bias", None, persistent=False)
        self.queue: list[EmbeddingQueue] = []
        self.post_init()

    @property
    def prototypes(self) -> Tensor:
        """(K, D), unit norm; of a cross-entropy model, the directions of its linear head."""
        if not self.config.has_prototypes:
            return F.normalize(whole(self.classifier.weight).float(), dim=-1)
        return self.head.prototypes

    @property
    def temperature(self) -> float | Tensor:
        """Of the loss and the logits: a number, or (1,) that is learned."""
        if not self.config.learned_temperature:
            return self.config.softmax_temperature
        return self.head.temperature(self.head.log_temperature)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, detach_logits: bool = False, **kwargs: Any
    ) -> ProtoSphereImageClassifierOutput:
        """Classify images, and with labels compute the objective.

        Args:
            pixel_values: (M, C, H, W), or (M, V, C, H, W) for V views of each image, normalised.
            labels: (M,) int64 in [0, K).
            detach_logits: of prototypes, without a graph and in no more memory than they take themselves: for where
                they are only looked at.
            **kwargs: as in `ProtoSphereModel.forward`.
        """
        output = self.protosphere(pixel_values, **kwargs, return_dict=True)
        embeddings = output.embeddings  # (M[, V], D)
        with full_precision(embeddings):
            if not self.config.has_prototypes:
                operands = (output.projected, self.classifier.weight, self.classifier.bias)
                logits = F.linear(*(x.to(embeddings.dtype) for x in operands))
            else:
                with torch.no_grad() if detach_logits else nullcontext():
                    cosines = self.head.cosines(embeddings, exact=not self.training)
                    if self.config.class_margins is not None:
                        cosines = cosines - cosines.new_tensor(self.config.class_margins)
                    # (M[, V], K)
                    logits = cosines.div_(self.temperature) if detach_logits else cosines / self.temperature
            loss = None if labels is None else self.objective(embeddings, logits, labels)
            if logits.dim() == 3:
                logits = logits.mean(1)
            if self.config.calibration_temperature != 1.0:
                logits = logits / self.config.calibration_temperature
            is_unknown, threshold = None, self.config.rejection_threshold
            if threshold is not None:
                is_unknown = self.known_score(embeddings, logits) < threshold
        return ProtoSphereImageClassifierOutput(
            loss, logits, embeddings, is_unknown, output.hidden_states, output.attentions
        )

    def known_score(self, embeddings: Tensor, logits: Tensor) -> Tensor:
        """(M,) the configured `rejection_score` of what `forward` returns, as `prototypes.known_score`."""
        of_model = (self.prototypes.detach().to(embeddings), self.rejection_axes, self.rejection_centers)
        return known_score(self.config.rejection_score, embeddings, logits, *of_model)

    def objective(self, embeddings: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings (M[, V], D) and logits (M[, V], K) that `forward` computes when it
        is given labels: the configured one, or in evaluation mode the log-likelihood's."""
        config = self.config
        prototypes = self.head.weight if config.has_prototypes else None
        if self.training and config.reserved_classes and "normface" in config.objective and self.class_bias is None:
            # Images choose among all vertices, whose mean is the origin: so their optimum is at their own.
            prototypes = torch.cat([prototypes, self.head.spare])
        batch = (embeddings, logits, labels, prototypes, self.temperature)
        if not self.training:
            return objective_loss("cross_entropy", *batch)
        loss = objective_loss(
            config.objective, *batch, margin=config.margin, margin_type=config.margin_type, weight=self.class_weight,
            bias=self.class_bias, queue=(self.queue[0].embeddings, self.queue[0].labels) if self.queue else None,
        )  # fmt: skip
        for queue in self.queue:
            queue.push(embeddings, labels)
        return loss

    @classmethod
    def from_backbone(
        cls, name: str, *, pretrained: bool | str | Path = True, backbone_source: str | None = None,
        backbone_kwargs: dict[str, Any] | None = None, partial_weights: bool = False, **config_kwargs: Any,
    ) -> "ProtoSphereForImageClassification":  # fmt: skip
        """A new classifier that starts from pretrained backbone weights.

        Args:
            name: a timm model ("resnet18", "timm/vit_tiny_patch16_224.augreg_in21k") or a folder
                that timm saved, or a transformers checkpoint on the Hub or in a folder.
            pretrained: download or read the weights; `False` for random ones; or where they are, a file
                or folder that `read_weights` takes. What of it was loaded is logged.
            backbone_source: "timm" or "transformers"; by default timm where it knows the name.
            backbone_kwargs: as in `ProtoSphereConfig`.
            partial_weights: with such a place, take what fits and leave out the rest.
            **config_kwargs: anything else of `ProtoSphereConfig`. Image size, mean, std,
                interpolation and crop default to what the backbone was trained with.
        """
        backbone_source = backbone_source or source_of(name)
        load = load_timm if backbone_source == "timm" else load_transformers
        if pretrained is True and backbone_source == "timm" and Path(name).is_dir():
            pretrained = Path(name, "model.safetensors")
        source, defaults = load(name, pretrained is True, dict(backbone_kwargs or {}), config_kwargs)
        config = ProtoSphereConfig(backbone_source=backbone_source, **{**defaults, **config_kwargs})
        model = cls(config)
        backbone, new_stem = model.protosphere.backbone, config.small_images
        if source is not None:
            load_weights(backbone, source.state_dict(), new_stem=new_stem)
        elif pretrained:
            load_from(backbone, pretrained, partial=partial_weights, new_stem=new_stem)
        return model


ProtoSphereConfig.register_for_auto_class()
ProtoSphereModel.register_for_auto_class("AutoModel")
ProtoSphereForImageClassification.register_for_auto_class("AutoModelForImageClassification")
