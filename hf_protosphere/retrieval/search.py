"""The command `protosphere search`: the nearest images of an index, or how good they are."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..data.pixels import image_files, open_image
from ..data.sources import folder_labels
from ..errors import ArgumentError
from ..plots.table import format_table
from ..plots.text import say, shorten
from ..runs.files import whole_file, writable_folder
from .arguments import SearchArguments
from .embedding import Embedder
from .image_index import ImageIndex
from .neighbours import retrieval_metrics
from .plots import PicturedImage, plot_neighbours

MOST_PAIRS, FEWEST = 4 * 10**9, 1000  # of a query and an image, minutes; queries


def search(arguments: SearchArguments) -> dict[str, Any]:
    """Find the neighbours of images, or measure retrieval, as `protosphere search` does.

    Raises:
        ArgumentError: no index, a damaged one, one of another model, or one without labels to measure with.
        DataError: images cannot be decoded.
    """
    if arguments.picture is not None:  # before the work
        writable_folder(Path(arguments.picture).parent, "--picture")
    found = ImageIndex.load(arguments.index)
    if arguments.evaluate:
        report = _evaluate(found, arguments)
        say(json.dumps(report, indent=2) if arguments.json else _metrics_table(report))
        return report
    paths, labels, embeddings = _embedded_queries(found, arguments)
    neighbours = found.search(embeddings, arguments.k)
    near = [list(zip(rows, cosines)) for rows, cosines in zip(neighbours.rows.tolist(), neighbours.cosines.tolist())]
    report = {
        str(path): [
            {"image": found.name(row), "label": found.images[row].label, "cosine": cosine} for row, cosine in own
        ]
        for path, own in zip(paths, near)
    }
    say(json.dumps(report, indent=2) if arguments.json else _neighbours_table(report))
    if arguments.picture is not None:
        with whole_file(Path(arguments.picture)) as unfinished:
            _draw(found, paths, labels, near, unfinished)
        if not arguments.json:
            say(arguments.picture)
    return report


def _embedded_queries(found: ImageIndex, arguments: SearchArguments) -> tuple[list[Path], list[str | None], Tensor]:
    """Their files, the classes of those that are known, and (Q, D) embeddings."""
    known: dict[Path, str] = {}
    paths: list[Path] = []
    for query in map(Path, arguments.queries):
        files = image_files(query)
        if arguments.labels_from_folders:
            known |= folder_labels(query if query.is_dir() else query.parent, files, "--queries")
        paths += files
    if not paths:
        raise ArgumentError(f"--queries {' '.join(arguments.queries)}: no images there.")
    embeddings, rows = _embedder(found, arguments).embed_all(paths, **arguments.embedding_options)
    paths = [paths[row] for row in rows]
    if arguments.labels_from_folders:
        return paths, [known[path] for path in paths], embeddings
    root, images = found.origin.folder, found.images.columns
    whole = [path.resolve() for path in paths]
    own = [path.relative_to(root).as_posix() if root and path.is_relative_to(root) else None for path in whole]
    places = pc.index_in(pa.array(own, pa.string()), images["path"])
    return paths, images["label"].take(places).to_pylist(), embeddings


def _embedder(found: ImageIndex, arguments: SearchArguments) -> Embedder:
    embedder = Embedder.load(arguments.model or found.origin.model, found.origin.layer, found.origin.pretrained)
    found.check_model(embedder)
    return embedder


def _evaluate(found: ImageIndex, arguments: SearchArguments) -> dict[str, Any]:
    names = found.images.columns["label"]
    if names.null_count:
        raise ArgumentError(
            f"--evaluate needs labels, and --index {arguments.index} has none: index a data set, "
            "or a folder with --labels_from_folders."
        )
    queries, query_names, of = found.embeddings, names, None
    if arguments.dataset_name is not None:
        asked = ImageIndex.of_dataset(
            arguments.dataset_name, _embedder(found, arguments), split=arguments.split,
            columns=arguments.columns, **arguments.embedding_options,
        )  # fmt: skip
        queries, query_names = asked.embeddings, asked.images.columns["label"]
        of = f"{arguments.dataset_name}, {arguments.split}"
        if not pc.any(pc.is_in(query_names, names)).as_py():
            raise ArgumentError(f"--dataset_name {arguments.dataset_name} and the index have no class in common.")
    numbers = torch.from_dlpack(pa.concat_arrays([query_names, names]).dictionary_encode().indices).long()
    number = arguments.num_queries or max(FEWEST, MOST_PAIRS // len(names))
    metrics = retrieval_metrics(
        queries, numbers[: len(queries)], found.embeddings, numbers[-len(names) :],
        ks=arguments.recall_at, leave_one_out=of is None, num_queries=number,
    )  # fmt: skip
    return {"index": arguments.index, "num_images": len(found), "queries": of, **metrics}


def _metrics_table(report: dict[str, Any]) -> str:
    images = f"{report['num_queries']:,} queries among {report['num_images']:,} images"
    titles = {name: name.replace("recall_at_", "recall@") for name in report if "recall_at" in name}
    titles["mean_average_precision"] = "mean average precision"
    titles["mean_average_precision_at_r"] = "mean average precision at R"
    rows = [[title, f"{report[name]:.2%}"] for name, title in titles.items()]
    table = format_table([[images, "value"], *rows])
    if left_out := report["num_without_match"]:
        table += f"\n({left_out:,} queries left out: no other image has their class)"
    return table


def _neighbours_table(report: dict[str, Any]) -> str:
    labelled = any(near["label"] is not None for found in report.values() for near in found)
    tables = []
    for query, found in report.items():
        rows = [[query, "label", "cosine"]]
        rows += [[n["image"], n["label"] or "", f"{n['cosine']:.4f}"] for n in found]
        tables.append(format_table(rows if labelled else [row[::2] for row in rows], 1 + labelled))
    return "\n\n".join(tables)


def _draw(
    found: ImageIndex, paths: list[Path], labels: list[str | None], near: list[list[tuple[int, float]]], picture: Path
) -> None:
    rows = []
    for path, label, neighbours in zip(paths, labels, near):
        shown = []
        for row, cosine in neighbours:
            own = found.images[row].label
            known = own is not None and label is not None
            caption = f"{cosine:.3f}" if own is None else f"{shorten(own, 20)}  {cosine:.3f}"
            shown.append(PicturedImage(found.image(row), caption, own == label if known else None))
        rows.append((PicturedImage(open_image(path), label or path.name), shown))
    plot_neighbours(rows, picture)
