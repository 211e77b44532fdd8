"""What a calibrated model answers beside a class: "unknown", and sets of classes; and the pipeline that does.

Travels to the Hub with every checkpoint."""

import base64
import binascii
import os
import reprlib
from io import BytesIO
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import ImageClassificationPipeline
from transformers.image_utils import httpx

from .rgb import formats, narrowed, rgb

UNKNOWN = "unknown"
# Of RAPS, as its authors set them. Saved thresholds are those of these numbers, which therefore stay as they are.
PENALTY, FREE = 0.01, 5


class OpenSetImageClassificationPipeline(ImageClassificationPipeline):
    """`pipeline("open-set-image-classification", model=...)`: classes, and "unknown" beside them.

    "unknown" is one more class. Its logit is that of an image exactly at the threshold: the largest
    logit, moved by what the score lacks. So it is the first answer exactly where the configuration's
    `rejection_score` is below `rejection_threshold`, and all scores sum to 1. For a model with prototypes
    and their cosines it is the constant `rejection_threshold / softmax_temperature / calibration_temperature`.

    Raises:
        ValueError: the model has no threshold, or a class of its own that is called "unknown".
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.model.config
        if config.rejection_threshold is None:
            raise ValueError(
                "rejection_threshold of the model is None: choose it by `protosphere calibrate "
                f"{config.name_or_path or 'FOLDER'} --dataset_name ...`, or use the task 'image-classification'."
            )
        if UNKNOWN in config.id2label.values():
            raise ValueError(f"the model has a class called {UNKNOWN!r}: give it another name in id2label.")

    def _sanitize_parameters(
        self, top_k: int | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return super()._sanitize_parameters(top_k=top_k, timeout=timeout)

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Tensor]:
        """Of an image, a file, a URL, base64, or an array, which is taken as it is."""
        if isinstance(image, str | Image.Image):
            # Before transformers does, to whom 16-bit images are white and transparent ones black.
            image = narrowed(rgb(_opened(image, timeout)))
        return super().preprocess(image, timeout=timeout)

    def postprocess(self, model_outputs: Any, top_k: int = 5) -> list[dict[str, Any]]:
        """The `top_k` answers, {"label": str, "score": float in [0, 1]}, the best first; of a model with
        prediction sets also {"in_set": bool}, whether the class is in the image's."""
        config, logits = self.model.config, model_outputs["logits"]  # (1, K)
        name, threshold = config.rejection_score, torch.tensor(config.rejection_threshold).double()
        known = self.model.known_score(model_outputs["embeddings"], logits).double()
        lacking = threshold.log() - known.log() if name == "max_softmax" else threshold - known  # (1,)
        if name == "cosine":  # whose logits are divided by these
            lacking = lacking / (config.softmax_temperature * config.calibration_temperature)
        unknown = logits[0].double().max() + lacking
        scores = torch.cat([logits[0].double(), unknown]).softmax(-1).tolist()
        answers = [{"label": label, "score": score} for label, score in zip([*config.class_names, UNKNOWN], scores)]
        if (sets := prediction_sets(logits, config)) is not None:
            answers = [answer | {"in_set": held} for answer, held in zip(answers, [*sets[0].tolist(), False])]
        # Of equal scores the first stays first: at the threshold itself an image is known.
        return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


def nonconformity(logits: Tensor, kind: str) -> Tensor:
    """(M, K) float64: how badly each class fits an image, of logits (M, K). With p = softmax(logits), m the sum of
    all p that come before that of the class in falling order, and o its place in that order, from 1 on:

    - "lac": 1 − p (Sadinle et al. 2019). The smallest sets on average; of an unsure image they may be empty.
    - "aps": m (Romano et al. 2020), so that a set is that of their equation (4): the most likely classes, one after
      the other, until their p sum to the threshold.
    - "raps": m + λ·max(0, o − k), λ = 0.01 and k = 5 (Angelopoulos et al. 2021): APS without its long tails.

    APS and RAPS draw no random numbers here (u = 0 in the papers): sets stay the same and are never empty, and a
    model that is right more often than was promised covers more than that.

    Example:
        >>> nonconformity(torch.tensor([[0.3, 0.5, 0.2]]).log(), "aps").round(decimals=4)
        tensor([[0.5000, 0.0000, 0.8000]], dtype=torch.float64)
    """
    probabilities = logits.double().softmax(-1)
    if kind == "lac":
        return 1 - probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    scores = ordered.cumsum(-1) - ordered
    if kind == "raps":
        ranks = torch.arange(1, logits.shape[-1] + 1, device=logits.device).double()
        scores = scores + PENALTY * (ranks - FREE).clamp(min=0)
    return torch.empty_like(scores).scatter_(-1, order, scores)


def prediction_sets(logits: Tensor, config: Any) -> Tensor | None:
    """(M, K) bool: the classes of each image's set, of logits (M, K) as the model returns them, by the thresholds that
    `protosphere calibrate --coverage` saved in its configuration: one for all classes or one for each; else None.

    A new image like those of calibration has its right class in its set with a probability of at least
    `config.set_coverage`; with a threshold for each class this holds for the images of each.

    Raises:
        ValueError: thresholds of another number of classes.
    """
    if config.set_thresholds is None:
        return None
    thresholds = torch.tensor(config.set_thresholds, dtype=torch.float64, device=logits.device)
    if len(thresholds) not in (1, logits.shape[-1]):
        raise ValueError(f"set_thresholds must be 1 or {logits.shape[-1]}, not {len(thresholds)}: calibrate again.")
    return nonconformity(logits, config.set_score) <= thresholds


def _opened(image: str | Image.Image, timeout: float | None) -> Image.Image:
    """As transformers' `load_image` finds it, but not converted yet."""
    if not isinstance(image, str):
        return image
    file: str | BytesIO = image
    try:
        if image.startswith(("http://", "https://")):
            file = BytesIO(httpx.get(image, timeout=timeout, follow_redirects=True).content)
        elif not os.path.isfile(image):
            file = BytesIO(base64.decodebytes(image.split(",")[-1].encode()))
        return Image.open(file, formats=formats())
    except (binascii.Error, UnidentifiedImageError) as error:
        raise ValueError(f"{reprlib.repr(image)} is no image, and no file, URL or base64 of one.") from error
