"""A pipeline that can answer "unknown". Travels to the Hub with every checkpoint."""

import base64
import binascii
import os
import reprlib
from io import BytesIO
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from transformers import ImageClassificationPipeline
from transformers.image_utils import httpx

from .prototypes import nearest_cosines
from .rgb import formats, narrowed, rgb

UNKNOWN = "unknown"


class OpenSetImageClassificationPipeline(ImageClassificationPipeline):
    """`pipeline("open-set-image-classification", model=...)`: classes, and "unknown" beside them.

    "unknown" is one more class. Its logit is that of an image exactly at the threshold: the largest
    logit, moved by the threshold less the largest cosine, in units of the temperature. So it is the
    first answer exactly where that cosine is below `rejection_threshold`, and all scores sum to 1.
    For a model with prototypes it is the constant
    `rejection_threshold / softmax_temperature / calibration_temperature`.

    Raises:
        ValueError: the model has no threshold, or a class of its own that is called "unknown".
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.model.config
        if config.rejection_threshold is None:
            raise ValueError(
                "rejection_threshold of the model is None: choose it by `protosphere calibrate "
                f"{config.name_or_path or 'FOLDER'} --dataset_name ...`, or use the task "
                "'image-classification'."
            )
        if UNKNOWN in config.id2label.values():
            raise ValueError(
                f"the model has a class called {UNKNOWN!r}, which the pipeline could not be told "
                "from: give it another name in id2label."
            )

    def _sanitize_parameters(
        self, top_k: int | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return super()._sanitize_parameters(top_k=top_k, timeout=timeout)

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, torch.Tensor]:
        """Of an image, a file, a URL, base64, or an array, which is taken as it is."""
        if isinstance(image, str | Image.Image):
            # Before transformers does, to whom 16-bit images are white and transparent ones black.
            image = narrowed(rgb(_opened(image, timeout)))
        return super().preprocess(image, timeout=timeout)

    def postprocess(self, model_outputs: Any, top_k: int = 5) -> list[dict[str, Any]]:
        """The `top_k` answers, {"label": str, "score": float in [0, 1]}, the best first."""
        config = self.model.config
        logits = model_outputs["logits"][0].double()  # (K,)
        prototypes = self.model.prototypes.detach().cpu()
        nearest = nearest_cosines(model_outputs["embeddings"], prototypes).double()  # (1,)
        temperature = config.softmax_temperature * config.calibration_temperature
        unknown = logits.max() + (config.rejection_threshold - nearest) / temperature
        scores = torch.cat([logits, unknown]).softmax(-1).tolist()
        names = [*(config.id2label[i] for i in range(len(logits))), UNKNOWN]
        # Of equal scores the first stays first: at the threshold itself an image is known.
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_k]
        return [{"label": names[i], "score": scores[i]} for i in order]


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
