"""How well `protosphere inspect` finds wrong labels and near-duplicates that were put there, beside cleanlab.

    python -m scripts.benchmarks.label_errors --model path/to/backbone \
        --datasets path/to/clothing path/to/cifar10 --images 5000 --image_size 128

Five of a hundred labels are moved to another class, drawn evenly; one of a hundred images is there twice: recompressed
(JPEG, quality 60), mirrored or cropped by 5 %, in turn. Features and finished rows are kept in --folder: the same
command goes on. Confident learning needs `pip install cleanlab` (AGPL: a peer to measure with, no dependency).
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss
from torch import Tensor

from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.configuration_protosphere import build_image_processor
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.labels import labels_of
from hf_protosphere.data.pixels import read, undecoded
from hf_protosphere.inspection import scores
from hf_protosphere.inspection.arguments import InspectArguments
from hf_protosphere.retrieval.embedding import Embedder

from ..markdown import markdown_table

KINDS = ("recompressed", "mirrored", "cropped")
STRENGTHS = (1e-3, 3e-3, 1e-2)  # C of the logistic regression; the likeliest out of fold is taken


def doubled(image: Image.Image, kind: str) -> Image.Image:
    if kind == "mirrored":
        return ImageOps.mirror(image)
    if kind == "recompressed":
        image.save(file := io.BytesIO(), "JPEG", quality=60)
        return Image.open(file)
    x, y = (max(1, round(side * 0.025)) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


def loaded(name: str, limit: int) -> Dataset:
    """All splits of a data set as one; of a larger one some of the training images."""
    images = load_image_dataset(name, validation_fraction=0, check_images=False)
    whole = concatenate_datasets([*images.splits.values()])
    if len(whole) <= limit:
        return whole
    drawn = np.random.default_rng(0).permutation(len(images.splits["train"]))[:limit]
    return images.splits["train"].select(np.sort(drawn))


def features_of(name: str, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Of all images, and of three times a hundredth of them doubled in each of the ways."""
    path = arguments.folder / f"{Path(name).name}.npz"
    if not path.exists():
        size = {"image_size": arguments.image_size} if Path(name).name == "cifar10" else {}
        model = ProtoSphereForImageClassification.from_backbone(
            arguments.model, projection="none", prototypes="class_means", **size
        )
        embedder = Embedder(arguments.model, model.base_model.eval(), build_image_processor(model.config), "")
        images = loaded(name, arguments.images)
        features, _ = embedder.embed_all(images, batch_size=64, num_workers=0)
        rows, raw = (
            np.random.default_rng(1).permutation(len(images))[: 3 * round(len(images) / 100)],
            undecoded(images),
        )
        copies = [[embedder([doubled(read(raw[int(row)]["image"]), kind)])[0] for row in rows] for kind in KINDS]
        copies = np.stack([torch.stack(of_kind).numpy() for of_kind in copies])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, features=features.numpy(), copies=copies, rows=rows, labels=labels_of(images))
    return dict(np.load(path))


def logistic(features: Tensor, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(N, K) probabilities out of fold, of standardised features."""
    best = None
    for strength in STRENGTHS:
        found = np.zeros((len(labels), labels.max() + 1))
        for own in range(fold.max() + 1):
            known = features[fold != own].numpy()
            mean, deviation = known.mean(0), known.std(0) + 1e-9
            classifier = LogisticRegression(C=strength, max_iter=500).fit(
                (known - mean) / deviation, labels[fold != own]
            )
            found[fold == own] = classifier.predict_proba((features[fold == own].numpy() - mean) / deviation)
        if best is None or log_loss(labels, found) < log_loss(labels, best):
            best = found
    return best


def row_of(known: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    drawn, images = np.random.default_rng(seed), len(known["labels"])
    chosen = drawn.permutation(len(known["rows"]))[: len(known["rows"]) // 3]
    kinds, originals = np.arange(len(chosen)) % 3, known["rows"][chosen]
    features = F.normalize(
        torch.from_numpy(np.concatenate([known["features"], known["copies"][kinds, chosen]])), dim=1
    )
    labels = np.concatenate([known["labels"], known["labels"][originals]])
    number, wrong = labels.max() + 1, np.zeros(len(labels), bool)
    wrong[drawn.permutation(len(labels))[: round(0.05 * len(labels))]] = True
    labels[wrong] = (labels[wrong] + drawn.integers(1, number, wrong.sum())) % number

    defaults = InspectArguments(dataset_name="none")
    found = scores.neighbours_of(scores.whitened(features), scores.VOTERS)
    firsts = scores.near_duplicates(found, defaults.near_duplicate)
    near, copies = found.cosines[:, 0].numpy(), np.arange(images, len(labels))
    # A pair is found by its second image, or by its first one, whose nearest other it is.
    pairs = {tuple(sorted(pair)): value for *pair, value in zip(range(len(labels)), found.rows[:, 0].tolist(), near)}
    true = {*zip(originals.tolist(), copies.tolist())}
    is_true = np.array([pair in true for pair in pairs])
    row = {
        "images": len(labels),
        "wrong": int(wrong.sum()),
        "doubled": len(copies),
        "duplicates: average precision": average_precision_score(is_true, [*pairs.values()])
        * is_true.sum()
        / len(true),
        "duplicates: listed": int((firsts.numpy() != np.arange(len(labels))).sum()),
        "duplicates: found of all": float((firsts.numpy()[copies] == firsts.numpy()[originals]).mean()),
    }
    fold, given = scores.folds_of(torch.from_numpy(labels), firsts, seed), torch.from_numpy(labels)
    means = scores.class_mean_shares(features, given, int(number), fold)
    votes = scores.neighbour_shares(found, given, int(number), firsts)
    ours, suggested = scores.label_scores(means, votes, given)
    listed = ((suggested >= 0) & (ours >= defaults.wrong_label)).numpy()
    row |= {
        "ours": average_precision_score(wrong, ours),
        "ours, listed: precision": float(wrong[listed].mean()),
        "ours, listed: recall": float(listed[wrong].mean()),
        "class means alone": average_precision_score(wrong, 1 - means[range(len(given)), given]),
        "neighbours alone": average_precision_score(wrong, 1 - votes[range(len(given)), given]),
    }
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    for what, shares in (("logistic", logistic(features, labels, fold.numpy())), ("class means", means.numpy())):
        quality = get_label_quality_scores(labels, shares, method="self_confidence")
        issues = find_label_issues(labels, shares, n_jobs=1)
        row[f"cleanlab on {what}: self-confidence"] = average_precision_score(wrong, -quality)
        row[f"cleanlab on {what}: issues first"] = average_precision_score(wrong, 2 * issues - quality)
        row[f"cleanlab on {what}, issues: precision"] = float(wrong[issues].mean())
        row[f"cleanlab on {what}, issues: recall"] = float(issues[wrong].mean())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--images", type=int, default=5000, help="Of a larger data set so many training images.")
    parser.add_argument("--image_size", type=int, default=128, help="Of CIFAR-10; else the backbone's own.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("outputs/label_errors"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns: dict[str, list[dict[str, float]]] = {}
    for name in arguments.datasets:
        rows, known = arguments.folder / f"{Path(name).name}.jsonl", features_of(name, arguments)
        done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
        for seed in range(len(done), arguments.seeds):
            done.append(row_of(known, seed))
            with rows.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(done[-1], flush=True)
        columns[Path(name).name] = done
    cells = [["", *columns]]
    for what in next(iter(columns.values()))[0]:
        values = [np.array([row[what] for row in rows]) for rows in columns.values()]
        whole = all((own == own.round()).all() and own.max() > 1 for own in values)
        cells.append(
            [what, *(f"{v.mean():.0f}" if whole else f"{100 * v.mean():.1f} ± {100 * v.std():.1f}" for v in values)]
        )
    print(markdown_table(cells))


if __name__ == "__main__":
    main()
