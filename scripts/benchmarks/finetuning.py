"""`protosphere finetune`, by its defaults, beside scikit-learn's logistic regression on the same features.

    python -m scripts.benchmarks.finetuning outputs/finetuning --model local-dir:path/to/weights \
        --data clothing=path/to/clothing cifar10=path/to/cifar10 digits=outputs/demo/digits

A row for each data set, number of images a class and seed, written as it comes; the same command goes
on. At 64 pixels, with at most 5,000 training and 1,000 other images; both choose by the same validation
images, and are reported on the test images.
"""

import argparse
import json
import warnings
from pathlib import Path
from statistics import fmean, stdev

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.transfer.arguments import FinetuneArguments
from hf_protosphere.transfer.features import features_of
from hf_protosphere.transfer.finetune import finetune

from ..markdown import markdown_table

SHOTS = (5, 20, 100, None)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MODES = ("prototypes", "linear_probe", "head", "layerwise")


def measure(model: str, data: str, shots: int | None, seed: int, folder: Path, budget: str) -> dict[str, float | str]:
    shared = {
        "dataset_name": data, "images_per_class": shots, "seed": seed, "image_size": 64, "num_workers": 0,
        "max_train_samples": 5000, "max_eval_samples": 1000, "horizontal_flip": "digits" not in data,
        "check_images": False,
    }  # fmt: skip
    run = {"output_dir": str(folder), "report_to": ["none"], "pictures": False, "overwrite": True, "nc_every": 0}
    found = finetune(FinetuneArguments(model=model, **shared, **run, time_budget=budget), last=False)
    rows = {row["mode"]: row for row in found["rows"]}
    kept = max(rows.values(), key=lambda row: row["held_out_accuracy"])
    backbone = {"backbone": model, "pretrained": True, "freeze_backbone": True, "feature_views": 1}
    features = features_of(TrainArguments(**shared, **backbone))
    x = {role: split.versions[0].double().numpy() for role, split in features.splits.items()}
    y = {role: split.labels.numpy() for role, split in features.splits.items()}
    tried = []
    for strength in STRENGTHS:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000))
        probe.fit(x["train"], y["train"])
        tried.append((probe.score(x["validation"], y["validation"]), -strength, probe.score(x["test"], y["test"])))
    return {
        **{mode: 100 * row["accuracy"] for mode, row in rows.items()},
        "auto": 100 * kept["accuracy"], "kept": kept["mode"], "LogisticRegression": 100 * max(tried)[2],
        "seconds": sum(row["seconds"] for row in rows.values()),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    header = ["data", "images a class", "LogisticRegression", "auto", "auto - LogisticRegression", *MODES, "kept"]
    lines = [header]
    for data, shots in dict.fromkeys((row["data"], row["shots"]) for row in rows):
        cell = [row for row in rows if (row["data"], row["shots"]) == (data, shots)]
        differences = [row["auto"] - row["LogisticRegression"] for row in cell]
        spread = f" ± {stdev(differences):.1f}" if len(cell) > 1 else ""
        means = [f"{fmean(values):.1f}" if (values := [r[m] for r in cell if m in r]) else "-" for m in MODES]
        kept = ", ".join(row["kept"] for row in cell)
        lines.append([
            data, str(shots or "all"), f"{fmean(row['LogisticRegression'] for row in cell):.1f}",
            f"{fmean(row['auto'] for row in cell):.1f}", f"{fmean(differences):+.1f}{spread}", *means, kept,
        ])  # fmt: skip
    return markdown_table(lines, text_columns=2, remarks=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of rows.jsonl, which is gone on with")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", required=True, help="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time_budget", default="2m")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["data"], row["shots"], row["seed"]) for row in rows}
    for seed in range(asked.seeds):
        for name, data in (pair.split("=", 1) for pair in asked.data):
            for shots in SHOTS:
                if (name, shots, seed) in done:
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    row = measure(asked.model, data, shots, seed, asked.folder / "run", asked.time_budget)
                rows.append({"data": name, "shots": shots, "seed": seed} | row)
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    order = {pair.split("=", 1)[0]: i for i, pair in enumerate(asked.data)}
    rows.sort(key=lambda row: (order[row["data"]], row["shots"] or 10**9, row["seed"]))
    print(table(rows))


if __name__ == "__main__":
    main()
