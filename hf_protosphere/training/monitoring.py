"""Neural collapse while a model trains: when it is measured, what that costs, who arrives when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ..evaluation.classifier_metrics import evaluate_model
from ..metrics.monitoring import COLLAPSE, Stopwatch
from ..modeling_protosphere import ProtoSphereForImageClassification

START = "validation_class_means_accuracy"  # of epoch 0


@dataclass
class CollapseMonitor:
    """Evaluates on the validation split, now and then with neural collapse, of a sample of training images too."""

    model: ProtoSphereForImageClassification
    validation: DataLoader
    train_sample: DataLoader | None
    accelerator: Accelerator
    stopwatch: Stopwatch = field(default_factory=Stopwatch, init=False)

    def validate(self, neural_collapse: bool) -> dict[str, Any]:
        """A record: "validation_..." as `evaluate_model` reports, and "train_neural_collapse"."""
        record: dict[str, Any] = {}
        evaluate = partial(evaluate_model, self.model, accelerator=self.accelerator)
        if neural_collapse and self.train_sample is not None:
            with self.stopwatch:
                sample = evaluate(self.train_sample, description="training sample")
            record["train" + COLLAPSE] = sample["neural_collapse"]
        report = evaluate(
            self.validation, neural_collapse=neural_collapse, description="validation", stopwatch=self.stopwatch
        )
        del report["class_accuracies"]  # a list in every record, and a curve for every class
        return record | {f"validation_{name}": value for name, value in report.items()}

    def start(self, means: Tensor) -> dict[str, Any]:
        """The record of epoch 0: what class means (K, D) are worth as a classifier."""
        report = evaluate_model(self.model, self.validation, self.accelerator, means=means, neural_collapse=False)
        return {"step": 0, "epoch": 0, START: report["class_means_accuracy"]}


def is_due(every: int, count: int) -> bool:
    """After so many steps or epochs, of which every so many-th counts; 0 is for never."""
    return every > 0 and count % every == 0


def score(record: Mapping[str, Any], metric: str) -> float:
    """What epochs are compared by, the higher the better: of neural collapse the percentage of the optimum."""
    if metric in ("accuracy", "mean_class_accuracy"):
        return record[f"validation_{metric}"]
    metric = "overall" if metric == "neural_collapse" else metric
    # Where all class means coincide it is not defined, and nothing of it is attained.
    return record["validation" + COLLAPSE]["attained"].get(metric, 0.0)


def epoch_line(record: dict[str, Any]) -> str:
    shown = {
        "loss {:.3f}": record.get("train_loss"),
        "temperature {:.3g}": record.get("temperature"),
        "validation accuracy by class means, before training {:.2%}": record.get(START),
        "validation accuracy {:.2%}": record.get("validation_accuracy"),
        "neural collapse {:.1f} %": record.get("validation" + COLLAPSE, {}).get("attained", {}).get("overall"),
    }
    words = [form.format(value) for form, value in shown.items() if value is not None]
    return "  ".join([f"epoch {record['epoch']:>5.4g}", *words])
