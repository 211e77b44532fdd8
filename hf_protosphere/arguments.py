"""The arguments of each job: one dataclass for flags, YAML files and Python, checked at once."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from .argument_groups import (
    DataArguments,
    ModelArguments,
    OptimizationArguments,
    RunArguments,
    SplitArguments,
    StreamingArguments,
    flag,
)
from .errors import ArgumentError
from .parsing import (
    check_choices,
    check_counts,
    check_known,
    check_license,
    check_positive,
    check_range,
    field_names,
)

TRACKERS = ("tensorboard", "trackio", "wandb")
# Arguments of training that its overrides cannot change: the row, and its recipe's network, say.
OF_THE_ROW = ("backbone", "objective", "seed", "output_dir", "overwrite", "resume", "dry_run")
# What the best epoch can be chosen by, beside any figure of neural collapse.
BEST_METRICS = ("accuracy", "mean_class_accuracy", "neural_collapse")


@dataclass(kw_only=True)
class TrainArguments(
    RunArguments,
    OptimizationArguments,
    ModelArguments,
    StreamingArguments,
    SplitArguments,
    DataArguments,
):
    """Everything that defines a training run. Invalid values raise `ArgumentError` at once.

    Example:
        >>> arguments = TrainArguments(dataset_name="beans", objective="ntce", epochs=10)
        >>> arguments.views
        1
    """

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "temperature", "learning_rate", "max_grad_norm")
        check_counts(
            self, "epochs", "batch_size", "eval_batch_size", "evaluate_every", "checkpoint_every",
            "image_size", "projection_dim", "views", "gradient_accumulation_steps",
            "max_train_samples", "max_eval_samples", "probe_epochs", "keep_checkpoints",
            "classes_per_batch", "early_stopping_patience", "shuffle_buffer", "num_train_images",
        )  # fmt: skip
        check_counts(
            self, "nc_every", "nc_every_steps", "nc_train_samples", "num_workers", at_least=0
        )
        check_range(self, "nc_target", "(0, 100]")
        check_range(self, "validation_fraction", "[0, 1)")
        check_range(self, "imbalance_factor", "(0, 1]")
        check_range(self, "label_smoothing", "[0, 1)")
        check_range(self, "mixup", "[0, 10]")
        check_range(self, "ema_decay", "(0, 1)")
        self._check_objective()
        self._check_sampling()
        self._check_run()
        self.backbone_options  # noqa: B018  (malformed JSON is an error now, not later)

    def _check_objective(self) -> None:
        if self.views is None:
            self.views = 2 if self.objective == "scl" else 1
        if self.objective == "scl" and self.views < 2:
            raise ArgumentError(
                f"--objective scl contrasts views of the same image: --views must be 2 or more, "
                f"but got {self.views}."
            )
        for name in ("label_smoothing", "mixup"):
            if getattr(self, name) and self.objective != "cross_entropy":
                raise ArgumentError(
                    f"--{name} {getattr(self, name)} is for --objective cross_entropy, but got "
                    f"{self.objective}, whose loss needs one class for every image: leave it out."
                )
        if self.mixup and self.batch_size % 2:
            raise ArgumentError(
                f"--mixup mixes pairs: --batch_size must be even, but got {self.batch_size}."
            )

    def _check_sampling(self) -> None:
        classes = self.classes_per_batch
        if classes is not None and self.batch_size % classes:
            raise ArgumentError(
                f"--batch_size must be a multiple of --classes_per_batch {classes}, but got "
                f"{self.batch_size}: {classes * max(1, self.batch_size // classes)}, say."
            )
        if not self.streaming:
            return
        asked = {
            "cache_images": bool(self.cache_images),
            "imbalance": self.imbalance is not None,
            "classes_per_batch": classes is not None,
            "max_train_samples": self.max_train_samples is not None,
            "nc_train_samples": bool(self.nc_train_samples),
        }
        if impossible := [f"--{name}" for name, given in asked.items() if given]:
            raise ArgumentError(
                f"--streaming sees the training images only as they come, and {impossible[0]} "
                "needs to know all of them: leave out one of the two."
            )

    def _check_run(self) -> None:
        if self.warmup_epochs < 0 or self.warmup_epochs >= self.epochs:
            self.warmup_epochs = max(0.0, min(self.warmup_epochs, self.epochs / 2))
        if self.resume and self.overwrite:
            raise ArgumentError("--resume keeps the earlier run and --overwrite deletes it: one.")
        if self.resume_from is not None and self.pretrained:
            raise ArgumentError(
                f"--resume_from {self.resume_from} and --pretrained both give the first weights: "
                "leave out one of the two."
            )
        if self.eval_batch_size is None:
            self.eval_batch_size = 2 * self.batch_size
        if self.best_metric not in BEST_METRICS:
            from .metrics import METRICS  # not for `--help`, which answers without torch

            names = [*BEST_METRICS, *(metric.name for metric in METRICS)]
            if self.best_metric not in names:
                raise ArgumentError(
                    f"--best_metric must be one of {', '.join(names)}, but got "
                    f"{self.best_metric!r}."
                )
        self.report_to = _trackers(self.report_to)

    @property
    def backbone_options(self) -> dict[str, Any]:
        if isinstance(self.backbone_kwargs, dict):  # from Python or YAML
            return self.backbone_kwargs
        try:
            options = json.loads(self.backbone_kwargs or "{}")
        except json.JSONDecodeError as error:
            raise ArgumentError(
                f"--backbone_kwargs must be JSON, such as '{{\"patch_size\": 4}}', but got "
                f"{self.backbone_kwargs!r} ({error})."
            ) from error
        if not isinstance(options, dict):
            raise ArgumentError(f"--backbone_kwargs must be a JSON object, but got {options!r}.")
        return options


@dataclass(kw_only=True)
class _EvaluationArguments:
    _argument_group_name = "evaluation"

    model: str = field(metadata={"help": "Folder or Hub id of a ProtoSphere checkpoint."})
    split: str = flag("Split to evaluate on.", "test")
    class_means: bool = flag(
        "Also classify by the class means of --train_split: one pass over it.", True
    )
    batch_size: int = flag("Images per process and step.", 256)
    output: str | None = flag("Write the report as JSON here.")
    pictures: str | None = flag(
        "Draw the sphere, the cosines between classes and the margins into this folder."
    )
    json: bool = flag("Print the report as JSON instead of a table.", False)


@dataclass(kw_only=True)
class EvaluateArguments(_EvaluationArguments, DataArguments):
    """What to evaluate, on what. Invalid values raise `ArgumentError` at once."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "batch_size", "max_train_samples", "max_eval_samples")
        check_counts(self, "num_workers", at_least=0)


@dataclass(kw_only=True)
class PlotArguments:
    """What to draw again, from finished files. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "plot"

    runs: list[str] = field(
        metadata={
            "help": "Folders of runs. Of one run every picture; of several, neural collapse over "
            "their training in one picture."
        }
    )
    output_dir: str | None = flag("Folder for the pictures; by default the first run's.")
    format: Literal["png", "svg", "pdf"] = flag("Of the pictures.", "png")
    classes: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the classes on the sphere, at most ten; by default those nearest to "
            "another."
        },
    )
    nc_target: float = flag(
        "Mark where each figure first attains this percentage of its optimum.", 95.0
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "nc_target", "(0, 100]")


@dataclass(kw_only=True)
class PublishArguments:
    """What to publish, and where. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "publish"

    folder: str = field(metadata={"help": "Folder of a finished run."})
    repo_id: str = field(metadata={"help": "Where: 'user/name' on the Hub."})
    private: bool = flag("Make a new repository private.", False)
    revision: str | None = flag("Tag the commit with this name, such as v1.0.")
    create_pr: bool = flag("Open a pull request instead of a commit on main.", False)
    license: str | None = flag(
        "Of the weights, as the Hub names it, such as apache-2.0. Without one the card says so."
    )
    notes: str | None = flag("File of Markdown to be printed in the card.")
    compare_with: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders of finished runs of the same recipe with other objectives and seeds, "
            "for a table in the card: it links to repositories that are called like the folders."
        },
    )
    benchmark_task: str | None = flag(
        "Enter the accuracy in the leaderboard of the data set under this task."
    )
    commit_message: str = flag("What the commit is called.", "Publish by hf_protosphere")

    def __post_init__(self) -> None:
        if self.repo_id.count("/") != 1 or not all(self.repo_id.split("/")):
            raise ArgumentError(f"--repo_id must be 'user/name', but got {self.repo_id!r}.")
        if self.create_pr and self.revision is not None:
            raise ArgumentError(
                f"--revision {self.revision} tags a commit on main, and --create_pr makes none: "
                "leave out one of the two."
            )
        if self.notes is not None and not Path(self.notes).is_file():
            raise ArgumentError(f"--notes {self.notes}: there is no such file.")


@dataclass(kw_only=True)
class _ReleaseMatrix:
    """What only the file of a release says: it has no flags.

    Attributes:
        recipes: YAML files for `protosphere train`; beside NAME.yaml, NAME-OBJECTIVE.yaml is taken
            for that objective if it is there.
        objectives, seeds: every recipe is trained with each of them.
        overrides: {pattern of names: {argument of `protosphere train`: value}}; the last one wins.
            Names are RECIPE-BACKBONE-OBJECTIVE-seedSEED, patterns as of a shell.
        launch: {pattern of names: options of `accelerate launch`}; without, one plain process.
    """

    recipes: list[str] = field(default_factory=list)
    objectives: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    launch: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class _ReleaseOptions:
    _argument_group_name = "release"

    output_dir: str = flag("Folder for the runs, one folder each.", "outputs/release")
    namespace: str | None = flag(
        "User or organisation on the Hub to publish under; by default whoever is logged in."
    )
    collection: str | None = flag("Title of a page on the Hub that lists the models.")
    description: str | None = flag("Of that page.")
    revision: str | None = flag("Tag the commits with this name, such as v1.0.")
    license: str | None = flag("Of the weights, as the Hub names it, such as apache-2.0.")
    private: bool = flag("Make new repositories and the page private.", False)
    publish: bool = flag("Send finished models to the Hub.", True)
    only: str | None = flag("Train and publish only models with this in their name.")
    dry_run: bool = flag("Print what is there and what would be done; change nothing.", False)


@dataclass(kw_only=True)
class ReleaseArguments(_ReleaseOptions, _ReleaseMatrix):
    """A matrix of runs to train and publish. Invalid values raise `ArgumentError` at once."""

    def __post_init__(self) -> None:
        check_license(self.license)
        for name, kind in (("recipes", str), ("objectives", str), ("seeds", int)):
            values = getattr(self, name)
            of_kind = isinstance(values, list) and all(isinstance(v, kind) for v in values)
            if not of_kind or not values or len({*values}) < len(values):
                what = {str: "different names", int: "different whole numbers"}[kind]
                raise ArgumentError(f"{name} must be a list of {what}, but got {values!r}.")
        for name, kind, example in (
            ("overrides", dict, '"*-nonl-*": {epochs: 10}'),
            ("launch", str, '"*": --num_processes 8'),
        ):
            values = getattr(self, name)
            if not isinstance(values, dict) or not all(
                isinstance(v, kind) for v in values.values()
            ):
                raise ArgumentError(f"{name} must be such as {example}, but got {values!r}.")
        known = get_args(get_type_hints(TrainArguments)["objective"])
        check_known(self.objectives, known, f"objectives are {', '.join(known)}, but there is")
        settable = [name for name in field_names(TrainArguments) if name not in OF_THE_ROW]
        for pattern, values in self.overrides.items():
            check_known(values, settable, f"overrides, {pattern!r}: a release cannot set")
        for recipe in self.recipes:
            if not Path(recipe).is_file():
                there = sorted(map(str, Path(recipe).parent.glob("*.yaml")))
                check_known([recipe], there, "recipes: there is no file")
                raise ArgumentError(f"recipes: {recipe} is not a file.")


def _trackers(names: list[str] | str | None) -> list[str]:
    """Those that were asked for, all of them installed.

    Raises:
        ArgumentError: an unknown or missing one, now rather than after the data was loaded.
    """
    if names is None:
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    names = [names] if isinstance(names, str) else list(names)
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in TRACKERS:
            raise ArgumentError(
                f"--report_to takes {', '.join(TRACKERS)} or none, but got {name!r}."
            )
        if importlib.util.find_spec(name) is None:
            raise ArgumentError(f"--report_to {name} is not installed: pip install {name}.")
    return names
