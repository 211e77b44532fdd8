"""Heads on the features of a frozen network, from Python: these computed once, those trained often.

Any features will do: `ImageDataset({"train": FeatureSplit(features, labels), ...}, class_names)`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..data.dataset import ImageDataset
from ..inference.features import embedded as embedded
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..runs.metrics_log import read_metrics
from ..runs.processes import own_accelerate_state
from ..training import setup
from ..training.arguments import TrainArguments
from ..training.train import train


@own_accelerate_state()
def features_of(arguments: TrainArguments, images: ImageDataset | None = None) -> ImageDataset:
    """What the backbone that the arguments describe makes of their data, or of `images` that were
    loaded before: `splits[role]` are of `FeatureSplit`. Give `freeze_backbone` and `feature_views`."""
    arguments, _ = setup.resolve(arguments)
    images = setup.training_images(arguments, None, images)
    accelerator, model = setup.build_accelerator(arguments), setup.build_model(arguments, images)
    return setup.features_and_head(arguments, images, model, accelerator)[0]


def train_head(
    arguments: TrainArguments, features: ImageDataset
) -> tuple[ProtoSphereForImageClassification, dict[str, Any]]:
    """Train projection and head on features, by the engine of `train`; no files are left.

    Args:
        arguments: as of `train`, with `freeze_backbone`, which name the backbone of the features.
        features: of `features_of`, or of any tensors.

    Returns:
        The whole model of the best epoch, and what results.json holds, with the "records" of metrics.jsonl.
    """
    with TemporaryDirectory() as folder:
        options = {"output_dir": folder, "pictures": False, "report_to": ["none"]}
        arguments = arguments.but(**options, checkpoint_every=arguments.epochs)
        results = train(arguments, images=features, last=False)
        model = ProtoSphereForImageClassification.from_pretrained(folder)
        return model, results | {"records": read_metrics(Path(folder) / "metrics.jsonl")}
