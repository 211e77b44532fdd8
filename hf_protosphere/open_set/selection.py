"""Which score tells unknown images best: measured on some, or on classes that are left out in turn.

Tensors in, numbers out.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean

import torch
from torch import Tensor

from ..configuration_protosphere import REJECTION_SCORES
from .detection import detection_metrics
from .scores import Outputs, fit_scores

GROUPS = 5  # of classes, each left out once
MARGIN = 0.01  # of AUROC, by which another score must be better than the cosine to be chosen
COMPARED = 5_000  # images of each kind at most


def compare_scores(known: Outputs, prototypes: Tensor, unknown: Outputs | None = None) -> dict[str, dict[str, float]]:
    """What each score in `SCORES` is worth, on images that the model was not trained on.

    Without unknown images some classes are taken for unknown, in turn: to the scores they do not exist, neither as
    prototypes and logits nor among the images that they are fitted on. But the network has learned to set them apart,
    so that figures are better than for new classes, by some 20 points of AUROC where that was measured; and of the
    scores that are fitted, Mahalanobis and ViM come out last, which are ahead for new classes.
    What a score needs beside the model is fitted on one half of the known images and measured on the other.

    Args:
        known, unknown: outputs of the model, on the CPU; labels of the unknown ones are not looked at.
        prototypes: (K, D), unit rows.

    Returns:
        {name: as `detection_metrics`}, means over groups and halves; {} where there is nothing to leave out.
    """
    known, unknown = (x and x[:: -(-len(x.labels) // COMPARED)] for x in (known, unknown))
    cases = [(known, prototypes, unknown)] if unknown else _left_out(known, prototypes)
    found: dict[str, list[dict[str, float]]] = {}
    for inside, left, outside in cases:
        for half in (0, 1):
            measured = inside[1 - half :: 2]
            for name, score in fit_scores(left, inside[half::2]).items():
                values = [score(x.embeddings, x.logits) for x in (measured, outside)]
                found.setdefault(name, []).append(detection_metrics(*values))
    return {name: {key: fmean(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def _left_out(known: Outputs, prototypes: Tensor) -> Iterator[tuple[Outputs, Tensor, Outputs]]:
    """Known images, prototypes and unknown images, without each group of classes and of it."""
    num_classes = len(prototypes)
    for group in range(min(GROUPS, num_classes)):
        gone = torch.arange(num_classes) % min(GROUPS, num_classes) == group
        reduced = Outputs(known.embeddings, known.logits[:, ~gone], known.labels)
        inside, outside = reduced[~gone[known.labels]], reduced[gone[known.labels]]
        if len(inside.labels) > 1 and len(outside.labels):
            yield inside, prototypes[~gone], outside


def best_score(compared: Mapping[str, Mapping[str, float]]) -> str:
    """The score of the largest AUROC among those that a checkpoint can hold; the cosine, whose threshold is an
    angle on the sphere, unless another one is better by more than a point."""
    if not compared:
        return "cosine"
    return max(REJECTION_SCORES, key=lambda name: compared[name]["auroc"] + MARGIN * (name == "cosine"))
