"""Open-set recognition: the class of an image, or "unknown" when it looks like none."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from ..configuration_protosphere import ProtoSphereConfig
from ..data.pixels import pixels_of
from ..errors import ArgumentError
from ..metrics.snapshot import Snapshot
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..pipeline_protosphere import prediction_sets
from ..runs.loading import load_classifier
from ..runs.snapshots import SNAPSHOT, snapshot_of

KNOWN_SHARE = 0.95  # of the images in the snapshot, which the default threshold leaves known


@dataclass(frozen=True)
class Threshold:
    """An image farther than this from every prototype is unknown; None where the model has another score."""

    degrees: float | None
    origin: str  # where the number comes from, in words


@dataclass(frozen=True)
class Answer:
    """What an open-set classifier tells of one image."""

    label: str | None  # the class; None when it is unknown
    angles: dict[str, float]  # degrees to the prototype of every class, nearest first
    scores: dict[str, float]  # softmax over the known classes, in the same order
    embedding: Tensor  # (D,), unit norm
    prediction_set: list[str] | None = None  # the classes of its set, in the same order, where the model has sets


@dataclass(frozen=True)
class OpenSetClassifier:
    """A classifier that can also say "unknown": `OpenSetClassifier.load("outputs/run")(image)`."""

    model: ProtoSphereForImageClassification
    processor: BaseImageProcessor
    snapshot: Snapshot  # without images where the checkpoint has none
    threshold: Threshold

    @classmethod
    def load(cls, name: str, unknown_angle: float | None = None) -> "OpenSetClassifier":
        """
        Args:
            name: folder or Hub id of a checkpoint.
            unknown_angle: the threshold in degrees; by default the one that `protosphere calibrate`
                saved in the configuration, else `default_threshold` of the checkpoint's snapshot.

        Raises:
            ArgumentError: no checkpoint, one without prototypes, or one with the snapshot of another model.
        """
        model, processor = load_classifier(name)
        config = model.config
        if not config.has_prototypes:
            raise ArgumentError(
                f"--model {name} was trained with cross_entropy, without prototypes: give one of another objective."
            )
        snapshot = snapshot_of(name)
        if snapshot is None:
            snapshot = Snapshot.of_prototypes(model.prototypes, config.class_names)
        elif snapshot.prototypes.shape != model.prototypes.shape or not torch.allclose(
            snapshot.prototypes, model.prototypes.detach(), atol=0.01
        ):
            raise ArgumentError(
                f"--model {name}: its {SNAPSHOT} is of other prototypes: remove it, or `evaluate --pictures` again."
            )
        if unknown_angle is None and config.rejection_threshold is not None:
            return cls(model.eval(), processor, snapshot, calibrated_threshold(config))
        threshold = default_threshold(snapshot) if unknown_angle is None else Threshold(unknown_angle, "as asked for")
        config.rejection_score, config.rejection_threshold = "cosine", math.cos(math.radians(threshold.degrees))
        return cls(model.eval(), processor, snapshot, threshold)

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> Answer:
        output = self.model(pixels_of([image], self.processor))
        embedding, scores = output.embeddings[0], output.logits[0].softmax(-1)
        order = scores.argsort(descending=True)  # by margins too
        angles = angles_to_prototypes(embedding, self.model.prototypes)[order]
        names = [self.model.config.id2label[c] for c in order.tolist()]
        sets = prediction_sets(output.logits, self.model.config)
        return Answer(
            label=None if output.is_unknown[0] else names[0],
            angles=dict(zip(names, angles.tolist())),
            scores=dict(zip(names, scores[order].tolist())),
            embedding=embedding,
            prediction_set=None if sets is None else [name for name, held in zip(names, sets[0, order]) if held],
        )


def angles_to_prototypes(embedding: Tensor, prototypes: Tensor) -> Tensor:
    """(K,) degrees in [0, 180] between an embedding (D,) and prototypes (K, D), of any norm.

    Example:
        >>> angles_to_prototypes(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        tensor([ 90., 180.], dtype=torch.float64)
    """
    # In double precision: the arc cosine turns an error of 1e-7 near 1 into 0.03 degrees.
    cosines = F.normalize(prototypes.double(), dim=1) @ F.normalize(embedding.double(), dim=0)
    return cosines.clamp(-1, 1).acos().rad2deg()


def calibrated_threshold(config: ProtoSphereConfig) -> Threshold:
    """That of the configuration, in degrees where its score is the cosine."""
    origin = "the configuration's rejection_threshold"
    if config.false_rejection_rate is not None:
        origin += f", calibrated to reject at most {config.false_rejection_rate:.3g} of the known images"
    if config.rejection_score != "cosine":
        return Threshold(None, f"{origin}, of its {config.rejection_score}")
    return Threshold(math.degrees(math.acos(config.rejection_threshold)), origin)


def default_threshold(snapshot: Snapshot) -> Threshold:
    """The angle to the nearest prototype that 95 % of the snapshot's images keep within; without
    images half of arccos(−1/(K − 1)), the angle between two prototypes of a simplex ETF."""
    if not len(snapshot.own_cosines):
        angle = math.degrees(math.acos(-1 / (len(snapshot.prototypes) - 1)))
        why = f"as the checkpoint has no {SNAPSHOT} of images to tell it from"
        return Threshold(angle / 2, f"half the angle between two prototypes at neural collapse, {why}")
    nearest = torch.maximum(snapshot.own_cosines, snapshot.nearest_other_cosines).clamp(-1, 1).acos().rad2deg()
    images = f"{KNOWN_SHARE:.0%} of the {len(nearest):,} {snapshot.split} images"
    return Threshold(nearest.quantile(KNOWN_SHARE).item(), f"{images} are nearer to a prototype")
