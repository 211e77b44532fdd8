"""The arguments of a release: which recipes, objectives and seeds, and where to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from hf_protosphere.arguments import fields
from hf_protosphere.arguments.fields import Arguments, Beside, PathName, check, check_known, flag
from hf_protosphere.arguments.parsing import field_names
from hf_protosphere.errors import ArgumentError
from hf_protosphere.training.arguments import TrainArguments

# Arguments of training that a release's overrides cannot change: the row, and its recipe's network.
OF_THE_ROW = ("backbone", "objective", "seed", "output_dir", "overwrite", "resume", "dry_run")


@dataclass(frozen=True, kw_only=True)
class ReleaseArguments(Arguments):
    """A matrix of runs to train and publish. Invalid values raise `ArgumentError` at once.

    What only the file of a release says has no flags:

    Attributes:
        recipes: YAML files for `protosphere train`; NAME-OBJECTIVE.yaml beside NAME.yaml is that objective's.
        objectives, seeds: every recipe is trained with each of them,
        skip: but for names of these patterns.
        overrides: {pattern of names: {argument of `protosphere train`: value}}; the last one wins.
            Names are RECIPE-BACKBONE-OBJECTIVE-seedSEED, patterns as of a shell.
        launch: {pattern of names: options of `accelerate launch`}; without, one plain process.
    """

    recipes: list[PathName] = field(default_factory=list)
    objectives: list[str] = field(default_factory=list)
    seeds: list[fields.Seed] = field(default_factory=lambda: [0])
    skip: list[str] = field(default_factory=list)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    launch: dict[str, str] = field(default_factory=dict)
    output_dir: PathName = flag("Folder for the runs, one folder each.", "outputs/release")
    namespace: str | None = flag("User or organisation on the Hub to publish under; by default whoever is logged in.")
    collection: str | None = flag("Title of a page on the Hub that lists the models.")
    description: Annotated[str, Beside("collection")] | None = flag("Of that page.")
    revision: str | None = flag("Tag the commits with this name, such as v1.0.")
    license: str | None = flag("Of the weights, as the Hub names it, such as apache-2.0.")
    private: bool = flag("Make new repositories and the page private.", False)
    publish: bool = flag("Send finished models to the Hub.", True)
    only: str | None = flag("Train and publish only models with this in their name.")
    dry_run: bool = flag("Print what is there and what would be done; change nothing.", False)

    def __post_init__(self) -> None:
        check(self)
        for name in ("recipes", "objectives", "seeds"):
            values = getattr(self, name)
            if not values or len({*values}) < len(values):
                raise ArgumentError(f"{name} must be a list of different ones, but got {values!r}.")
        fields.check_license(self.license)
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
