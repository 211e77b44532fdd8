"""A table with the class of every image: `protosphere predict`, and `hf_protosphere.predict`."""

import filecmp
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from pyarrow import csv, parquet
from pyarrow.json import ParseOptions, open_json
from torch import Tensor

from ..arguments.parsing import read_text
from ..configuration_protosphere import ProtoSphereConfig, build_image_processor
from ..data.pixels import DecodedImages, image_files, reason, table_of
from ..data.sources import choose_splits, find_image_column, load_splits, two_columns
from ..errors import ArgumentError, DataError
from ..pipeline_protosphere import UNKNOWN, prediction_sets
from ..plots.text import say
from ..runs.files import refused_by_disk, replacing_files, whole_file, writable_folder
from ..runs.folders import held_folder
from ..runs.loading import load_classifier
from ..runs.processes import own_device
from ..runs.signals import interruptions
from .arguments import PredictArguments
from .predictions import parts_of


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
        model.to(own_device())
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


def predict_into_file(arguments: PredictArguments) -> None:
    """The table, as `protosphere predict` writes it; errors are those of `predict`."""
    output, root = Path(arguments.output), arguments.sort_into
    writable_folder(output.parent, "--output")
    if root is not None:
        writable_folder(root, "--sort_into")
    model, processor = load_classifier(arguments.model)
    columns = schema(model.to(own_device()).config, arguments.top_k)
    name, split = arguments.dataset_name, arguments.split
    if arguments.images:
        images = image_paths(arguments.images)
    else:
        loaded = load_splits(name, arguments.dataset_config, arguments.dataset_revision, named={split})
        choose_splits(loaded, "train", None, split, False, {"test": "--split"})
        images = two_columns(loaded[split], find_image_column(loaded[split], arguments.image_column), None, name)
    # Rows of another model, with other columns, or of another data set have another name.
    source = name, split, arguments.dataset_config, arguments.dataset_revision
    made_by = model.state_dict(), model.config.to_dict(), processor.to_dict(), columns.names, source
    rows = held_folder(output.with_name(f".{output.name}.rows"), "--output", ["*.jsonl"])
    with rows as folder, interruptions(" with --resume"), refused_by_disk(folder):
        path = folder / f"{Hasher.hash(made_by)}.jsonl"
        for other in {*folder.glob("*.jsonl")} - {path}:
            other.unlink()
        with path.open("a+b") as file:
            done, end = set(), file.seek(0)
            for line in file if arguments.resume else ():
                if line.endswith(b"\n"):  # and was not cut short by a kill
                    done.add(json.loads(line)["image"])
                    end += len(line)
            file.truncate(end)
            for answers in _rows(model, processor, images, arguments, done):
                file.writelines(json.dumps(row).encode() + b"\n" for row in answers)
                file.flush()
        with whole_file(output) as new:
            counts = _write(path, new, columns)
        if root is not None:
            _sort(path, Path(root), arguments.copy)
    there = "all there before" if counts["images"] == len(done) else f"{len(done):,} resumed"
    said = [f"{count:,} {what}" for what, count in counts.items()]
    say(f"{output}: {', '.join([said[0], there, *said[1:]])}")


def _write(rows: Path, path: Path, columns: pa.Schema) -> dict[str, int]:
    """The table by its ending, and how many images, broken and unknown ones it has."""
    counts = {"images": 0, "broken": 0} | ({"unknown": 0} if "unknown" in columns.names else {})
    writer = {".csv": csv.CSVWriter, ".parquet": parquet.ParquetWriter}.get(path.suffix)
    place, written = columns.get_field_index("prediction_set"), columns
    if path.suffix == ".csv" and place >= 0:  # CSV has no lists
        written = columns.set(place, pa.field("prediction_set", pa.string()))
    with writer(path, written) if writer else nullcontext(shutil.copyfile(rows, path)) as table:
        for batch in open_json(rows, parse_options=ParseOptions(explicit_schema=columns)):
            counts["images"] += len(batch)
            counts["broken"] += len(batch) - batch["error"].null_count
            if "unknown" in counts:
                counts["unknown"] += batch["unknown"].true_count
            if written is not columns:
                batch = batch.set_column(place, written.field(place), pc.binary_join(batch[place], "|"))
            if writer:
                table.write_batch(batch)
    return counts


def image_paths(names: list[str]) -> list[str]:
    """The files that names mean, as of `--images`, each once; `ArgumentError` if none. Listed ones may be missing."""
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
    """The columns: image (path or row), class, score (softmax) and cosine (to the prototype); probability,
    of calibrated models; class_2, score_2 and so on to `top_k`; unknown, of models with a threshold;
    prediction_set, of models with sets; error, why no class."""
    if top_k > config.num_labels:
        raise ArgumentError(f"--top_k {top_k}: the model has {config.num_labels} classes.")
    is_there = {"probability": config.calibration_temperature != 1, "unknown": config.rejection_threshold is not None}
    is_there["prediction_set"] = config.set_thresholds is not None
    more = [f"{name}_{k}" for k in range(2, top_k + 1) for name in ("class", "score")]
    names = ["image", "class", "score", "cosine", "probability", *more, "unknown", "prediction_set", "error"]
    kinds = {"unknown": pa.bool_(), "prediction": pa.list_(pa.string())}
    kinds |= dict.fromkeys(("score", "cosine", "probability"), pa.float32())
    names = [name for name in names if is_there.get(name, True)]
    return pa.schema([(name, kinds.get(name.split("_")[0], pa.string())) for name in names])


@torch.inference_mode()
def _answers(model: Any, pixels: Tensor, top_k: int) -> list[dict[str, Any]]:
    """Of (M, 3, S, S) images the values of `schema`, and of columns that it may leave out."""
    outputs = [model(**part) for part in parts_of({"pixel_values": pixels.to(model.device)})]
    logits = torch.cat([output.logits for output in outputs]).float()  # (M, K)
    embeddings = torch.cat([output.embeddings for output in outputs])  # (M, D)
    scores, classes = (logits * model.config.calibration_temperature).softmax(-1).topk(top_k)  # (M, k), (M, k)
    own = model.prototypes.to(embeddings.dtype)[classes[:, 0]]  # (M, D)
    told = {"cosine": (embeddings * own).sum(-1).clamp(-1, 1), "probability": logits.softmax(-1).amax(-1)}
    if outputs[0].is_unknown is not None:
        told["unknown"] = torch.cat([output.is_unknown for output in outputs])
    for k, end in enumerate(["", *(f"_{k}" for k in range(2, top_k + 1))]):
        told |= {f"class{end}": classes[:, k], f"score{end}": scores[:, k]}
    rows = zip(*(values.tolist() for values in told.values()))
    names = model.config.id2label
    answers = [{k: names[v] if k.startswith("class") else v for k, v in zip(told, row)} for row in rows]
    if (sets := prediction_sets(logits, model.config)) is not None:
        for answer, order, held in zip(answers, logits.argsort(-1, descending=True).tolist(), sets.tolist()):
            answer["prediction_set"] = [names[c] for c in order if held[c]]
    return answers


def _rows(model: Any, processor: Any, images: Any, options: Any, done: Any = ()) -> Iterator[list[dict[str, Any]]]:
    """The rows in batches, but for those of images that are `done`, by their names."""
    columns, names = schema(model.config, options.top_k).names, [*map(str, range(len(images)))]
    if not isinstance(images, Dataset):
        names = [str(i) if isinstance(i, str | Path) else row for row, i in zip(names, images)]
        images = table_of(images)
    left = [row for row, name in enumerate(names) if name not in done]
    batches = left, options.batch_size, options.num_workers, "predicting"
    for pixels, good, bad in DecodedImages(images, processor).batches(*batches):
        if bad and options.on_bad_image == "error":
            first = f"{names[min(bad)]} cannot be decoded ({reason(bad[min(bad)])})"
            raise DataError(f"--on_bad_image error: {first}. Mend it, or take it out.")
        rows = {row: {"error": reason(error)} for row, error in bad.items()}
        rows |= zip(good, _answers(model, pixels, options.top_k) if good else ())
        yield [{name: ({"image": names[row]} | rows[row]).get(name) for name in columns} for row in sorted(rows)]


def _sort(rows: Path, root: Path, copy: bool) -> None:
    """Link or copy each image into the folder of its class, or unknown, numbered if need be; what is there stays."""
    used: Counter[Path] = Counter()
    with replacing_files(root) as new, rows.open("rb") as lines:
        for row in (row for row in map(json.loads, lines) if row["error"] is None):
            source, unsafe = Path(row["image"]).absolute(), r"[^\w .,()&+-]|^[. ]|[. ]$"
            if "unknown" in row:  # a class of that name is not where unknown images are
                unsafe += "|^u(?=nknown$)"
            name = re.sub(unsafe, lambda found: f"%{ord(found[0]):x}", row["class"])
            target = first = Path(UNKNOWN if row.get("unknown") else name, source.name)
            while os.path.lexists(root / target) or os.path.lexists(new / target):
                if os.path.exists(root / target) and filecmp.cmp(root / target, source):
                    break
                used[first] += 1
                target = first.with_stem(f"{first.stem}_{used[first] + 1}")
            else:
                (new / target).parent.mkdir(parents=True, exist_ok=True)
                if not copy:
                    with suppress(OSError):  # Windows lets few users make links: they get copies
                        os.symlink(source, new / target)
                        continue
                shutil.copy2(source, new / target)
