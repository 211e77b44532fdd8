"""Images as points on the sphere: a checkpoint that embeds any number of them in one pass."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset as ImageTable
from PIL import Image as PILImage
from torch import Tensor
from transformers import BaseImageProcessor

from ..configuration_protosphere import build_image_processor
from ..data.labels import some
from ..data.pixels import DecodedImages, pixels_of, reason, table_of
from ..errors import ArgumentError, DataError, errors_in_one_line
from ..inference.predictions import parts_of
from ..modeling_protosphere import ProtoSphereForImageClassification, ProtoSphereModel
from ..runs.loading import kind_of, load_classifier
from ..runs.processes import own_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedder:
    """A checkpoint without its head, or a backbone: `Embedder.load("outputs/run")(images)`."""

    name: str  # folder or Hub id
    model: ProtoSphereModel
    processor: BaseImageProcessor
    fingerprint: str  # of all that an embedding depends on: weights and image processor
    layer: str = "embeddings"
    pretrained: str | None = None  # file or folder of a backbone's weights

    @classmethod
    def load(cls, name: str, layer: str = "embeddings", pretrained: str | None = None) -> "Embedder":
        """From a folder or the Hub; an `ArgumentError` where there is none, or it is damaged.

        Args:
            layer: "embeddings", those that prototypes are compared with, or "features", of unit
                norm too: what the last layer of the projection is given. They tell classes apart
                that training did not know, for which embeddings have no room. Of a backbone the same.
            pretrained: the file or folder of a backbone's weights, as `from_backbone` takes it.
        """
        if (kind := kind_of(name)) == "protosphere":
            if pretrained:
                raise ArgumentError(f"--pretrained {pretrained} is for a backbone, and --model has weights.")
            classifier, processor = load_classifier(name)
        else:
            plain = {"projection": "none", "prototypes": "class_means", "pretrained": pretrained or True}
            with errors_in_one_line(f"--model {name} cannot be loaded"):
                classifier = ProtoSphereForImageClassification.from_backbone(name, backbone_source=kind, **plain)
            processor = build_image_processor(classifier.config)
            pretrained = pretrained and str(Path(pretrained).resolve())  # to be found from anywhere
        model = classifier.base_model.eval()
        if layer == "features" and model.config.projection != "none":
            model.embedding_dim = model.projection[-1].in_features
            model.projection = model.projection[:-1]
        digest = hashlib.sha256(processor.to_json_string().encode())
        for key, tensor in sorted(model.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
        return cls(name, model.to(own_device()), processor, digest.hexdigest(), layer, pretrained)

    @property
    def dim(self) -> int:
        return self.model.embedding_dim

    def __call__(self, images: Sequence[PILImage.Image]) -> Tensor:
        """(M, D) float32 on the CPU, unit rows, of a batch of images."""
        return self._embed(pixels_of(images, self.processor))

    def embed_all(
        self, images: ImageTable | Sequence[Path], *, on_bad_image: str = "error",
        batch_size: int = 256, num_workers: int = 2,
    ) -> tuple[Tensor, list[int]]:  # fmt: skip
        """Embed any number of images, in one pass with a progress bar.

        Args:
            images: a data set with a column "image", or files.
            on_bad_image: "error", or "skip" to leave out images that cannot be decoded.

        Returns:
            (n, D) float32 on the CPU, unit rows, and the n rows of the images that they are of.

        Raises:
            DataError: images cannot be decoded; all of them are named.
        """
        decoded = DecodedImages(images if isinstance(images, ImageTable) else table_of(images), self.processor)
        embeddings, rows, bad = [torch.empty(0, self.dim)], [], {}
        for pixels, good, wrong in decoded.batches(range(len(images)), batch_size, num_workers, "embedding"):
            if good:
                embeddings.append(self._embed(pixels))
            rows += good
            bad |= wrong
        if bad:
            names = [decoded.name(row) for row in bad]
            if on_bad_image == "error":
                raise DataError(
                    f"{len(bad)} of the images cannot be decoded: {some(names)} ({reason(next(iter(bad.values())))}). "
                    "Mend or remove them, or leave them out by --on_bad_image skip."
                )
            logger.warning("Left out %d images that cannot be decoded: %s.", len(bad), some(names))
        return torch.cat(embeddings), rows

    @torch.no_grad()
    def _embed(self, pixels: Tensor) -> Tensor:
        parts = parts_of({"pixel_values": pixels.to(self.model.device)})
        return torch.cat([self.model(**part).embeddings.float().cpu() for part in parts])
