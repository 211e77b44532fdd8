"""An index of images on disk: their embeddings, and where each image is.

One Parquet file, which 🤗 datasets and pandas read too. It is written beside the old one and
renamed: whatever ends the process, one of the two is there, whole."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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

INDEX = "index.parquet"
KEY = b"protosphere_index"  # of the origin, in the metadata of the file
COLUMNS = {  # as the fields of `IndexedImage`
    "path": pa.string(), "row": pa.int64(), "label": pa.string(), "size": pa.int64(),
    "modified": pa.int64(), "changed": pa.int64(),
}  # fmt: skip


@dataclass(frozen=True)
class IndexedImage:
    """Where an image is: at a path in a folder, or in a row of a data set's split."""

    path: str | None = None  # relative to the folder, with forward slashes
    row: int | None = None
    label: str | None = None
    size: int | None = None  # of the file, in bytes
    modified: int | None = None  # the file, in nanoseconds
    changed: int | None = None  # anything of it, these two included: what nobody can set back

    @property
    def file_state(self) -> tuple[str | int | None, ...]:
        """What tells whether a file changed."""
        return self.path, self.size, self.modified, self.changed


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
    images: list[IndexedImage]
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
        images = [
            IndexedImage(
                path=path.relative_to(root).as_posix(), label=labels.get(path), size=(status := path.stat()).st_size,
                modified=status.st_mtime_ns, changed=status.st_ctime_ns,
            )
            for path in files
        ]  # fmt: skip
        known: dict[tuple, Tensor] = {}
        if previous is not None:
            previous.check_model(embedder)
            known = {i.file_state: e for i, e in zip(previous.images, previous.embeddings)}
        new = [image for image in images if image.file_state not in known]
        embeddings, rows = embedder.embed_all([root / image.path for image in new], **options)
        known |= {new[row].file_state: e for row, e in zip(rows, embeddings)}
        images = [image for image in images if image.file_state in known]
        if not images:
            raise ArgumentError(f"--images {folder} holds no image that can be decoded.")
        origin = _origin(embedder, folder=str(root.resolve()))
        return cls(torch.stack([known[image.file_state] for image in images]), images, origin)

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
        entries = [IndexedImage(row=row, label=names[labels[row]]) for row in rows]
        return cls(embeddings, entries, _origin(embedder, dataset=source))

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        flat = pa.array(self.embeddings.flatten().numpy())
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.embeddings.shape[1])
        table = pa.Table.from_pylist([vars(image) for image in self.images], pa.schema(COLUMNS))
        table = table.append_column("embedding", vectors)
        origin = dataclasses.asdict(self.origin)
        if self.origin.folder is not None:
            images, index = Path(self.origin.folder), folder.resolve()
            # Relative where one holds the other, so that they can be moved together.
            if images.is_relative_to(index) or index.is_relative_to(images):
                origin["folder"] = os.path.relpath(images, index)
        table = table.replace_schema_metadata({KEY: json.dumps(origin)})
        with whole_file(folder / INDEX) as unfinished:
            pq.write_table(table, unfinished, write_page_checksum=True)

    @classmethod
    def load(cls, folder: str | Path) -> "ImageIndex":
        """The index in a folder; an `ArgumentError` where there is none, or it is damaged."""
        path = Path(folder) / INDEX
        if not path.is_file():
            raise ArgumentError(f"--index {folder} is no index: `protosphere index` writes one, with {INDEX}.")
        again = "Remove it, and write it again by `protosphere index`."
        with errors_in_one_line(f"{path} is damaged or no index", again):
            _refuse_giants(path)
            table = pq.read_table(path, page_checksum_verification=True)
            origin = Origin(**json.loads(table.schema.metadata[KEY]))
            vectors = table["embedding"].combine_chunks()
            flat = torch.from_numpy(vectors.flatten().to_numpy(zero_copy_only=False).copy())
            embeddings = flat.view(len(table), vectors.type.list_size)
            # Version 0.1.0 did not write the last one.
            columns = [c for c in COLUMNS if c != "changed" or c in table.column_names]
            images = [IndexedImage(**row) for row in table.select(columns).to_pylist()]
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
        return KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _origin(embedder: Embedder, **images: Any) -> Origin:
    return Origin(embedder.name, embedder.fingerprint, layer=embedder.layer, pretrained=embedder.pretrained, **images)


def _refuse_giants(path: Path) -> None:
    """Other columns, or more numbers than fit into a file of this size, are a `ValueError`."""
    kinds = {field.name: field.type for field in pq.read_schema(path)}
    embedding = kinds.pop("embedding", None)
    is_list = pa.types.is_fixed_size_list(embedding) and embedding.value_type == pa.float32()
    if not is_list or {"changed": COLUMNS["changed"]} | kinds != COLUMNS:
        raise ValueError(f"it has the columns {kinds} and embedding: {embedding}.")
    rows, dim = pq.read_metadata(path).num_rows, embedding.list_size
    if rows * max(dim, 1) > 64 * path.stat().st_size:
        raise ValueError(f"{rows:,} rows of {dim:,} numbers are more than the file can hold.")


def _check(embeddings: Tensor, images: list[IndexedImage], origin: Origin) -> None:
    """Vectors that are no points of the sphere, and an image that is none of the folder or split
    that the index was made from, are a `ValueError`."""
    if not images or not ((embeddings.norm(dim=1) - 1).abs() < 0.01).all():  # NaN is no match
        raise ValueError("its embeddings are none, or not finite, or not of unit norm.")
    source, known = origin.dataset, {"dataset_name", "split", *LabelledImages().columns}
    texts = [origin.model, origin.fingerprint, origin.layer]
    texts += [text for text in (*source.values(), origin.folder, origin.pretrained) if text]
    named = origin.folder is not None or {"dataset_name", "split"} <= {*source}
    if not named or not {*source} <= known or not all(isinstance(text, str) for text in texts):
        raise ValueError("it does not say of what folder or data set it was made.")
    for image in images:
        path, row = PurePath(image.path or ""), image.row
        outside = path.is_absolute() or path.drive or ".." in re.split(r"[/\\]", image.path or "")
        if origin.folder is not None and (not image.path or outside or "\0" in image.path):
            raise ValueError(f"{image.path!r} is no path in the folder that it was made from.")
        if origin.folder is None and (image.path is not None or row is None or row < 0):
            raise ValueError(f"{image} is no row of the split that it was made from.")
