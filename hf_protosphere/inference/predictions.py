"""The one pass over images: what a classifier says of each of them, once, on every process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..modeling_protosphere import ProtoSphereForImageClassification
from ..prototypes import class_means


@torch.no_grad()
def predictions(
    model: ProtoSphereForImageClassification,
    loader: DataLoader,
    accelerator: Accelerator,
    description: str,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Embeddings (M, D), logits (M, K) and labels (M,) of every image, once, on every process.

    Raises:
        RuntimeError: when the number of images that came back is not the data set's.
    """
    for buffer in model.buffers():
        broadcast(buffer)  # batch norm's running statistics: the main process's are saved
    was_training = model.training
    model.eval()
    seen = 0
    for batch in tqdm(
        loader, desc=description, leave=False, disable=not accelerator.is_main_process
    ):
        with accelerator.autocast():
            output = model(batch["pixel_values"])
        gathered = accelerator.gather_for_metrics(
            (output.embeddings, output.logits, batch["labels"])
        )
        seen += len(gathered[2])
        yield gathered
    model.train(was_training)
    expected = getattr(loader.dataset, "__len__", lambda: seen)()  # a stream's is not known
    if seen != expected:
        raise RuntimeError(f"{description}: {seen} images were counted, but there are {expected}.")


def training_class_means(
    model: ProtoSphereForImageClassification, loader: DataLoader, accelerator: Accelerator
) -> Tensor:
    """(K, D) exact class means of the embeddings of the training images, in one forward pass."""
    batches = predictions(model, loader, accelerator, "class means")
    # Gathered batches are whole on every process: nothing is left to reduce.
    return class_means(
        ((embeddings, labels) for embeddings, _, labels in batches),
        num_classes=model.config.num_labels,
        group="local",
    )
