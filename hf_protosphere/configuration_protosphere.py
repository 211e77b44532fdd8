"""Configuration of a ProtoSphere model. Travels to the Hub with every checkpoint."""

from __future__ import annotations

import math
import reprlib
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PretrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

BACKBONE_SOURCES = ("timm", "transformers")
PROJECTIONS = ("none", "linear", "mlp")
PROTOTYPES = ("learned", "simplex_etf", "class_means")
OBJECTIVES = ("nonl", "ntce", "scl", "normface", "cross_entropy")
DTYPES = ("float32", "float16", "bfloat16", "float64")
# Pillow's names, numbered as by `PIL.Image.Resampling`.
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

OPEN_SET_TASK = "open-set-image-classification"
OPEN_SET_PIPELINE = "pipeline_protosphere.OpenSetImageClassificationPipeline"

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class ProtoSphereConfig(PretrainedConfig):
    """A backbone, a projection to the unit sphere, and one prototype per class.

    Args:
        backbone: a timm architecture ("resnet18", "convnext_tiny.fb_in1k"), or the model type of a
            transformers vision model ("vit", "resnet", "dinov2").
        backbone_source: "timm" or "transformers".
        backbone_kwargs: passed on to `timm.create_model`, or to the transformers configuration.
        small_images: ResNets start with a 3×3 stride-1 convolution and no max-pooling, for images
            of 32 pixels or so. Other families take their own options in `backbone_kwargs`
            (`patch_size=4` for a ViT, for instance).
        projection: "none", "linear", or "mlp" (linear, ReLU, linear), onto the embeddings' space.
        projection_dim: dimension D of the embeddings; ignored with `projection="none"`.
        projection_hidden_dim: width of the MLP; by default the backbone's.
        prototypes: "learned"; "simplex_etf" (fixed at the optimum, K ≤ D + 1); or "class_means"
            (the mean embeddings of the classes, set after training: the fixed prototypes of
            arXiv 2605.20302). By default "class_means" for `objective="scl"`, else "learned".
        objective: what `labels` train: "nonl", "ntce", "scl", "normface", or "cross_entropy", the
            classical linear head with bias on unnormalised features, for comparison.
        softmax_temperature: t > 0; logits are cosines divided by it. (The attribute cannot be
            called `temperature`: transformers takes that for a generation parameter.)
        image_size: side of the square input, in pixels.
        num_channels: 1 (grayscale) or 3 (RGB). A grayscale model also takes RGB, as the
            image-classification pipeline sends it, and uses the luminance.
        image_mean, image_std: of pixel values in [0, 1], one number per channel; by default
            ImageNet's for RGB, 0.5 for grayscale.
        interpolation: Pillow's name for resizing: "bicubic", "bilinear", ...
        crop_pct: the evaluation transform resizes the shorter side to image_size / crop_pct and
            crops the centre.
        rejection_threshold: in [-1, 1]; an image whose largest cosine to a prototype is below it is
            unknown. None, the default, knows every image. `protosphere calibrate` chooses it.
        false_rejection_rate: in (0, 1), the share of known images that the threshold may reject.
            None where that was not measured, or not since classes came or went.
        calibration_temperature: > 0; the logits that a classifier returns are divided by it, after
            the loss is computed. The order of the classes stays. `protosphere calibrate` fits it.

    `num_labels` or `id2label` give the classes, as everywhere in transformers.

    Raises:
        ValueError: naming the argument, the value and what it may be.
    """

    model_type = "protosphere"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [  # by Trainer
        "embeddings", "is_unknown", "hidden_states", "attentions",
    ]  # fmt: skip

    backbone: str = "resnet18"
    backbone_source: str = "timm"
    backbone_kwargs: dict[str, Any] | None = None
    small_images: bool = False
    projection: str = "none"
    projection_dim: int = 128
    projection_hidden_dim: int | None = None
    prototypes: str | None = None
    objective: str = "nonl"
    softmax_temperature: float = 0.1
    image_size: int = 224
    num_channels: int = 3
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    rejection_threshold: float | None = None
    false_rejection_rate: float | None = None
    calibration_temperature: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.dtype is not None and str(self.dtype).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {self.dtype!r}.")
        super().__post_init__(**kwargs)
        self.backbone_kwargs = dict(self.backbone_kwargs or {})
        if self.prototypes is None:
            self.prototypes = "class_means" if self.objective == "scl" else "learned"
        color = self.num_channels == 3
        self.image_mean = list(self.image_mean or (IMAGENET_MEAN if color else [0.5]))
        self.image_std = list(self.image_std or (IMAGENET_STD if color else [0.5]))
        self._check()

    @property
    def class_names(self) -> list[str]:
        """Of the K classes, in their order."""
        return [self.id2label[i] for i in range(self.num_labels)]

    @property
    def has_prototypes(self) -> bool:
        """Whether classes are prototypes on the sphere; a cross-entropy model has a linear head."""
        return self.objective != "cross_entropy"

    def forget_calibration(self) -> None:
        """For a model that changes: its threshold and temperature are those of what it was."""
        self.rejection_threshold = self.false_rejection_rate = None
        self.calibration_temperature = 1.0

    @property
    def custom_pipelines(self) -> dict[str, Any]:
        """Tasks that `transformers.pipeline` runs by code beside the checkpoint. Where the package
        is imported there are none: the task is in transformers' registry, and needs no trust."""
        remote = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
        if not remote or self.rejection_threshold is None:
            return {}
        return {
            OPEN_SET_TASK: {"impl": OPEN_SET_PIPELINE, "pt": ["AutoModelForImageClassification"]}
        }

    @custom_pipelines.setter
    def custom_pipelines(self, value: dict[str, Any]) -> None:
        """Nothing: `Pipeline.save_pretrained` would write down what follows from the class."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and value:
            classes = {str(key) for key in value} if isinstance(value, dict) else set()
            if classes != {str(i) for i in range(len(value))}:
                raise ValueError(
                    "id2label must map 0, 1, 2, ... to the names of the classes, but got "
                    f"{reprlib.repr(value)}."
                )
        super().__setattr__(name, value)
        # Both maps or neither: a checkpoint loaded with another id2label must not keep label2id.
        if name == "id2label" and value:
            self.label2id = {label: int(index) for index, label in value.items()}

    def _check(self) -> None:
        for name, allowed in (
            ("backbone_source", BACKBONE_SOURCES), ("projection", PROJECTIONS),
            ("prototypes", PROTOTYPES), ("objective", OBJECTIVES),
            ("interpolation", INTERPOLATIONS),
        ):  # fmt: skip
            if (value := getattr(self, name)) not in allowed:
                known = ", ".join(map(repr, allowed))
                raise ValueError(f"{name} must be one of {known}, but got {value!r}.")
        for name in (
            "softmax_temperature", "calibration_temperature", "projection_dim", "image_size",
            "crop_pct",
        ):  # fmt: skip
            value = getattr(self, name)
            if not (isinstance(value, int | float) and value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, but got {value!r}.")
        for name, low, high in (("rejection_threshold", -1, 1), ("false_rejection_rate", 0, 1)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and low <= value <= high):
                raise ValueError(f"{name} must be in [{low}, {high}] or None, but got {value!r}.")
        if self.num_channels not in (1, 3):
            raise ValueError(
                f"num_channels must be 1 (grayscale) or 3 (RGB), but got {self.num_channels!r}."
            )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"{name} must hold one number per channel ({self.num_channels}), "
                    f"but got {getattr(self, name)}."
                )
        if getattr(self, "transformers_weights", None):  # it could name a pickled file
            raise ValueError("transformers_weights must not be set: weights are model.safetensors.")
        if self.objective == "scl" and self.prototypes == "learned":
            raise ValueError(
                "objective 'scl' contrasts views with each other and trains no prototypes: use "
                "prototypes='class_means' (the default for it) or 'simplex_etf'."
            )
        if self.objective == "cross_entropy" and self.prototypes != "learned":
            raise ValueError(
                "objective 'cross_entropy' is the classical linear head, which is learned: leave "
                f"prototypes at 'learned', or use another objective with {self.prototypes!r}."
            )
        if self.id2label and len(set(self.id2label.values())) != len(self.id2label):
            names = list(self.id2label.values())
            twice = sorted({str(name) for name in names if names.count(name) > 1})
            raise ValueError(f"id2label must not name two classes alike, but repeats {twice[:5]}.")


def build_image_processor(config: ProtoSphereConfig, *, crop: bool = True) -> BaseImageProcessor:
    """The evaluation transform, saved with the model, so that pipelines apply exactly it.

    The shorter side is resized to image_size / crop_pct, the centre cropped to image_size, values
    scaled to [0, 1] and normalised. With `crop=False` the centre is cropped to image_size /
    crop_pct only: a square with a margin for augmentation.
    """
    from transformers import ViTImageProcessor  # it takes torchvision along

    resized = round(config.image_size / config.crop_pct)
    cropped = config.image_size if crop else resized
    mean, std = three_channels(config.image_mean), three_channels(config.image_std)
    return ViTImageProcessor(
        do_convert_rgb=True,
        do_resize=True, size={"shortest_edge": resized},
        resample=INTERPOLATIONS.index(config.interpolation),
        do_center_crop=True, crop_size={"height": cropped, "width": cropped},
        do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, image_mean=mean, image_std=std,
    )  # fmt: skip


def three_channels(values: list[float]) -> list[float]:
    """Of an image processor: it makes RGB also of the images of a grayscale model."""
    return list(values) * 3 if len(values) == 1 else list(values)
