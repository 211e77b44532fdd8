"""The one pass over images: what models say of each of them, once, on every process."""

from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..errors import DataError, errors_in_one_line
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..prototypes import class_means

CPU_PART = 8 * 3 * 224**2  # numbers; of 4 to 64 images, at 224 pixels, 4 and 8 took the least time


def parts_of(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """A batch {"pixel_values": (M, ...), ...} in the parts that go through a network at once. In those that fit its
    caches, and with channels last, a CPU takes a fourth of the time for 256 images; values differ by rounding."""
    pixels = batch["pixel_values"]
    images = max(CPU_PART // pixels[0].numel(), 1) if pixels.device.type == "cpu" else len(pixels)
    if pixels.dim() == 4:
        batch = batch | {"pixel_values": pixels.contiguous(memory_format=torch.channels_last)}
    return [dict(zip(batch, part)) for part in zip(*(values.split(images) for values in batch.values()))]


@torch.no_grad()
def inferred(
    models: Sequence[nn.Module], loader: DataLoader, accelerator: Accelerator, description: str,
    compute: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
) -> Iterator[tuple[Tensor, ...]]:  # fmt: skip
    """What models make of every batch: each image once, in order, the same on every process.

    Meanwhile the models are in evaluation mode, without gradients, under autocast.

    Args:
        description: of the pass, for the progress bar and the message.
        compute: of `parts_of` a process's batch, m images → tensors (m, ...), which come back gathered.

    Raises:
        RuntimeError: when the number of images that came back is not the data set's.
    """
    were_training = [model.training for model in models]
    for model in models:
        for buffer in model.buffers():
            broadcast(buffer)  # batch norm's running statistics: the main process's are saved
        model.eval()
    seen = 0
    try:
        hidden = not accelerator.is_main_process
        for batch in loader if hidden else tqdm(loader, desc=description, leave=False):
            with accelerator.autocast():
                computed = zip(*map(compute, parts_of(batch)))
            gathered = accelerator.gather_for_metrics(tuple(map(torch.cat, computed)))
            seen += len(gathered[0])
            yield gathered
    finally:
        for model, was_training in zip(models, were_training):
            model.train(was_training)
    expected = getattr(loader.dataset, "__len__", lambda: seen)()  # a stream's is not known
    if seen != expected:
        raise RuntimeError(f"{description}: {seen} images were counted, but there are {expected}.")


def predictions(
    model: ProtoSphereForImageClassification, loader: DataLoader, accelerator: Accelerator, description: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Embeddings (M, D), logits (M, K) and labels (M,) of every image, as `inferred` gives them."""

    def compute(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        output = model(batch["pixel_values"])
        return output.embeddings, output.logits, batch["labels"]

    return inferred([model], loader, accelerator, description, compute)


def training_class_means(
    model: ProtoSphereForImageClassification, loader: DataLoader, accelerator: Accelerator
) -> Tensor:
    """(K, D) exact class means of the embeddings of the training images, in one forward pass.

    Raises:
        DataError: a class without images, or whose embeddings have no direction in the mean.
    """
    pairs = ((embeddings, labels) for embeddings, _, labels in predictions(model, loader, accelerator, "class means"))
    what = "the model's embeddings of the training images"
    # Gathered batches are whole on every process: nothing is left to reduce.
    with errors_in_one_line(what, kind=DataError, of=ValueError):
        return class_means(pairs, num_classes=model.config.num_labels, group="local")
