"""A checkpoint as ONNX or as a torch.export program, by torch's exporters, compared with the model on images."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jinja2 import Template
from PIL import Image
from torch import Tensor, nn
from transformers import BaseImageProcessor

from .. import rgb
from ..data.dataset import load_image_dataset
from ..data.pixels import pixels_of, read, undecoded
from ..errors import ExportError
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots.text import say
from ..runs.files import replacing_files
from ..runs.folders import held_folder
from ..runs.loading import load_classifier
from .arguments import ExportArguments

TOLERANCE = 1e-4  # of logits and embeddings, absolute
EXAMPLE_BATCH = 2  # with one image, torch.export would take the batch size for a constant
DYNAMIC = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
NOISE = 8  # images to compare on when no data set is given
_TEMPLATE = Path(__file__).with_name("export_readme_template.md").read_text(encoding="utf-8")
README = Template(_TEMPLATE, trim_blocks=True, keep_trailing_newline=True)

Run = Callable[[Tensor], Sequence[Tensor]]  # pixel_values → logits, embeddings


class PlainOutputs(nn.Module):
    """(N, 3, S, S) → logits (N, K) and embeddings (N, D), as a plain tuple."""

    def __init__(self, model: ProtoSphereForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values, return_dict=True)
        return output.logits, output.embeddings


def export(arguments: ExportArguments) -> Path:
    """Write, compare and document a checkpoint in another format, as `protosphere export` does.

    Returns:
        The file, in a folder with a README.md that shows how to run it without transformers.

    Raises:
        ExportError: the file does not compute what the model does. It is not kept.
    """
    name, write, read = FORMATS[arguments.format]
    # Large ONNX files name the file beside them that holds the weights: only a folder can be renamed.
    writes = (f"{name}*", "README.md", "rgb.py")
    with held_folder(arguments.output_dir, "--output_dir", writes) as folder, replacing_files(folder) as unfinished:
        model, processor = load_classifier(arguments.model)
        size = model.config.image_size
        images, source = _images(arguments, processor, size)
        network = PlainOutputs(model.float()).eval()
        metadata = {"labels": model.config.class_names, "preprocessing": preprocessing(processor)}
        file = unfinished / name
        write(network, torch.zeros(EXAMPLE_BATCH, 3, size, size), metadata, file)
        difference = largest_difference(network, read(file), images)
        if not difference <= TOLERANCE:  # NaN is no match either
            raise ExportError(
                f"--format {arguments.format}: the exported model differs from {arguments.model} by {difference:.2g} "
                f"on {source}, more than {TOLERANCE:g}, and was not kept. Try the other --format."
            )
        verdict = f"differs from the model by at most {difference:.2g} on {source}"
        readme = README.render(
            name=name, verdict=verdict, classes=model.config.num_labels,
            dim=model.protosphere.embedding_dim, **metadata["preprocessing"],
        )  # fmt: skip
        (unfinished / "README.md").write_text(readme)
        shutil.copyfile(rgb.__file__, unfinished / "rgb.py")
    say(f"{folder / name}: {verdict}")
    return folder / name


@torch.no_grad()
def largest_difference(network: nn.Module, run: Run, images: Tensor) -> float:
    """Between both outputs on images (N, 3, S, S) as of a processor, in batches of several sizes; or NaN."""
    batches = (images[:1], *images[1:].split(16))
    pairs = (pair for batch in batches for pair in zip(network(batch), run(batch)))
    return torch.stack([(ours - theirs).abs().max() for ours, theirs in pairs]).max().item()


def preprocessing(processor: BaseImageProcessor) -> dict[str, object]:
    """What happens to an image before the network, in the order in which it does."""
    return {
        "convert": "RGB", "resize_shorter_side": processor.size["shortest_edge"],
        "interpolation": Image.Resampling(processor.resample).name,
        "center_crop": processor.crop_size["height"], "divide_by": round(1 / processor.rescale_factor),
        "mean": list(processor.image_mean), "std": list(processor.image_std),
    }  # fmt: skip


def _images(arguments: ExportArguments, processor: BaseImageProcessor, image_size: int) -> tuple[Tensor, str]:
    """(N, 3, S, S) to compare on, and what they are."""
    if arguments.dataset_name is None:
        noise = torch.randn(NOISE, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        return noise, f"{NOISE} images of noise"
    images = load_image_dataset(
        arguments.dataset_name, **arguments.columns, test_split=arguments.split, flags={"test": "--split"},
        max_eval_samples=arguments.num_images, need_train=False, check_images=False,
    )  # fmt: skip
    split = images.splits["test"]
    source = f"{len(split)} images of {arguments.dataset_name}, {arguments.split}"
    return pixels_of((read(row["image"]) for row in undecoded(split)), processor), source


def _write_onnx(network: nn.Module, images: Tensor, metadata: dict, file: Path) -> None:
    program = torch.onnx.export(
        network, (images,), dynamic_shapes=DYNAMIC, verbose=False,
        input_names=["pixel_values"], output_names=["logits", "embeddings"],
    )  # fmt: skip
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value)
    program.save(file)


def _read_onnx(file: Path) -> Run:
    import onnxruntime

    session, names = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]), ["logits", "embeddings"]
    return lambda images: [*map(torch.from_numpy, session.run(names, {"pixel_values": images.numpy()}))]


def _write_torch_export(network: nn.Module, images: Tensor, metadata: dict, file: Path) -> None:
    extra = {f"{key}.json": json.dumps(value) for key, value in metadata.items()}
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=DYNAMIC), file, extra_files=extra)


FORMATS = {
    "onnx": ("model.onnx", _write_onnx, _read_onnx),
    "torch_export": ("model.pt2", _write_torch_export, lambda f: torch.export.load(f).module()),
}
