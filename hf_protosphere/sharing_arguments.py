"""The arguments of what comes after training: publishing, releasing, exporting."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from .argument_groups import flag
from .arguments import TrainArguments
from .errors import ArgumentError
from .parsing import (
    check_choices,
    check_counts,
    check_known,
    check_license,
    check_range,
    field_names,
)

# Arguments of training that a release's overrides cannot change: the row, and its recipe's network.
OF_THE_ROW = ("backbone", "objective", "seed", "output_dir", "overwrite", "resume", "dry_run")


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
class ExportArguments:
    """What to export, and how. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "export"

    model: str = field(metadata={"help": "Folder or Hub id of a ProtoSphere checkpoint."})
    format: Literal["onnx", "torch_export"] = flag(
        "onnx, for onnxruntime and many others; or torch_export, for torch alone.", "onnx"
    )
    output_dir: str | None = flag(
        "Folder for the exported model and its README; by default one called as the format, in "
        "that of the model."
    )
    dataset_name: str | None = flag(
        "Compare the exported model with the checkpoint on images of this data set; by default on "
        "noise. As for `protosphere evaluate`."
    )
    dataset_config: str | None = flag("Configuration (subset) of the data set.")
    image_column: str | None = flag("Column of images; found by its type when not given.")
    label_column: str | None = flag("Column of labels; found by its type when not given.")
    split: str = flag("Split to take images from.", "test")
    num_images: int = flag("How many of them, balanced by class.", 64)

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "num_images")
        if self.output_dir is None:
            if not Path(self.model).is_dir():
                raise ArgumentError(
                    f"--model {self.model} is no folder here: give --output_dir, for the result."
                )
            self.output_dir = str(Path(self.model) / self.format)
        if Path(self.output_dir).resolve() == Path(self.model).resolve():
            raise ArgumentError(
                f"--output_dir {self.output_dir} is the model's own folder, whose README.md would "
                "be replaced: give another, or leave it out."
            )
        packages = ("onnx", "onnxscript", "onnxruntime") if self.format == "onnx" else ()
        if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
            raise ArgumentError(
                f"--format {self.format} needs what is not installed: pip install "
                f"{' '.join(missing)}."
            )


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


@dataclass(kw_only=True)
class DemoArguments:
    """What page to show, and where. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "demo"

    model: str = field(metadata={"help": "Folder or Hub id of a ProtoSphere checkpoint."})
    unknown_angle: float | None = flag(
        "An image farther than this from every prototype is unknown, in degrees. By default as "
        "far as 95 %% of the held-out images in the checkpoint's snapshot keep within; without a "
        "snapshot, half the angle between two prototypes at neural collapse."
    )
    host: str = flag("Address to listen on; 0.0.0.0 lets other machines in.", "127.0.0.1")
    port: int | None = flag("Port to listen on; by default the first free one from 7860.")
    space: str | None = flag(
        "Show nothing: write the files of a Hub Space that shows this page into this folder."
    )

    def __post_init__(self) -> None:
        check_range(self, "unknown_angle", "(0, 180]")
        check_counts(self, "port")
        check_range(self, "port", "[1, 65535]")
