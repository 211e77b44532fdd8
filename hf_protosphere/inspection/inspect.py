"""The command `protosphere inspect`: what is in a data set, and what of it is better looked at before training."""

import json
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from datasets import Dataset

from ..arguments.fields import check_known
from ..data.arguments import BatchOptions
from ..data.dataset import ImageDataset, load_image_dataset, survey
from ..data.labels import labels_of
from ..data.pixels import undecoded
from ..data.sources import load_splits
from ..data.subsets import corrected
from ..errors import ArgumentError, DataError
from ..inference.features import embedded, with_features
from ..plots.text import say
from ..retrieval.embedding import Embedder
from ..runs.files import replacing_files, write_json
from ..runs.folders import held_folder
from ..runs.processes import own_accelerate_state
from . import scores
from .arguments import InspectArguments
from .report import draw_suspects, format_report, report_of

FILES = TABLE, LEFT_OUT, REPORT, SHEET = "images.csv", "exclude.csv", "inspection.json", "suspects.png"
COLUMNS = [
    "image", "split", "file", "label", "suggested_label", "label_score", "outlier_score", "duplicate_of", "similarity",
    "width", "height", "mode", "error", "content",
]  # fmt: skip


@own_accelerate_state()
def inspect(arguments: InspectArguments) -> dict[str, Any]:
    """Look at all images of a data set, as `protosphere inspect` does; the report, as inspection.json holds it.

    Raises:
        ArgumentError: no such model, or a folder that cannot be written, or holds tables that may have been corrected.
        DataError: no such data set or split, or labels that cannot be read.
    """
    with held_folder(arguments.output_dir, "--output_dir", FILES) as folder:
        if (folder / TABLE).exists() and not arguments.overwrite:
            raise ArgumentError(f"--output_dir {folder} holds {TABLE}, corrected or not: --overwrite, or another one.")
        embedder = arguments.model and Embedder.load(arguments.model, "features", arguments.pretrained)
        images, table = surveyed(arguments)
        if embedder is not None:
            add_scores(table, images, embedder, arguments)
        is_bad, is_copy = table["error"] != "", table["first"] != table.index
        table["duplicate_of"] = np.where(is_copy & ~is_bad, table["image"][table["first"]], "")
        report = report_of(table, arguments.worst)
        with replacing_files(folder) as new:
            table.to_csv(new / TABLE, columns=COLUMNS, index=False)
            table[is_bad | is_copy].to_csv(new / LEFT_OUT, columns=COLUMNS, index=False)
            write_json(new / REPORT, report)
            draw_suspects(table, images, arguments.worst, new / SHEET)
    then = f"Look at {SHEET}, and correct the labels in {TABLE}."
    say(json.dumps(report, indent=2) if arguments.json else f"{format_report(table)}\n\n{then}")
    return report


def surveyed(arguments: InspectArguments) -> tuple[Dataset, pd.DataFrame]:
    """All images of the splits, not decoded, and a table of them; "first" in it is the first row of each group of
    duplicates, here of equal files."""
    name, config, revision = arguments.dataset_name, arguments.dataset_config, arguments.dataset_revision
    sizes = (loaded := load_splits(name, config, revision)).num_rows
    check_known(arguments.splits or (), sizes, f"--splits: the data set has {', '.join(sizes)}, but no")
    source = "+".join(arguments.splits or [split for split in sizes if sizes[split]])
    given = {"loaded": loaded, "train_split": source, "roles": ["train"]}
    given |= {"image_column": arguments.image_column, "label_column": arguments.label_column, "validation_fraction": 0}
    images = load_image_dataset(name, check_images=False, need_all_classes=False, **given).splits["train"]
    images, kept = corrected(images, source, sizes, labels=arguments.labels, exclude=arguments.exclude)
    known = {"label": pd.Categorical.from_codes(labels_of(images), images.features["label"].names)}
    known |= {"image": kept, "split": [image.partition("[")[0] for image in kept]} | survey(images, source)
    table = pd.DataFrame(known).reindex(columns=COLUMNS).assign(suggested_label="")
    table["first"] = table.index.to_series().groupby(table["content"]).transform("min")
    return undecoded(images), table


def add_scores(table: pd.DataFrame, images: Dataset, embedder: Embedder, arguments: InspectArguments) -> None:
    """Near-duplicates, outliers and likely wrong labels by the features of a model, into the table."""
    rows = np.flatnonzero(table["error"] == "")
    if len(rows) < 2:
        raise DataError(f"--dataset_name {arguments.dataset_name} has no two images that can be decoded.")
    model, good = embedder.model, ImageDataset({"inspected": images.select(rows)}, [])
    options = BatchOptions(batch_size=arguments.batch_size, num_workers=arguments.num_workers)
    good = with_features(good, model, Accelerator(), options, processor=embedder.processor).splits["inspected"]
    features = embedded(model, good)[0].float().cpu()
    names, labels = images.features["label"].names, torch.from_numpy(labels_of(images)[rows])
    found = scores.neighbours_of(scores.whitened(features), scores.VOTERS)
    firsts = scores.near_duplicates(found, arguments.near_duplicate)
    means = scores.class_mean_shares(features, labels, len(names), scores.folds_of(labels, firsts))
    votes = scores.neighbour_shares(found, labels, len(names), firsts)
    wrong, suggested = scores.label_scores(means, votes, labels)
    suggested = suggested.where(wrong >= arguments.wrong_label, -1)
    table.loc[rows, "first"] = np.minimum(table["first"][rows], np.asarray(rows)[firsts])
    table.loc[rows, "suggested_label"] = np.asarray([*names, ""], dtype=object)[suggested]
    told = {"similarity": found.cosines[:, 0], "label_score": wrong, "outlier_score": scores.outlier_scores(found)}
    table.loc[rows, [*told]] = torch.stack([*told.values()], 1).numpy()
