"""Configuration of a ProtoSphere model. Travels to the Hub with every checkpoint."""

import json
import logging
import math
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PretrainedConfig
from transformers.utils import IMAGE_PROCESSOR_NAME, TRANSFORMERS_DYNAMIC_MODULE_NAME

from .objectives import OBJECTIVES

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

logger = logging.getLogger(__name__)
# What tells unknown images, and between what values each lies; and how sets of classes are made.
REJECTION_SCORES = {
    "cosine": (-1.0, 1.0), "max_softmax": (0.0, 1.0), "energy": (-math.inf, math.inf),
    "mahalanobis": (-math.inf, 0.0), "knn": (-2.0, 0.0), "vim": (-math.inf, math.inf), "neco": (0.0, 1.0),
}  # fmt: skip
FITTED_SCORES = ("mahalanobis", "knn", "vim", "neco")  # which take tensors beside the weights
SET_SCORES = ("lac", "aps", "raps")
DTYPES = ("float32", "float16", "bfloat16", "float64")
# Pillow's names, numbered as by `PIL.Image.Resampling`.
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# The largest whole numbers: what is beyond them is no network, but fills the memory.
MAX_CLASSES, MAX_OPTION = 10**6, 2**17
WHOLE = {"projection_dim": 2**20, "projection_hidden_dim": 2**20, "image_size": 2**14}

# Defaults of the versions before these were decided when a model is built.
BEFORE = {"projection": "none", "projection_dim": 128, "softmax_temperature": 0.1}
OPEN = ("projection_dim", "projection_hidden_dim", "softmax_temperature")  # where they are None
TRANSFORM = ("size", "crop_size", "resample", "image_mean", "image_std")  # of an image processor

OPEN_SET_TASK = "open-set-image-classification"
OPEN_SET_PIPELINE = "pipeline_protosphere.OpenSetImageClassificationPipeline"

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# Arguments of timm and transformers that name weights, files or code.
FETCHES = re.compile("pretrained|checkpoint|hf_hub|^(file|url|cache_dir|state_dict|auto_map|trust_remote_code)$")


class ProtoSphereConfig(PretrainedConfig):
    """A backbone, a projection to the unit sphere, and one prototype per class.

    Args:
        backbone: a timm architecture ("resnet18", "convnext_tiny.fb_in1k"), or the model type of a
            transformers vision model ("vit", "resnet", "dinov2").
        backbone_source: "timm" or "transformers".
        backbone_kwargs: passed on to `timm.create_model`, or to the transformers configuration.
        small_images: ResNets start with a 3×3 stride-1 convolution and no max-pooling, for images of 32 pixels or so.
            Other families take their own options in `backbone_kwargs` (`patch_size=4` for a ViT, for instance).
        projection: "none", "linear", or "mlp" (linear, ReLU, linear), onto the embeddings' space.
            "auto" is decided, and written here, when the model is built: "linear" where the
            backbone's pooled features are hardly negative (ResNets end in a ReLU), which bounds how
            near prototypes can come to class means (`prototypes.nonnegative_limit`), or where
            `projection_dim` is given; else, and for `objective="cross_entropy"`, "none".
        projection_dim: dimension D of the embeddings; by default as wide as the backbone's features
            for "linear", and 128 for "mlp". Ignored with `projection="none"`.
        projection_hidden_dim: width of the MLP; by default the backbone's.
        projection_batch_norm: batch norm before the MLP's ReLU.
        projection_dropout: in [0, 1), share of the backbone's features, and of the MLP's hidden
            values, that are dropped in training.
        prototypes: "learned"; "simplex_etf" (fixed at the optimum, K ≤ D + 1); or "class_means"
            (the mean embeddings of the classes, set after training: the fixed prototypes of
            arXiv 2605.20302). By default what the objective trains, mostly "learned".
        reserved_classes: N spare vertices beside the K of the simplex ETF, K + N ≤ D + 1, for `add_classes` to take.
        class_margins: K numbers, subtracted from the cosines to the prototypes, or None. `add_classes` chooses them.
        objective: what `labels` train, one of `objectives.OBJECTIVES`; "cross_entropy" is the
            classical linear head with bias on unnormalised features, for comparison.
        margin, margin_type: of "normface", in [0, 1], as `objectives.margin_loss` takes them.
        softmax_temperature: t > 0; logits are cosines divided by it. None, the default, is decided, and written here,
            when a classifier is built: `objectives.default_temperature` of its objective and number of classes. (The
            attribute cannot be called `temperature`: transformers takes that for a generation parameter.)
        learned_temperature: train the temperature from `softmax_temperature` on, which becomes what
            was learned when the model is saved. For "ntce", "normface", "scl" and "sincere".
        image_size: side of the square input, in pixels.
        num_channels: 1 (grayscale) or 3 (RGB). A grayscale model also takes RGB, as the
            image-classification pipeline sends it, and uses the luminance.
        image_mean, image_std: of pixel values in [0, 1], one number per channel; by default
            ImageNet's for RGB, 0.5 for grayscale.
        interpolation: Pillow's name for resizing: "bicubic", "bilinear", ...
        crop_pct: the evaluation transform resizes the shorter side to image_size / crop_pct and crops the centre.
        rejection_threshold: an image whose `rejection_score` is below it is unknown. None, the default, knows
            every image. `protosphere calibrate` chooses it.
        rejection_score: one of `REJECTION_SCORES`, as `prototypes.known_score` has them; by default "cosine".
        rejection_sizes: [R, C] of the `rejection_axes` (D, R) and `rejection_centers` (C, D) that a classifier holds
            for a score of `FITTED_SCORES`; else None.
        false_rejection_rate: in (0, 1), the share of known images that the threshold may reject.
            None where that was not measured, or not since classes came or went.
        calibration_temperature: > 0; the logits that a classifier returns are divided by it, after
            the loss is computed. The order of the classes stays. `protosphere calibrate` fits it.
        set_score, set_coverage, set_thresholds: "lac", "aps" or "raps", in (0, 1), and one number or one for each
            class: of the sets that `pipeline_protosphere.prediction_sets` gives. `protosphere calibrate --coverage`
            chooses the thresholds. None, the default, where there are no sets.

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
    projection: str = "auto"
    projection_dim: int | None = None
    projection_hidden_dim: int | None = None
    projection_batch_norm: bool = False
    projection_dropout: float = 0.0
    prototypes: str | None = None
    reserved_classes: int = 0
    class_margins: list[float] | None = None
    objective: str = "ntce"
    margin: float = 0.0
    margin_type: str = "cosface"
    softmax_temperature: float | None = None
    learned_temperature: bool = False
    image_size: int = 224
    num_channels: int = 3
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    rejection_threshold: float | None = None
    false_rejection_rate: float | None = None
    rejection_score: str = "cosine"
    rejection_sizes: list[int] | None = None
    calibration_temperature: float = 1.0
    set_score: str | None = None
    set_coverage: float | None = None
    set_thresholds: list[float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for dtype in (self.dtype, kwargs.get("torch_dtype")):
            if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
                raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}.")
        super().__post_init__(**kwargs)
        self.label2id = {label: i for i, label in self.id2label.items()}  # whatever a file says
        if not isinstance(self.backbone_kwargs, dict | None):
            raise ValueError(f"backbone_kwargs must be a dict, but got {self.backbone_kwargs!r}.")
        self.backbone_kwargs = dict(self.backbone_kwargs or {})
        if self.prototypes is None and (objective := OBJECTIVES.get(str(self.objective))):
            self.prototypes = objective.prototypes or "learned"
            if self.reserved_classes and self.prototypes == "learned" and objective.prototypes:
                self.prototypes = "simplex_etf"
        color = self.num_channels == 3
        self.image_mean = self.image_mean or (IMAGENET_MEAN if color else [0.5])
        self.image_std = self.image_std or (IMAGENET_STD if color else [0.5])
        self._check()
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """What a file leaves out means what it meant when it was written: today's files say all of `BEFORE`."""
        return super().from_dict(BEFORE | config_dict, **kwargs)

    @property
    def class_names(self) -> list[str]:
        """Of the K classes, in their order."""
        return [self.id2label[i] for i in range(self.num_labels)]

    @property
    def has_prototypes(self) -> bool:
        """Whether classes are prototypes on the sphere; a cross-entropy model has a linear head."""
        return OBJECTIVES[self.objective].prototypes is not None

    def forget_calibration(self) -> None:
        """For a model that changes: its thresholds and temperature are those of what it was."""
        self.rejection_threshold = self.false_rejection_rate = self.rejection_sizes = None
        self.rejection_score, self.calibration_temperature = "cosine", 1.0
        self.set_score = self.set_coverage = self.set_thresholds = None

    @property
    def custom_pipelines(self) -> dict[str, Any]:
        """Tasks that `transformers.pipeline` runs by code beside the checkpoint. Where the package
        is imported there are none: the task is in transformers' registry, and needs no trust."""
        if not __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.") or self.rejection_threshold is None:
            return {}
        return {OPEN_SET_TASK: {"impl": OPEN_SET_PIPELINE, "pt": ["AutoModelForImageClassification"]}}

    @custom_pipelines.setter
    def custom_pipelines(self, value: dict[str, Any]) -> None:
        """Nothing: `Pipeline.save_pretrained` would write down what follows from the class."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and value:
            known = value if isinstance(value, dict) and len(value) <= MAX_CLASSES else {}
            names = [label for label in known.values() if isinstance(label, str)]
            if {str(key) for key in known} != {str(i) for i in range(len(names))} or not names:
                most = f"at most {MAX_CLASSES:,} classes"
                raise ValueError(f"id2label must map 0, 1, 2, ... to the names of {most}, but got {value!r:.60}.")
        if name == "num_labels" and not (type(value) is int and 0 <= value <= MAX_CLASSES):
            raise ValueError(f"num_labels must be a number up to {MAX_CLASSES:,}, but got {value!r:.60}.")
        super().__setattr__(name, value)
        # Both maps or neither: a checkpoint loaded with another id2label must not keep label2id.
        if name == "id2label" and value:
            self.label2id = {label: int(index) for index, label in value.items()}

    def _check(self) -> None:
        for name, allowed in (
            ("backbone_source", ("timm", "transformers")), ("projection", ("auto", "none", "linear", "mlp")),
            ("objective", tuple(OBJECTIVES)), ("prototypes", ("learned", "simplex_etf", "class_means")),
            ("interpolation", INTERPOLATIONS), ("margin_type", ("cosface", "arcface")),
            ("rejection_score", tuple(REJECTION_SCORES)), ("set_score", (*SET_SCORES, None)),
        ):  # fmt: skip
            self._require(name, getattr(self, name) in allowed, f"one of {', '.join(map(repr, allowed))}")
        for name in ("softmax_temperature", "calibration_temperature", "crop_pct", *WHOLE):
            value, most = getattr(self, name), WHOLE.get(name, math.inf)
            if value is None and name in OPEN:
                continue
            self._require(name, _is_number(value) and 0 < value < math.inf, "positive and finite")
            is_whole = isinstance(value, int) or name not in WHOLE
            self._require(name, is_whole and value <= most, f"a whole number up to {most}")
        fits = self.image_size / self.crop_pct <= 2 * WHOLE["image_size"]
        self._require("crop_pct", fits, f"larger for image_size {self.image_size}")
        ranges = {
            "rejection_threshold": REJECTION_SCORES[self.rejection_score],
            **dict.fromkeys(("false_rejection_rate", "margin", "set_coverage"), (0, 1)),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            fits = value is None or (_is_finite(value) and low <= value <= high)
            self._require(name, fits, f"in [{low:g}, {high:g}] or None")
        sizes = self.rejection_sizes
        whole = [type(size) is int and 0 <= size <= 2**20 for size in sizes] if isinstance(sizes, list) else []
        fits = whole == [True, True] if self.rejection_score in FITTED_SCORES else sizes is None
        self._require("rejection_sizes", fits, f"two whole numbers for {', '.join(FITTED_SCORES)}, else None")
        sets, of = self.set_thresholds, (self.set_score, self.set_coverage)
        fits = sets is None or (isinstance(sets, list) and sets and all(map(_is_finite, sets)) and None not in of)
        self._require("set_thresholds", fits, "numbers, for a set_score and a set_coverage, or None")
        fits = type(self.reserved_classes) is int and 0 <= self.reserved_classes <= MAX_CLASSES
        self._require("reserved_classes", fits, f"a whole number up to {MAX_CLASSES:,}")
        margins = self.class_margins
        fits = margins is None or (isinstance(margins, list) and all(map(_is_finite, margins)))
        self._require("class_margins", fits, "a list of numbers or None")
        self._require("num_channels", self.num_channels in (1, 3), "1 (grayscale) or 3 (RGB)")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            fits = isinstance(values, list | tuple) and len(values) == self.num_channels
            fits = fits and all(map(_is_finite, values))
            self._require(name, fits, f"a list of one number per channel ({self.num_channels})")
        for name in ("small_images", "projection_batch_norm", "learned_temperature"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        dropout = self.projection_dropout
        self._require("projection_dropout", _is_number(dropout) and 0 <= dropout < 1, "in [0, 1)")
        self._refuse_fetching()
        self._check_objective()
        names = Counter((self.id2label or {}).values())
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(f"id2label must not name two classes alike, but repeats {twice[:5]}.")

    def _require(self, name: str, holds: Any, what: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {what}, but got {getattr(self, name)!r:.60}.")

    def _check_objective(self) -> None:
        objective = OBJECTIVES[self.objective]
        if objective.contrasts_views and self.prototypes == "learned":
            raise ValueError(
                f"objective {self.objective!r} contrasts views with each other and trains no "
                "prototypes: use prototypes='class_means' (the default for it) or 'simplex_etf'."
            )
        if self.margin and "margin" not in objective.options:
            raise ValueError(f"margin {self.margin} is for objective 'normface': leave it out.")
        learns = "learn_temperature" in objective.options and not self.margin
        if self.learned_temperature and not learns:
            raise ValueError(
                f"learned_temperature does not go with objective {self.objective!r} and margin "
                f"{self.margin}: a margin needs the number, and where the own class is not in the "
                "denominator the loss has no minimum in it: it falls for ever as it goes to 0."
            )
        if not self.has_prototypes and self.prototypes != "learned":
            raise ValueError(
                "objective 'cross_entropy' is the classical linear head, which is learned: leave "
                f"prototypes at 'learned', or use another objective with {self.prototypes!r}."
            )

    def _refuse_fetching(self) -> None:
        """A network is made of what the configuration says, and of no other file or code."""
        if getattr(self, "transformers_weights", None):  # it could name a pickled file
            raise ValueError("transformers_weights must not be set: weights are model.safetensors.")
        is_name = isinstance(self.backbone, str) and ":" not in self.backbone
        self._require("backbone", is_name, "the name of an architecture, such as 'resnet18'")
        refuse_fetching(self.backbone_kwargs)
        attention = self._attn_implementation
        if attention is not None and not (isinstance(attention, str) and "/" not in attention):
            raise ValueError(f"attn_implementation must be one of transformers', such as 'sdpa', not {attention!r}.")


def refuse_fetching(kwargs: Any, name: str = "backbone_kwargs") -> None:
    """Arguments for a backbone, or a value in them, at any depth, that timm or transformers would
    take for a file, a repository or an address, or that are larger than any network."""
    if isinstance(kwargs, dict):
        for key, value in kwargs.items():
            if value and FETCHES.search(str(key)):
                raise ValueError(f"{name} must not hold {key!r}: no other weights are fetched.")
            refuse_fetching(value, f"{name}[{key!r}]")
    elif isinstance(kwargs, list | tuple):
        for value in kwargs:
            refuse_fetching(value, name)
    elif isinstance(kwargs, str) and re.search(r"[:/\\]", kwargs):
        raise ValueError(f"{name} must name no file or repository, but got {kwargs!r}.")
    elif isinstance(kwargs, int | float) and not abs(kwargs) <= MAX_OPTION:
        raise ValueError(f"{name} must be at most {MAX_OPTION}, but got {kwargs!r:.60}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) < math.inf


def build_image_processor(config: ProtoSphereConfig, *, crop: bool = True) -> "BaseImageProcessor":
    """The evaluation transform, saved with the model, so that pipelines apply exactly it.

    The shorter side is resized to image_size / crop_pct, the centre cropped to image_size, values
    scaled to [0, 1] and normalised. With `crop=False` the centre is cropped to image_size /
    crop_pct only: a square with a margin for augmentation."""
    from transformers import ViTImageProcessor  # it takes torchvision along

    resized = round(config.image_size / config.crop_pct)
    cropped = config.image_size if crop else resized
    mean, std = three_channels(config.image_mean), three_channels(config.image_std)
    return ViTImageProcessor(
        do_convert_rgb=True,
        do_resize=True, size={"shortest_edge": resized}, resample=INTERPOLATIONS.index(config.interpolation),
        do_center_crop=True, crop_size={"height": cropped, "width": cropped},
        do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, image_mean=mean, image_std=std,
    )  # fmt: skip


def save_image_processor(config: ProtoSphereConfig, folder: str | Path) -> None:
    """Beside a model. One that is there stays, with a warning where it makes other images."""
    processor, file = build_image_processor(config), Path(folder) / IMAGE_PROCESSOR_NAME
    if not file.exists():
        processor.save_pretrained(folder)
        return
    described = json.loads(processor.to_json_string())
    with suppress(ValueError, AttributeError):  # what is damaged is another one
        saved = json.loads(file.read_text())
        if all(saved.get(name) == described[name] for name in TRANSFORM):
            return
    logger.warning(f"{file} makes other images than the configuration describes, and stays: delete it and save again.")


def three_channels(values: list[float]) -> list[float]:
    """Of an image processor: it makes RGB also of the images of a grayscale model."""
    return list(values) * 3 if len(values) == 1 else list(values)
