"""A network from scratch on all of CIFAR-10: what is trained, and what is measured of it.

`airnet` (1.2 M parameters) on 45,000 training images, 16 epochs of shifted and mirrored ones in
batches of 512; the other 5,000 choose the settings. The run folder of each row stays beside its
figures, and the tasks "uses" and "transfer" ask the models in them what else they are good for. The
task "tail" trains on a long tail, the rarest class with a fiftieth of the images of the most frequent.
"""

from __future__ import annotations

import copy
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from hf_protosphere.arguments.parsing import read_yaml
from hf_protosphere.configuration_protosphere import build_image_processor
from hf_protosphere.data.dataset import ImageDataset, load_split
from hf_protosphere.data.image_cache import FeatureSplit
from hf_protosphere.data.subsets import drawn
from hf_protosphere.inference.features import on_features
from hf_protosphere.modeling_protosphere import ProtoSphereForImageClassification
from hf_protosphere.prototypes import class_means
from hf_protosphere.robustness.measure import corruption_errors
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train
from hf_protosphere.transfer.features import embedded, features_of

from ..measures import classification, of_training, retrieval, unknown
from ..rows import Measured, Row, Work

SEEDS = range(5)
RECIPE = read_yaml(str(Path(__file__).parents[2] / "recipes" / "airnet-cifar10.yaml"), TrainArguments)
# A CPU that knows bfloat16 takes half the time.
HALF = torch.cuda.is_available() or getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16")
CORRUPTED = 200  # test images, each under 15 corruptions of 5 severities
SAMPLE = 5000  # training images, for class means and neighbours
Options = dict[str, Any]


def _options(objective: str, rate: float, decay: float, **more: Any) -> Options:
    return {"objective": objective, "learning_rate": rate, "weight_decay": decay, **more}


_CE: dict[tuple[float, float], Options] = {
    (rate, decay): _options("cross_entropy", rate, decay)
    for rate, decay in ((0.005, 0.3), (0.01, 0.3), (0.02, 0.3), (0.01, 1.0), (0.02, 1.0))
}
PROTOTYPES = {name: _options(name.lower(), 0.01, 0.3) for name in ("NormFace", "NTCE", "NONL")}
METHODS: dict[str, Options] = {
    "CE": _CE[0.02, 0.3],
    "CE, decay 1": _CE[0.02, 1.0],
    **PROTOTYPES,
    "ETF + DR": _options("dot_regression", 0.01, 0.3),
    "SCL + FP": _options("scl", 0.01, 0.3, temperature=0.1, projection="mlp"),
}
SETTINGS: dict[str, Options] = {  # that were tried, with one seed
    **{
        f"CE, rate {rate}, decay {decay}": options
        for (rate, decay), options in _CE.items()
        if options != _CE[0.02, 1.0]  # which has five seeds, as "CE, decay 1"
    },
    "CE, rate 0.01, smoothing 0.1": _CE[0.01, 0.3] | {"label_smoothing": 0.1},
    **PROTOTYPES,
    "NTCE, decay 1": PROTOTYPES["NTCE"] | {"weight_decay": 1.0},
    **{f"{name}, t 0.15": PROTOTYPES[name] | {"temperature": 0.15} for name in PROTOTYPES},
    "ETF + DR": METHODS["ETF + DR"],
    "SCL + FP": METHODS["SCL + FP"],
    "CE, widths 64, 256, 256": _CE[0.01, 0.3] | {"backbone_kwargs": {"widths": [64, 256, 256]}},
    "CE, ResNet-18": _options("cross_entropy", 0.4, 5e-4, optimizer="sgd", backbone="resnet18", small_images=True),
}
SEVERAL = ("CE", "CE, decay 1", *PROTOTYPES)  # of which there are more than two seeds
TAIL = {"imbalance": "exp", "imbalance_factor": 0.02, "batch_size": 128, "epochs": 8, "evaluate_every": 8}
PRIORS: dict[str, dict[str, Options]] = {  # how each loss can be told of the classes' shares
    "CE": {}, "CE, logit adjustment": {"logit_adjustment": 1.0},
    "NormFace": {}, "NormFace, logit adjustment": {"logit_adjustment": 1.0},
    "NTCE": {}, "NTCE, balanced": {"class_weights": "balanced"},
    "NONL": {}, "NONL, balanced": {"class_weights": "balanced"},
}  # fmt: skip
TAILED = {name: METHODS[name.split(",")[0]] | prior for name, prior in PRIORS.items()}
SHOTS, DRAWS = (1, 5, 20), 10  # of each class, drawn so often


def rows(data: list[str], seeds: range = SEEDS) -> list[Row]:
    settings = [Row("settings", "cifar10", method, 0) for method in SETTINGS]
    classify = [
        Row("classify", "cifar10", method, seed)
        for seed in seeds
        for method in METHODS
        if seed < 2 or method in SEVERAL
    ]
    asked = [(task, method) for task in ("uses", "transfer") for method in (*SEVERAL, "SCL + FP")]
    tail = [Row("tail", "cifar10", method, 0) for method in TAILED]
    uses = [Row(task, "cifar10", method, 0) for task, method in asked]
    return settings + classify + (uses if "clothing" in data else []) + tail


def measure(row: Row, work: Work) -> Measured:
    if row.task in ("uses", "transfer"):
        return (_uses if row.task == "uses" else _transfer)(row, work)
    folder = row.path(work.folder).with_suffix("")
    options = {"settings": SETTINGS, "tail": TAILED}.get(row.task, METHODS)[row.method]
    options = options | (TAIL if row.task == "tail" else {})
    arguments = {
        "dataset_name": work.data[row.data], "output_dir": str(folder), "seed": row.seed,
        "resume": folder.exists(), "num_workers": 0, "check_images": False, "nc_every": 0,
        "evaluate_every": RECIPE["epochs"], "nc_train_samples": SAMPLE, "report_to": ["none"],
        "pictures": False, "mixed_precision": "bf16" if HALF else "no",
    }  # fmt: skip
    arguments = RECIPE | arguments | options
    results = train(TrainArguments(**arguments), last=False)
    return of_training(results, folder) | {"class_accuracies": results["test"]["class_accuracies"]}


def _uses(row: Row, work: Work) -> Measured:
    """What the trained network is good for beside its accuracy; it is trained where it is not."""
    folder, model = _trained(row, work)
    features = {name: _features(folder, work.data[name], max_train_samples=SAMPLE) for name in ("cifar10", "clothing")}
    known = features["cifar10"]
    far = features["clothing"].splits["test"]
    measured = classification(model, known) | retrieval(model, known.splits["test"], "known")
    measured["far"] = unknown(model, known, far.versions[0])
    measured |= retrieval(model, far, "unseen")
    measured["transfer_accuracy"] = _linear_probe(features["clothing"])
    split = load_split(work.data["cifar10"], "test").shuffle(seed=0).select(range(CORRUPTED))
    processor = build_image_processor(model.config)
    errors = corruption_errors(model, split, processor, Accelerator(), num_workers=0, severities=[1, 2, 3, 4, 5])
    return measured | {
        "clean_error": 100 * errors["clean_error"],
        "corruption_error": 100 * errors["mean_corruption_error"],
        "errors": errors["errors"],
    }


def _trained(row: Row, work: Work) -> tuple[Path, ProtoSphereForImageClassification]:
    trained = Row("classify", row.data, row.method, row.seed)
    folder = trained.path(work.folder).with_suffix("")
    if not (folder / "results.json").exists():
        measure(trained, work)
    return folder, ProtoSphereForImageClassification.from_pretrained(folder).eval()


def _transfer(row: Row, work: Work) -> Measured:
    """What its frozen encoder is worth for other images, by few of each class; and ten classes of clothing beside its
    own ten, one after the other."""
    folder, model = _trained(row, work)
    names = [name for name in ("clothing", "digits") if name in work.data]
    features = {name: _features(folder, work.data[name], max_train_samples=SAMPLE) for name in ("cifar10", *names)}
    measured: Measured = {}
    for name in names:
        measured[f"{name}_probe"] = _linear_probe(features[name])
        for space in ("embeddings", "features"):
            x = {role: _space(model, split, space) for role, split in features[name].splits.items()}
            for shots in SHOTS:
                found = [_few_shots(x, features[name], shots, seed) for seed in range(DRAWS)]
                measured[f"{name}_{space}_{shots}"] = 100 * fmean(found)
    if model.config.has_prototypes:
        for shots in SHOTS:
            found = [_added(model, features["cifar10"], features["clothing"], shots, seed) for seed in range(DRAWS)]
            measured |= {f"{k}_{shots}": 100 * fmean(of[k] for of in found) for k in found[0]}
    return measured


def _space(model: ProtoSphereForImageClassification, split: FeatureSplit, space: str) -> Tensor:
    return embedded(model, split)[0] if space == "embeddings" else F.normalize(split.versions[0], dim=1)


def _few_shots(x: dict[str, Tensor], images: ImageDataset, shots: int, seed: int) -> float:
    """Accuracy on the test images by the means of so many training images of each class."""
    labels = {role: split.labels for role, split in images.splits.items()}
    rows = drawn(labels["train"].numpy(), [shots] * images.num_labels, seed)
    means = class_means(x["train"][rows] - x["train"][rows].mean(0), labels["train"][rows], images.num_labels)
    return ((x["test"] @ means.T).argmax(1) == labels["test"]).double().mean().item()


def _added(
    model: ProtoSphereForImageClassification, known: ImageDataset, new: ImageDataset, shots: int, seed: int
) -> dict[str, float]:
    """Mean accuracies over the old classes and the new ones, and their harmonic mean."""
    model, train, old = copy.deepcopy(on_features(model)).eval(), new.splits["train"], known.num_labels
    rows = drawn(train.labels.numpy(), [shots] * new.num_labels, seed)
    x, y = train.versions[0][rows, :, None, None], train.labels[rows]
    center = class_means(embedded(model, known.splits["train"])[0], known.splits["train"].labels).mean(0)
    model.add_classes({f"new {name}": x[y == c] for c, name in enumerate(new.label_names)}, center=center)
    accuracies = {}
    for name, split, first in (("known", known.splits["test"], 0), ("new", new.splits["test"], old)):
        right = embedded(model, split)[1].argmax(1) == split.labels + first
        accuracies[name] = fmean(right[split.labels == c].double().mean().item() for c in split.labels.unique())
    return accuracies | {"both": harmonic_mean(accuracies.values())}


def _features(folder: Path, data: str, **more: Any) -> ImageDataset:
    """Of the network's backbone, which is at the head of whatever is trained on them."""
    arguments = TrainArguments(
        dataset_name=data, finetune_from=str(folder), freeze_backbone=True, feature_views=1,
        horizontal_flip=False, num_workers=0, check_images=False, **more,
    )  # fmt: skip
    return features_of(arguments)


def _linear_probe(features: ImageDataset) -> float:
    """Test accuracy (%) of logistic regression, its strength of L2 by validation."""
    x, y = {}, {}
    for role, split in features.splits.items():
        x[role], y[role] = split.versions[0].double().numpy(), split.labels.numpy()
    scores = []
    for strength in (0.001, 0.01, 0.1, 1.0):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        probe.fit(x["train"], y["train"])
        scores.append([probe.score(x[role], y[role]) for role in ("validation", "test")])
    return 100 * max(scores)[1]
