"""A network from scratch on all of CIFAR-10: what is trained, and what is measured of it.

`airnet` (1.2 M parameters) on 45,000 training images, 16 epochs of shifted and mirrored ones in
batches of 512; the other 5,000 choose the settings. The run folder of each row stays beside its
figures, and the task "uses" asks the models in them what else they are good for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_protosphere.configuration_protosphere import build_image_processor
from hf_protosphere.data.dataset import ImageDataset, load_split
from hf_protosphere.modeling_protosphere import ProtoSphereForImageClassification
from hf_protosphere.robustness.measure import corruption_errors
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train
from hf_protosphere.transfer.features import features_of

from ..measures import classification, of_training, retrieval, unknown
from ..rows import Measured, Row, Work
from . import network  # noqa: F401  (timm learns of airnet)

SEEDS = range(5)
RECIPE = {
    "backbone": "airnet", "batch_size": 512, "epochs": 16, "warmup_epochs": 2, "optimizer": "muon",
    "augmentation": "crop",
}  # fmt: skip
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


def rows(data: list[str], seeds: range = SEEDS) -> list[Row]:
    settings = [Row("settings", "cifar10", method, 0) for method in SETTINGS]
    classify = [
        Row("classify", "cifar10", method, seed)
        for seed in seeds
        for method in METHODS
        if seed < 2 or method in SEVERAL
    ]
    uses = [Row("uses", "cifar10", method, 0) for method in (*SEVERAL, "SCL + FP")]
    return settings + classify + (uses if "clothing" in data else [])


def measure(row: Row, work: Work) -> Measured:
    if row.task == "uses":
        return _uses(row, work)
    folder = row.path(work.folder).with_suffix("")
    options = (SETTINGS if row.task == "settings" else METHODS)[row.method]
    arguments = {
        "dataset_name": work.data[row.data], "output_dir": str(folder), "seed": row.seed,
        "resume": folder.exists(), "num_workers": 0, "check_images": False, "nc_every": 0,
        "evaluate_every": RECIPE["epochs"], "nc_train_samples": SAMPLE, "report_to": ["none"],
        "pictures": False, "mixed_precision": "bf16" if torch.cuda.is_available() else "no",
    }  # fmt: skip
    arguments = RECIPE | arguments | options
    results = train(TrainArguments(**arguments), last=False)
    return of_training(results, folder)


def _uses(row: Row, work: Work) -> Measured:
    """What the trained network is good for beside its accuracy; it is trained where it is not."""
    trained = Row("classify", row.data, row.method, row.seed)
    folder = trained.path(work.folder).with_suffix("")
    if not (folder / "results.json").exists():
        measure(trained, work)
    model = ProtoSphereForImageClassification.from_pretrained(folder)
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
