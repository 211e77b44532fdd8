"""The arguments of a transfer suite: which models, on which data sets, in which modes."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_protosphere.arguments.fields import Arguments, PathName, check, check_known, decide, expanded, flag
from hf_protosphere.arguments.parsing import field_names
from hf_protosphere.errors import ArgumentError, UserError
from hf_protosphere.transfer.arguments import MODES, FinetuneArguments

# Arguments of `protosphere finetune` that the suite gives itself.
OF_THE_SUITE = (
    "model", "mode", "compare", "shots", "trials", "dataset_name", "output_dir", "resume", "overwrite", "dry_run",
)  # fmt: skip
# What a folder of images has in its own way; a folder of tables is taken for a copy of the Hub's.
OF_THE_LAYOUT = ("image_column", "label_column", "train_split", "validation_split", "test_split")
OF_THE_HUB = ("dataset_config", "dataset_revision")
METRIC_TITLES = {"accuracy": "accuracy", "mean_class_accuracy": "mean per class", "mean_average_precision": "mAP"}


@dataclass(frozen=True, kw_only=True)
class TransferSuiteArguments(Arguments):
    """Models and data sets to transfer them to. Invalid values raise `ArgumentError` at once.

    `models` then begins with the baseline, and `datasets` are those of `data`, where it names them.
    What only the file of a suite says has no flags:

    Attributes:
        datasets: {name: {"dataset_name": Hub id or folder, "metric": "accuracy" (the default), "mean_class_accuracy"
            or, of several labels an image, "mean_average_precision", any argument of `protosphere finetune`: value}}.
        arguments: {any argument of `protosphere finetune`: value}, for all data sets; those of a data set win.
    """

    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    models: list[PathName] | None = flag("What to transfer, as for `protosphere finetune --model`.")
    baseline: PathName | None = flag("What the others are compared with; by default the first.")
    modes: list[str] = flag(f"How to transfer: some of {', '.join(MODES)}.", ["linear_probe"])
    data: list[str] | None = flag(
        "NAME=FOLDER: take this data set of the file from a local folder. One of Parquet or Arrow "
        "files has the columns and splits that the file names; one of images has its own."
    )
    only: list[str] | None = flag("Names of the data sets to do now.")
    output_dir: PathName = flag("Folder of the table and each DATASET/MODEL.", "outputs/transfer")
    dry_run: bool = flag("Print what is done and what is to do; do nothing.", False)

    def __post_init__(self) -> None:
        check(self)
        baseline = [] if self.baseline is None else [self.baseline]
        decide(self, models=list(dict.fromkeys([*baseline, *(self.models or [])])))
        if not self.models:
            raise ArgumentError("--models: give one or several, such as --models path/to/run.")
        if not self.modes:
            raise ArgumentError(f"--modes: give one or several of {', '.join(MODES)}.")
        check_known(self.modes, MODES, f"--modes are some of {', '.join(MODES)}, but there is")
        self._check_file()
        check_known(self.only or [], list(self.datasets), "--only: the file has no data set")
        decide(self, datasets=self.datasets | dict(map(self._replaced, self.data or [])))

    def _check_file(self) -> None:
        settable = [name for name in field_names(FinetuneArguments) if name not in OF_THE_SUITE]
        check_known(self.arguments, settable, "arguments: a suite cannot set")
        if not self.datasets:
            raise ArgumentError(
                "a suite needs a file with data sets, such as `protosphere transfer-suite "
                "scripts/transfer/paper.yaml --models path/to/run`."
            )
        known = {*settable, "dataset_name", "metric"} - {"mixed_precision"}  # that is one for all
        for name, values in self.datasets.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ArgumentError(
                    f"datasets: {name!r} is to be a folder too: give a name of letters, digits, '_', '.' and '-'."
                )
            if not isinstance(values, dict) or "dataset_name" not in values:
                raise ArgumentError(f"datasets, {name}: must be such as {{dataset_name: beans}}, but got {values!r}.")
            check_known(values, known, f"datasets, {name}: a suite cannot set")
            check_known([self.metric(name)], METRIC_TITLES, f"datasets, {name}: there is no metric")

    def _replaced(self, text: str) -> tuple[str, dict[str, Any]]:
        # Here, since a command's --help shall not wait for libraries.
        from hf_protosphere.data.pixels import walk_images
        from hf_protosphere.data.sources import outnumber_tables

        name, equals, folder = text.partition("=")
        if not equals:
            raise ArgumentError(f"--data takes NAME=FOLDER, but got {text!r}.")
        check_known([name], list(self.datasets), f"--data {text}: the file has no data set")
        path = Path(expanded(folder))
        if not path.is_dir():
            raise ArgumentError(f"--data {text}: there is no such folder.")
        dropped = OF_THE_HUB + OF_THE_LAYOUT if outnumber_tables(*walk_images(path)) else OF_THE_HUB
        kept = {key: value for key, value in self.datasets[name].items() if key not in dropped}
        return name, kept | {"dataset_name": str(path)}

    def metric(self, dataset: str) -> str:
        """What is reported of it, "accuracy" or "mean_class_accuracy"."""
        return self.datasets[dataset].get("metric", "accuracy")

    def finetuning(self, dataset: str, model: str) -> FinetuneArguments:
        """Of the transfers of one model to one data set; an `ArgumentError` names the data set."""
        values = self.arguments | self.datasets[dataset]
        if values.pop("metric", None) == "mean_average_precision":
            values["several_labels"] = True
        # The whole name: the last parts of several may be the same, such as "run".
        folder = re.sub(r"[^A-Za-z0-9_.]+", "-", model).strip("-.")[-100:]
        values |= {
            "model": model, "compare": ",".join(self.modes), "resume": True,
            "output_dir": str(Path(self.output_dir) / dataset / folder),
        }  # fmt: skip
        try:
            return FinetuneArguments(**values)
        except UserError as error:
            raise ArgumentError(f"datasets, {dataset}: {error}") from error
