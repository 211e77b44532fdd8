"""The command `protosphere index`: embed a folder of images, or a data set, to search in it."""

import time
from pathlib import Path

from ..errors import ArgumentError
from ..plots.text import say
from ..runs.folders import held_folder
from .arguments import IndexArguments
from .embedding import Embedder
from .image_index import INDEX, ImageIndex, IndexedImages, is_index


def index(arguments: IndexArguments) -> ImageIndex:
    """Write an index, or bring the one that is there up to date, as `protosphere index` does.

    Raises:
        ArgumentError: no such model, no images, or an index of another model or other images.
        DataError: no such data set, or images cannot be decoded.
    """
    own = is_index(Path(arguments.index_dir) / INDEX)
    with held_folder(arguments.index_dir, "--index_dir", () if own else (INDEX,)) as folder:
        model = Path(arguments.model)  # of a folder the whole path, to be found from anywhere
        name = str(model.resolve()) if model.is_dir() else arguments.model
        embedder = Embedder.load(name, arguments.layer, arguments.pretrained)
        previous = None
        if not arguments.overwrite and (folder / INDEX).exists():
            previous = ImageIndex.load(folder)
            _check_same_source(previous, arguments)
            previous.check_model(embedder)
        started = time.perf_counter()
        if arguments.images is not None:
            made = ImageIndex.of_folder(
                arguments.images, embedder, labels_from_folders=arguments.labels_from_folders,
                previous=previous, **arguments.embedding_options,
            )  # fmt: skip
        else:
            made = ImageIndex.of_dataset(
                arguments.dataset_name, embedder, split=arguments.split, columns=arguments.columns,
                **arguments.embedding_options,
            )  # fmt: skip
            previous = None  # a data set is embedded anew
        made.save(folder)
        before = previous.images if previous else IndexedImages.of(0)
        kept = int((made.images.places_in(before) >= 0).sum())
        say(
            f"{folder}: {len(made):,} images of {made.embeddings.shape[1]} dimensions; {len(made) - kept:,} embedded, "
            f"{kept:,} as they were, {len(before) - kept:,} dropped ({time.perf_counter() - started:.1f} s)"
        )
        return made


def _check_same_source(previous: ImageIndex, arguments: IndexArguments) -> None:
    if arguments.images is not None:
        same = previous.origin.folder == str(Path(arguments.images).resolve())
    else:
        source = {"dataset_name": arguments.dataset_name, "split": arguments.split}
        same = previous.origin.dataset == source | arguments.columns
    if not same:
        of = previous.origin.folder or previous.origin.dataset["dataset_name"]
        raise ArgumentError(
            f"--index_dir {arguments.index_dir} holds an index of other images, {of}: give another "
            "folder, or --overwrite."
        )
