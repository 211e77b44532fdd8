"""An index of images on disk: their embeddings, and where each image is.

One Arrow file, which 🤗 datasets and pandas read too, and which is mapped into memory, not read into it. It is
written beside the old one and renamed: whatever ends the process, one of the two is there, whole."""

import dataclasses
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from PIL import Image as PILImage
from torch import Tensor

from ..data.arguments import LabelledImages
from ..data.dataset import load_split
from ..data.labels import labels_of
from ..data.pixels import decode, image_files, open_image, undecoded
from ..data.sources import folder_labels
from ..errors import ArgumentError, DataError, errors_in_one_line
from ..runs.files import whole_file
from .embedding import Embedder
from .neighbours import Neighbours, nearest

INDEX = "index.arrow"
KEY = b"protosphere_index"  # of the origin, in the metadata of the file
# What leads out of the folder that a path should be in.
OUTSIDE = r"^$|^/|\x00|(^|[/\\])\.\.([/\\]|$)" + (r"|^\\|^.?:" if os.name == "nt" else "")


@dataclass(frozen=True)
class IndexedImage:
    """Where an image is: at a path in a folder, or in a row of a data set's split."""

    path: str | None = None  # relative to the folder, with forward slashes
    row: int | None = None
    label: str | None = None
    size: int | None = None  # of the file, in bytes
    modified: int | None = None  # the file, in nanoseconds
    changed: int | None = None  # anything of it, these two included: what nobody can set back


COLUMNS = {own.name: pa.string() if own.type == str | None else pa.int64() for own in dataclasses.fields(IndexedImage)}


@dataclass(frozen=True)
class IndexedImages(Sequence[IndexedImage]):
    """The images of an index in columns; only what is asked for becomes an `IndexedImage`."""

    columns: pa.RecordBatch  # of `COLUMNS`

    @classmethod
    def of(cls, count: int, **columns: Any) -> "IndexedImages":
        """Of (count,) values each; a column that is not given holds nulls."""
        given = dict.fromkeys(COLUMNS, [None] * count) | columns
        return cls(pa.RecordBatch.from_pydict(given, pa.schema(COLUMNS)))

    def __len__(self) -> int:
        return self.columns.num_rows

    def __getitem__(self, row: int) -> IndexedImage:
        return IndexedImage(**self.columns.slice(int(row), 1).to_pylist()[0])

    def places_in(self, others: "IndexedImages") -> np.ndarray:
        """(N,) int64: where the others have the same files, unchanged since; -1 where they do not."""
        places = pc.index_in(self.columns["path"], others.columns["path"])
        for name in ("size", "modified", "changed"):
            places = pc.if_else(pc.equal(self.columns[name], others.columns[name].take(places)), places, None)
        return places.fill_null(-1).to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Origin:
    """What an index was made from."""

    model: str  # the checkpoint's folder or Hub id
    fingerprint: str  # of its weights and image processor
    folder: str | None = None  # of the images
    dataset: dict[str, Any] = field(default_factory=dict)  # or arguments of `data.load_split`
    layer: str = "embeddings"  # of the checkpoint, as `Embedder.load` takes it
    pretrained: str | None = None  # as there


@dataclass(frozen=True)
class ImageIndex:
    """Embeddings of images, to be searched.

    Example::

        index = ImageIndex.of_folder("photos", "outputs/run")
        index.save("outputs/index")
        neighbours = ImageIndex.load("outputs/index").search([image], k=5)
        [index.images[row].path for row in neighbours.rows[0].tolist()]
    """

    embeddings: Tensor  # (N, D) float32, unit rows
    images: IndexedImages
    origin: Origin

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of_folder(
        cls, folder: str | Path, model: str | Embedder, *, labels_from_folders: bool = False,
        previous: "ImageIndex | None" = None, **options: Any,
    ) -> "ImageIndex":  # fmt: skip
        """Index all images of a folder, at any depth, in the order of their paths.

        Args:
            labels_from_folders: the label of an image is its class, as training on the folder
                finds it; where it finds none, the name of the folder that the image lies in.
            previous: an index of the same model: files of the same path, size and times are not embedded again.
            options: of `Embedder.embed_all`.

        Raises:
            ArgumentError: no such model, no images, or a previous index of another model.
            DataError: images cannot be decoded.
        """
        embedder = Embedder.load(model) if isinstance(model, str) else model
        root, files = Path(folder), image_files(Path(folder))
        labels = folder_labels(root, files, "--images") if labels_from_folders else {}
        states = ((status.st_size, status.st_mtime_ns, status.st_ctime_ns) for status in map(os.stat, files))
        size, modified, changed = np.fromiter(states, np.dtype((np.int64, 3)), len(files)).T
        images = IndexedImages.of(
            len(files), path=[path.relative_to(root).as_posix() for path in files],
            label=[labels.get(path) for path in files], size=size, modified=modified, changed=changed,
        )  # fmt: skip
        known, places = torch.empty(0, embedder.dim), np.full(len(files), -1)
        if previous is not None:
            previous.check_model(embedder)
            known, places = previous.embeddings, images.places_in(previous.images)
        new = np.flatnonzero(places < 0)
        embeddings, rows = embedder.embed_all([files[row] for row in new], **options)
        places[new[rows]] = len(known) + np.arange(len(rows))
        if not (good := places >= 0).any():
            raise ArgumentError(f"--images {folder} holds no image that can be decoded.")
        images, origin = images.columns.filter(pa.array(good)), _origin(embedder, folder=str(root.resolve()))
        taken, places = torch.empty(len(images), embedder.dim), torch.from_numpy(places[good])
        for first, source in ((0, known), (len(known), embeddings)):  # not joined: they may fill the memory
            rows = ((places >= first) & (places < first + len(source))).nonzero()[:, 0]
            for some in rows.split(2**16):
                taken[some] = source[places[some] - first]
        return cls(taken, IndexedImages(images), origin)

    @classmethod
    def of_dataset(
        cls, dataset_name: str, model: str | Embedder, *, split: str = "test",
        columns: dict[str, Any] | None = None, **options: Any,
    ) -> "ImageIndex":  # fmt: skip
        """Index a split of a data set, with its labels.

        Args:
            columns: further arguments of `data.load_split`.
            options: of `Embedder.embed_all`.

        Raises:
            ArgumentError: no such model.
            DataError: no such data set, or images cannot be decoded.
        """
        embedder = Embedder.load(model) if isinstance(model, str) else model
        source = {"dataset_name": dataset_name, "split": split, **(columns or {})}
        images = load_split(**source)
        embeddings, rows = embedder.embed_all(images, **options)
        if not rows:
            raise DataError(f"--dataset_name {dataset_name}: none of its images can be decoded.")
        names, labels = images.features["label"].names, labels_of(images)
        entries = IndexedImages.of(len(rows), row=rows, label=[names[label] for label in labels[rows]])
        return cls(embeddings, entries, _origin(embedder, dataset=source))

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        flat, dim = pa.array(self.embeddings.flatten().numpy()), self.embeddings.shape[1]
        batch = self.images.columns.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, dim))
        origin = dataclasses.asdict(self.origin)
        if self.origin.folder is not None:
            images, index = Path(self.origin.folder), folder.resolve()
            # Relative where one holds the other, so that they can be moved together.
            if images.is_relative_to(index) or index.is_relative_to(images):
                origin["folder"] = os.path.relpath(images, index)
        batch = batch.replace_schema_metadata({KEY: json.dumps(origin)})
        with (
            whole_file(folder / INDEX) as unfinished,
            pa.OSFile(str(unfinished), "wb") as file,
            pa.ipc.new_file(file, batch.schema) as writer,
        ):
            writer.write_batch(batch)
            file.flush()
            # Arrow has no checksums: ours comes with a second batch, of no rows.
            written = np.memmap(unfinished, mode="r")
            writer.write_batch(batch.slice(0, 0), {"bytes": str(len(written)), "crc32": str(zlib.crc32(written))})

    @classmethod
    def load(cls, folder: str | Path) -> "ImageIndex":
        """The index in a folder; an `ArgumentError` where there is none, or it is damaged."""
        path = Path(folder) / INDEX
        if not path.is_file():
            raise ArgumentError(f"--index {folder} is no index: `protosphere index` writes one, with {INDEX}.")
        again = "Remove it, and write it again by `protosphere index`."
        with errors_in_one_line(f"{path} is damaged or no index", again):
            batch = _read(path)
            origin = Origin(**json.loads(batch.schema.metadata[KEY]))
            vectors = batch["embedding"]
            embeddings = torch.from_dlpack(vectors.flatten()).view(len(vectors), vectors.type.list_size)
            images = IndexedImages(batch.select([*COLUMNS]).replace_schema_metadata())
            _check(embeddings, images, origin)
        if origin.folder is not None:
            origin = dataclasses.replace(origin, folder=os.path.normpath(Path(folder).resolve() / origin.folder))
        return cls(embeddings, images, origin)

    def search(
        self, queries: Tensor | Sequence[PILImage.Image], k: int = 10, model: Embedder | None = None
    ) -> Neighbours:
        """The k nearest images of each query, or all where there are fewer.

        Args:
            queries: embeddings (Q, D), unit rows, or images.
            model: to embed images with; by default it is loaded from where the index has it from.

        Raises:
            ArgumentError: the model is another one than the index was built with.
        """
        if not isinstance(queries, Tensor):
            embedder = model or self._embedder
            self.check_model(embedder)
            queries = embedder(queries)
        return nearest(queries, self.embeddings, k)

    def check_model(self, embedder: Embedder) -> None:
        """An `ArgumentError` where the index was built with another model."""
        if embedder.fingerprint != self.origin.fingerprint:
            raise ArgumentError(
                f"--model {embedder.name}, --layer {embedder.layer}, is not what the index was built with, which was "
                f"{self.origin.model}, {self.origin.layer}: embeddings of two have nothing to do with each other. "
                "Give that one, or build an index anew by `protosphere index --overwrite`."
            )

    def image(self, row: int) -> PILImage.Image:
        """A `DataError` where the image is not any more where the index has it from."""
        image = self.images[row]
        if image.path is not None:
            return open_image(Path(self.origin.folder) / image.path)
        if image.row >= len(self._split):
            raise DataError(f"{self.origin.dataset['dataset_name']} is shorter than when indexed.")
        return decode(self._split[image.row]["image"])

    def name(self, row: int) -> str:
        """The path of an image in its folder, or such as "test 17" of a data set."""
        image = self.images[row]
        return image.path or f"{self.origin.dataset['split']} {image.row}"

    @cached_property
    def _embedder(self) -> Embedder:
        return Embedder.load(self.origin.model, self.origin.layer, self.origin.pretrained)

    @cached_property
    def _split(self) -> Dataset:
        return undecoded(load_split(**self.origin.dataset))


def is_index(path: Path) -> bool:
    """Whether a file is one that `ImageIndex.save` wrote, by its header."""
    try:
        return KEY in (pa.ipc.open_file(pa.OSFile(str(path))).schema.metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _origin(embedder: Embedder, **images: Any) -> Origin:
    return Origin(embedder.name, embedder.fingerprint, layer=embedder.layer, pretrained=embedder.pretrained, **images)


def _read(path: Path) -> pa.RecordBatch:
    """What an index file holds, in place; a `ValueError` where it is damaged, or no index can hold it."""
    # Written into, it is copied. Windows replaces no file that is mapped.
    content = np.fromfile(path, np.uint8) if os.name == "nt" else np.memmap(path, mode="c")
    file = pa.ipc.open_file(pa.py_buffer(content))
    kinds = {field.name: field.type for field in file.schema}
    embedding = kinds.pop("embedding", None)
    is_list = pa.types.is_fixed_size_list(embedding) and embedding.value_type == pa.float32()
    if not is_list or kinds != COLUMNS:
        raise ValueError(f"it has the columns {kinds} and embedding: {embedding}.")
    said = file.get_batch_with_custom_metadata(1).custom_metadata
    if zlib.crc32(content[: int(said["bytes"])]) != int(said["crc32"]):
        raise ValueError("its checksum is another.")
    batch = file.get_batch(0)
    batch.validate(full=True)
    return batch


def _check(embeddings: Tensor, images: IndexedImages, origin: Origin) -> None:
    """Vectors that are no points of the sphere, and an image that is none of the folder or split
    that the index was made from, are a `ValueError`."""
    if not len(images) or not ((embeddings.norm(dim=1) - 1).abs() < 0.01).all():  # NaN is no match
        raise ValueError("its embeddings are none, or not finite, or not of unit norm.")
    source, known = origin.dataset, {"dataset_name", "split", *LabelledImages().columns}
    texts = [origin.model, origin.fingerprint, origin.layer]
    texts += [text for text in (*source.values(), origin.folder, origin.pretrained) if text]
    named = origin.folder is not None or {"dataset_name", "split"} <= {*source}
    if not named or not {*source} <= known or not all(isinstance(text, str) for text in texts):
        raise ValueError("it does not say of what folder or data set it was made.")
    path, row = images.columns["path"], images.columns["row"]
    if origin.folder is not None:
        wrong, what = pc.match_substring_regex(path, OUTSIDE).fill_null(True), "path in the folder"
    else:
        wrong, what = pc.or_(path.is_valid(), pc.less(row, 0).fill_null(True)), "row of the split"
    for image in IndexedImages(images.columns.filter(wrong)):
        raise ValueError(f"{image} is no {what} that it was made from.")
