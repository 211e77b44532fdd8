"""A table with the class of every image: `protosphere predict`, and `hf_protosphere.predict`."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Dataset
from datasets.fingerprint import Hasher
from pyarrow import csv, parquet
from pyarrow.json import ParseOptions, read_json

from ..arguments.parsing import read_text
from ..configuration_protosphere import ProtoSphereConfig, build_image_processor
from ..data.pixels import DecodedImages, image_files, reason
from ..data.sources import choose_splits, find_image_column, load_splits, two_columns
from ..errors import ArgumentError, DataError
from ..pipeline_protosphere import UNKNOWN
from ..plots.text import say
from ..runs.files import refused_by_disk, replacing_files, whole_file, writable_folder
from ..runs.folders import held_folder
from ..runs.loading import load_classifier
from ..runs.signals import interruptions
from .arguments import PredictArguments


def predict(model: Any, images: Any, **options: Any) -> Dataset:
    """What a model says of images: a row for each, with the columns of `schema`.

    Args:
        model: a checkpoint's folder or Hub id; or a model, used on the device where it is.
        images: a list of files and Pillow images; a data set; or what `--images` takes.
        options: top_k, on_bad_image, batch_size and num_workers, as in `PredictArguments`.

    Raises:
        ArgumentError: no such model or images, or an option that cannot be.
        DataError: an image cannot be decoded, with `on_bad_image="error"`.
    """
    arguments = PredictArguments(model="model", images=["images"], **options)
    if isinstance(model, str | Path):
        model, processor = load_classifier(str(model))
        model.to(PartialState().device)
    else:
        processor = build_image_processor(model.config)
    if isinstance(images, Dataset):
        images = two_columns(images, find_image_column(images, None), None, ".")
    images = image_paths([str(images)]) if isinstance(images, str | Path) else images
    columns, was_training = schema(model.config, arguments.top_k), model.training
    found = _rows(model.eval(), processor, images, arguments)
    batches = [pa.RecordBatch.from_pylist(rows, columns) for rows in found]
    model.train(was_training)
    return Dataset(pa.Table.from_batches(batches, columns))


def predict_into_file(arguments: PredictArguments) -> Dataset:
    """The table, as `protosphere predict` writes it; errors are those of `predict`."""
    output, root = Path(arguments.output), arguments.sort_into
    writable_folder(output.parent, "--output")
    if root is not None:
        writable_folder(root, "--sort_into")
    model, processor = load_classifier(arguments.model)
    columns = schema(model.to(PartialState().device).config, arguments.top_k)
    if arguments.images:
        images = image_paths(arguments.images)
    else:
        name, split, revision = arguments.dataset_name, arguments.split, arguments.dataset_revision
        loaded = load_splits(name, arguments.dataset_config, revision, named={split})
        choose_splits(loaded, "train", None, split, False, {"test": "--split"})
        column = find_image_column(loaded[split], arguments.image_column)
        images = two_columns(loaded[split], column, None, name)
    unfinished = held_folder(f"{output}.unfinished", "--output", ["*.jsonl"])
    with unfinished as folder, interruptions(" with --resume"):
        # Rows of another model, or with other columns, have another name.
        made_by = model.state_dict(), model.config.to_dict(), processor.to_dict(), columns.names
        path = folder / f"{Hasher.hash(made_by)}.jsonl"
        with refused_by_disk(path), path.open("ab") as file:
            there = path.read_bytes() if arguments.resume else b""
            file.truncate(there.rfind(b"\n") + 1)  # without a line that a kill cut short
            done = {json.loads(line)["image"] for line in there.split(b"\n")[:-1]}
            for rows in _rows(model, processor, images, arguments, done):
                file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
                file.flush()
        table = read_json(path, parse_options=ParseOptions(explicit_schema=columns))
        if root is not None:
            _sort(table, Path(root), arguments.copy)
        with whole_file(output) as new:
            write = {".csv": csv.write_csv, ".parquet": parquet.write_table}.get(output.suffix)
            write(table, new) if write else shutil.copyfile(path, new)
        shutil.rmtree(folder)
    said = f"{len(table):,} images, {len(done)} resumed, {len(table['error'].drop_null()):,} broken"
    if "unknown" in columns.names:
        said += f", {table['unknown'].to_pylist().count(True):,} unknown"
    say(f"{output}: {said}")
    return Dataset(table)


def image_paths(names: list[str]) -> list[str]:
    """The files that names mean, as `--images` has them, each once; an `ArgumentError` where there
    are none. Those in a list may be missing."""
    found: list[Any] = []
    for name in names:
        if name == "-" or name.endswith(".txt"):
            text = sys.stdin.read() if name == "-" else read_text(name, "--images")
            paths = [line.strip() for line in text.split("\n") if line.strip()]
        else:
            matches = [name] if os.path.exists(name) else sorted(glob(name, recursive=True))
            paths = [path for match in matches for path in image_files(Path(match))]
        if not paths:
            raise ArgumentError(f"--images {name}: no such file or folder, or no images in it.")
        found += paths
    return [*dict.fromkeys(map(str, found))]


def schema(config: ProtoSphereConfig, top_k: int) -> pa.Schema:
    """The columns: image (path or row), class, score (softmax), cosine (to the prototype); class_2,
    score_2 and so on to `top_k`; unknown, of models with a threshold; error, why no class."""
    if top_k > config.num_labels:
        raise ArgumentError(f"--top_k {top_k}: the model has {config.num_labels} classes.")
    more = [f"{name}_{k}" for k in range(2, top_k + 1) for name in ("class", "score")]
    unknown = [] if config.rejection_threshold is None else ["unknown"]
    kinds = {"score": pa.float32(), "cosine": pa.float32(), "unknown": pa.bool_()}
    names = ["image", "class", "score", "cosine", *more, *unknown, "error"]
    return pa.schema([(name, kinds.get(name.split("_")[0], pa.string())) for name in names])


@torch.no_grad()
def _rows(model: Any, processor: Any, images: Any, options: Any, done: Any = ()) -> Iterator[list]:
    """The rows in batches, but for those of images that are `done`, by their names."""
    columns, names = schema(model.config, options.top_k).names, [*map(str, range(len(images)))]
    if not isinstance(images, Dataset):
        names = [str(i) if isinstance(i, str | Path) else row for row, i in zip(names, images)]
    left = [row for row, name in enumerate(names) if name not in done]
    batches = left, options.batch_size, options.num_workers, "predicting"
    for pixels, good, bad in DecodedImages(images, processor).batches(*batches):
        rows = {row: {"error": reason(error)} for row, error in bad.items()}
        if bad and options.on_bad_image == "error":
            first = f"{names[min(bad)]} cannot be decoded ({rows[min(bad)]['error']})"
            raise DataError(f"--on_bad_image error: {first}. Mend it, or take it out.")
        if good:
            # Convolutions on CPUs take half the time; values differ by rounding.
            output = model(pixels.to(model.device, memory_format=torch.channels_last))
            scores, classes = output.logits.softmax(-1).topk(options.top_k)  # (M, k), (M, k)
            own = model.prototypes.to(output.embeddings.dtype)[classes[:, 0]]  # (M, D)
            cosines = (output.embeddings * own).sum(-1).clamp(-1, 1)  # (M,)
            told = (classes, scores, cosines, output.is_unknown)
            answers = [found.tolist() for found in told if found is not None]
            for row, numbers, shares, cosine, *unknown in zip(good, *answers):
                first, *more = zip(map(model.config.id2label.get, numbers), shares)
                rows[row] = dict(zip(columns[1:], [*first, cosine, *sum(more, ()), *unknown]))
        yield [dict.fromkeys(columns) | {"image": names[row]} | rows[row] for row in sorted(rows)]


def _sort(table: pa.Table, root: Path, copy: bool) -> None:
    """Link or copy each image into the folder of its class, or unknown, numbered if need be."""
    used: dict[Path, int] = {}
    rows = (row for batch in table.to_batches() for row in batch.to_pylist())
    with replacing_files(root) as new:
        for row in (row for row in rows if row["error"] is None):
            source, unsafe = Path(row["image"]).absolute(), r"[^\w .,()&+-]|^[. ]|[. ]$"
            name = re.sub(unsafe, lambda found: f"%{ord(found[0]):x}", row["class"])
            target = first = Path(UNKNOWN if row.get("unknown") else name, source.name)
            while os.path.lexists(root / target) or os.path.lexists(new / target):
                used[first] = used.get(first, 1) + 1
                target = first.with_stem(f"{first.stem}_{used[first]}")
            (new / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, new / target) if copy else (new / target).symlink_to(source)
