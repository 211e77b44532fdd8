"""New classes for a checkpoint, from images on disk or a data set: `protosphere add-class`."""

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..configuration_protosphere import ProtoSphereConfig
from ..data.dataset import load_image_dataset
from ..data.labels import announce_cases, labels_of, some
from ..data.pixels import image_files, open_image, read, undecoded
from ..editable_classes import class_name
from ..errors import ArgumentError, errors_in_one_line
from ..modeling_protosphere import ProtoSphereForImageClassification
from ..plots.text import say
from ..runs.files import replacing_files, write_json
from ..runs.folders import MODEL_FILES, RUN_FILES, held_folder
from ..runs.loading import load_classifier
from ..runs.processes import own_device
from ..runs.reading import read_json
from ..runs.snapshots import SNAPSHOT, save_snapshot, snapshot_of
from .arguments import AddClassArguments


def add_class(arguments: AddClassArguments) -> ProtoSphereForImageClassification:
    """Add classes to a checkpoint, as `protosphere add-class` does.

    A run's metrics stay those of the classes it was trained on; its results.json and snapshot get the new ones.

    Raises:
        ArgumentError: no checkpoint, one that takes no classes, a name that it knows, no images.
        DataError: images that cannot be decoded; nothing has been written then.
    """
    source = Path(arguments.folder)
    if arguments.output_dir is None and not source.is_dir():
        raise ArgumentError(f"{arguments.folder} is not a folder here: give --output_dir for the new checkpoint.")
    flag = "--folder" if arguments.output_dir is None else "--output_dir"
    with held_folder(arguments.output_dir or source, flag, RUN_FILES) as folder:
        return _add_class(arguments, source, folder)


def _add_class(arguments: AddClassArguments, source: Path, folder: Path) -> ProtoSphereForImageClassification:
    model, processor = load_classifier(arguments.folder, "--folder")
    images = _images_of(arguments, {*map(class_name, model.config.class_names)})
    snapshot = snapshot_of(arguments.folder)
    if snapshot is not None and snapshot.class_names != model.config.class_names:
        raise ArgumentError(
            f"--folder {arguments.folder}: its {SNAPSHOT} is of other classes than the model: "
            "remove it, or write it again by `protosphere evaluate --pictures`."
        )
    # (D,) mean embedding of the classes, each as much as another.
    holds_images, reserved = snapshot is not None and snapshot.labels.numel() > 0, model.config.reserved_classes
    wanted = holds_images and arguments.center and model.config.prototypes != "class_means"
    center = snapshot.center if wanted else None
    if arguments.leave_one_out and not holds_images:
        raise ArgumentError(f"--leave_one_out needs images of known classes: {arguments.folder} has no {SNAPSHOT}.")
    known = snapshot.known if arguments.leave_one_out else None
    bar = tqdm(total=sum(map(len, images.values())), desc="embedding", unit=" images", leave=False)

    def opened(load: Callable[[], Image.Image]) -> Image.Image:
        bar.update()
        return load()

    with bar, errors_in_one_line(f"--folder {arguments.folder}", of=ValueError):
        means = model.to(own_device()).add_classes(
            {name: map(opened, of_class) for name, of_class in images.items()}, processor,
            center=center, known=known, shrinkage=arguments.shrinkage, batch_size=arguments.batch_size,
        )  # fmt: skip
    model = model.cpu()
    with replacing_files(folder) as unfinished:
        if source.is_dir() and folder.resolve() != source.resolve():
            # All that a run has left but the model.
            for pattern in {*RUN_FILES} - {*MODEL_FILES}:
                for path in source.glob(pattern):
                    shutil.copy2(path, unfinished / path.name)
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        if snapshot is not None:
            means = torch.cat([snapshot.class_means, means.to(snapshot.class_means)])
            taken = {"class_names": model.config.class_names, "prototypes": model.prototypes.detach().float()}
            save_snapshot(dataclasses.replace(snapshot, class_means=means, **taken), unfinished / SNAPSHOT)
        if (results := source / "results.json").exists():
            content = read_json(results, "Remove it, or give --output_dir.")
            content["added_classes"] = content.get("added_classes", {}) | {n: len(of) for n, of in images.items()}
            write_json(unfinished / results.name, content)
        load_classifier(str(unfinished), "the new checkpoint")  # or it is not kept
    say(f"{folder}: {model.config.num_labels} classes, new are {some(images)}")
    if known is not None:
        say(_placing(model.config, [*images], reserved))
    if center is None and model.config.prototypes == "learned":
        say(f"The prototypes were not centred, for want of {f'a {SNAPSHOT}' if snapshot is None else '--center'}.")
    if model.config.rejection_threshold is not None:
        say(
            "Its threshold and temperature are those of the classes before: to choose them again, "
            f"`protosphere calibrate {folder} --dataset_name ...`, with images of all classes."
        )
    return model


def _placing(config: ProtoSphereConfig, names: list[str], reserved: int) -> str:
    margins = zip((config.class_margins or [0.0] * config.num_labels)[-len(names) :], names)
    taken = f"; spare vertices taken: {reserved - config.reserved_classes} of {reserved}" if reserved else ""
    return f"By leaving out each image in turn: margin {some([f'{m:.2f} of {name}' for m, name in margins])}{taken}"


def _images_of(arguments: AddClassArguments, known: set[str]) -> dict[str, list[Callable[[], Image.Image]]]:
    """Functions that load the images of each class that is not known."""
    if arguments.dataset_name is None:
        paths: list[Path] = []
        for given in map(Path, arguments.images or []):
            if not given.exists():
                raise ArgumentError(f"--images {given}: there is no such file or folder.")
            paths += image_files(given)
        if not paths:
            raise ArgumentError(f"--images {' '.join(arguments.images or [])}: no images in there.")
        name = class_name(arguments.name)
        if not name or name.encode(errors="replace").decode() != name:
            raise ArgumentError(f"--name {arguments.name!a}: give a name in UTF-8.")
        announce_cases([name], known)
        return {name: [partial(open_image, path) for path in paths]}
    loaded = load_image_dataset(
        arguments.dataset_name, train_split=arguments.split, flags={"train": "--split"},
        validation_fraction=0, roles=["train"],
    )  # fmt: skip
    split = undecoded(loaded.splits["train"])
    labels = labels_of(split)
    new = {i: name for i, name in enumerate(loaded.label_names) if name not in known}
    if not new:
        why = f"the checkpoint knows all of its classes, {some(loaded.label_names)}."
        raise ArgumentError(f"--dataset_name {arguments.dataset_name}: {why}")
    announce_cases(new.values(), known)

    def image(row: int) -> Image.Image:
        return read(split[row]["image"])

    return {name: [partial(image, row) for row in (labels == i).nonzero()[0].tolist()] for i, name in new.items()}
