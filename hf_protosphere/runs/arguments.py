"""The arguments of drawing runs again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..arguments.checks import check_choices, check_range
from ..arguments.fields import flag


@dataclass(frozen=True, kw_only=True)
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
        "Mark where each metric first attains this percentage of its optimum.", 95.0
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "nc_target", "(0, 100]")
