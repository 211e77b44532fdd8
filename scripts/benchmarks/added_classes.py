"""Six classes, then one more at a time up to ten, from 1, 5, 20 or 100 images each: what it gains and costs.

    python -m scripts.benchmarks.added_classes outputs/added_classes --model local-dir:path/to/weights \
        --data clothing=path/to/clothing cifar10=path/to/cifar10

Heads of six classes, drawn by chance, on features of a frozen network at 64 pixels, by the library's engine; then
`add_classes`, or what it is compared with. Rows are written as they come; the same command goes on. Margins, and rates
of NC-FSCIL's way, are chosen on validation images; the tables are of test images: accuracies in per cent at ten
classes, means over classes, old · new · their harmonic mean ± its standard deviation over draws · all ten.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, harmonic_mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_protosphere.data.dataset import ImageDataset
from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.inference.features import on_features
from hf_protosphere.objectives import dot_regression_loss
from hf_protosphere.prototypes import turned
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.transfer.arguments import HEAD_PROJECTION
from hf_protosphere.transfer.features import features_of, train_head

from ..markdown import markdown_table

OLD, ALL, SHOTS = 6, 10, (1, 5, 20, 100)
RATES, STEPS = (0.01, 0.03, 0.1), 200  # of SGD, by NC-FSCIL's way
HEADS = {
    "learned": {"objective": "ntce", "imprint": True},
    "reserved": {"objective": "ntce", "reserve_classes": ALL - OLD},
    "nc-fscil": {"objective": "dot_regression", "reserve_classes": ALL - OLD},
}
METHODS = {  # and the heads that they need
    "class means of features": "", "nearest neighbour of features": "",
    "learned, mean": "learned", "learned, mean and margin": "learned",
    "reserved, mean": "reserved", "reserved, spare vertex": "reserved", "reserved, by leave-one-out": "reserved",
    **{f"NC-FSCIL's way, rate {rate:g}": "nc-fscil" for rate in RATES},
}  # fmt: skip
Split = tuple[Tensor, Tensor]  # features (N, F), labels (N,)


def arguments_of(model: str, data: str, **options: object) -> TrainArguments:
    return TrainArguments(
        dataset_name=data, backbone=model, pretrained=True, freeze_backbone=True, feature_views=2, image_size=64,
        num_workers=0, max_train_samples=5000, max_eval_samples=2000, check_images=False, nc_every=0,
        evaluate_every=5, epochs=40, learning_rate=0.1, **HEAD_PROJECTION, **options,
    )  # fmt: skip


def in_order(split: FeatureSplit, order: list[int]) -> FeatureSplit:
    """The images of the classes that the order has, by their places in it."""
    place = {label: i for i, label in enumerate(order)}
    part = split.select([row for row, label in enumerate(split.labels.tolist()) if label in place])
    return FeatureSplit(part.versions, torch.tensor([place[label] for label in part.labels.tolist()]))


def scores(predicted: Tensor, labels: Tensor, classes: int) -> list[float]:
    """Accuracy of the old classes, of the new ones, and of all, each class as much as another."""
    right = [(predicted[labels == c] == c).double().mean().item() for c in range(classes)]
    return [100 * fmean(part) for part in (right[:OLD], right[OLD:], right)]


def by_features(method: str, base: Split, new: list[Tensor], asked: Tensor) -> Iterator[Tensor]:
    """Predictions with one class more each time; `asked` are features (N, F), as all of unit norm."""
    x, y = base
    for count, features in enumerate(new, OLD):
        x, y = torch.cat([x, features]), F.pad(y, (0, len(features)), value=count)
        if "means" in method:
            means = torch.stack([x[y == c].mean(0) for c in range(count + 1)])
            yield (F.normalize(asked - means.mean(0), dim=1) @ F.normalize(means - means.mean(0), dim=1).T).argmax(1)
        else:
            yield y[(asked @ x.T).argmax(1)]


def by_prototypes(
    method: str, model: torch.nn.Module, known: Split, new: list[Tensor], asked: Tensor
) -> Iterator[Tensor]:
    """As `protosphere add-class` does, with a snapshot of the images `known`."""
    model = copy.deepcopy(model).eval()
    pictures, labels = known
    embeddings = model(pictures[..., None, None]).embeddings
    center = torch.stack([embeddings[labels == c].mean(0) for c in range(OLD)]).mean(0)
    for count, features in enumerate(new, OLD):
        chosen = (embeddings, labels) if "margin" in method or "leave" in method else None
        spare = model.head.spare
        means = model.add_classes({f"new {count}": features[..., None, None]}, center=center, known=chosen)
        if "spare vertex" in method:
            rows = model.head.weight[:-1].double()
            model.head.weight[-1] = turned(spare[0].double(), rows, model.head.weight[-1:].double())[0]
        embeddings, labels = torch.cat([embeddings, means]), F.pad(labels, (0, 1), value=count)
        yield model(asked[..., None, None]).logits.argmax(1)


def by_projection(
    rate: float, model: torch.nn.Module, base: Split, new: list[Tensor], asked: Tensor
) -> Iterator[Tensor]:
    """NC-FSCIL (Yang et al. 2023, arXiv 2302.03004): a new class gets the next vertex of a fixed simplex, and the
    projection is trained by dot regression, on its images and the mean feature of every class before; here each class
    as much as another, or 100 images would drown the means."""
    model = copy.deepcopy(model).eval()  # batch norms keep their statistics
    vertices = torch.cat([model.head.weight, model.head.spare])
    x, y = base
    memory = torch.stack([x[y == c].mean(0) for c in range(OLD)])
    projection = model.protosphere.projection
    optimizer = torch.optim.SGD(projection.parameters(), rate, momentum=0.9)
    for count, features in enumerate(new, OLD):
        x = torch.cat([memory, features])
        y = F.pad(torch.arange(count), (0, len(features)), value=count)
        weight = F.pad(torch.ones(count), (0, 1), value=1 / len(features))
        for _ in range(STEPS):
            with torch.enable_grad():
                dot_regression_loss(projection(x), vertices[: count + 1], y, weight=weight).backward()
            optimizer.step()
            optimizer.zero_grad()
        memory = torch.cat([memory, features.mean(0, keepdim=True)])
        yield (F.normalize(projection(asked), dim=1) @ vertices[: count + 1].T).argmax(1)


@torch.no_grad()
def measure(
    method: str, model: torch.nn.Module | None, splits: dict[str, Split], shots: int, seed: int
) -> dict[str, list]:
    """{"validation", "test"}: `scores` after each class more."""
    generator, (x, y) = torch.Generator().manual_seed(seed), splits["train"]
    rows = [(y == c).nonzero()[:, 0] for c in range(OLD, ALL)]
    new = [x[of_class[torch.randperm(len(of_class), generator=generator)[:shots]]] for of_class in rows]
    base = x[y < OLD], y[y < OLD]
    held_out, labels = splits["validation"]
    asked = torch.cat([held_out, splits["test"][0]])
    if model is None:
        units = (F.normalize(base[0], dim=1), base[1]), [F.normalize(features, dim=1) for features in new]
        found = by_features(method, *units, F.normalize(asked, dim=1))
    elif "rate" in method:
        found = by_projection(float(method.split()[-1]), model, base, new, asked)
    else:
        found = by_prototypes(method, model, (held_out[labels < OLD], labels[labels < OLD]), new, asked)
    measured = {"validation": [], "test": []}
    for count, predicted in enumerate(found, OLD + 1):
        for role, of_role in zip(measured, predicted.split([len(labels), len(asked) - len(labels)])):
            measured[role].append(scores(of_role, splits[role][1], count))
    return measured


def tables(rows: list[dict]) -> str:
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        cells.setdefault((row["data"], row["method"], row["shots"]), []).append(row)
    for (data, method, shots), of_rate in list(cells.items()):  # the best on validation images of all draws
        if "rate" in method:
            key, best = (data, "NC-FSCIL's way", shots), lambda cell: fmean(row["validation"][-1][2] for row in cell)
            cells[key] = max(cells.get(key, of_rate), of_rate, key=best)
            del cells[data, method, shots]
    parts = []
    for data in dict.fromkeys(key[0] for key in cells):
        methods = dict.fromkeys(method for name, method, _ in cells if name == data)
        shown = [[f"{data}, at ten classes", *(f"{n} image{'s' * (n > 1)} a class" for n in SHOTS)]]
        steps = [[f"{data}, 20 images: all classes so far", *(f"{c} classes" for c in range(OLD + 1, ALL + 1))]]
        for method in methods:
            shown.append([method])
            for shots in SHOTS:
                last = [row["test"][-1] for row in cells[data, method, shots]]
                harmonic = [harmonic_mean(each[:2]) for each in last]
                old, new, every = (fmean(column) for column in zip(*last))
                spread = f" ± {stdev(harmonic):.1f}" if len(last) > 1 else ""
                shown[-1].append(f"{old:.1f} · {new:.1f} · {fmean(harmonic):.1f}{spread} · {every:.1f}")
            of_20 = [[step[2] for step in row["test"]] for row in cells[data, method, 20]]
            steps.append([method, *(f"{fmean(column):.1f}" for column in zip(*of_20))])
        parts += [markdown_table(shown), markdown_table(steps)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of rows.jsonl, which is gone on with")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", required=True, help="NAME=FOLDER")
    parser.add_argument("--draws", type=int, default=3, help="of the six classes, and of the images of the others")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["data"], row["draw"], row["shots"], row["method"]) for row in rows}
    pairs = [pair.split("=", 1) for pair in asked.data]
    for draw in range(asked.draws):
        for name, data in pairs:
            left = [(s, m) for s in SHOTS for m in METHODS if (name, draw, s, m) not in done]
            if not left:
                continue
            features = features_of(arguments_of(asked.model, data))
            order = torch.randperm(ALL, generator=torch.Generator().manual_seed(draw)).tolist()
            names = [features.label_names[label] for label in order]
            parts = {role: in_order(split, order) for role, split in features.splits.items()}
            splits = {role: (part.versions[0], part.labels) for role, part in parts.items()}
            known = {role: in_order(part, [*range(OLD)]) for role, part in parts.items() if role != "test"}
            models = {
                head: on_features(train_head(
                    arguments_of(asked.model, data, seed=draw, **HEADS[head]), ImageDataset(known, names[:OLD])
                )[0])
                for head in {METHODS[method] for _, method in left} - {""}
            }  # fmt: skip
            for shots, method in left:
                row = {"data": name, "draw": draw, "shots": shots, "method": method}
                rows.append(row | measure(method, models.get(METHODS[method]), splits, shots, draw))
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    order = [name for name, _ in pairs], [*METHODS]
    rows.sort(key=lambda row: (order[0].index(row["data"]), order[1].index(row["method"]), row["shots"], row["draw"]))
    print(tables(rows))


if __name__ == "__main__":
    main()
