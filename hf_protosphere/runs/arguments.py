"""The arguments of drawing runs again."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..arguments.fields import Arguments, PathName, check, flag, required
from ..errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class PlotArguments(Arguments):
    """What to draw again, from finished files. Invalid values raise `ArgumentError` at once."""

    runs: list[PathName] = required(
        "Folders of runs. Of one run every picture; of several, neural collapse over their training in one picture."
    )
    output_dir: PathName | None = flag("Folder for the pictures; by default the first run's.")
    format: Literal["png", "svg", "pdf"] = flag("Of the pictures.", "png")
    classes: list[str] | None = flag("Classes on the sphere, at most ten; by default those nearest to another.")
    nc_target: Annotated[float, "(0, 100]"] = flag(
        "Mark where each metric first attains this percentage of its optimum.", 95.0
    )

    def __post_init__(self) -> None:
        check(self)
        if self.classes and len(self.runs) > 1:
            raise ArgumentError("--classes are on the sphere, which is drawn of one run only.")
