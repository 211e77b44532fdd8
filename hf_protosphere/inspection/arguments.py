"""The arguments of `protosphere inspect`: which data, seen by which model."""

from dataclasses import dataclass
from typing import Annotated

from ..arguments.fields import Arguments, Beside, Count, CountOrZero, PathName, check, flag
from ..data.arguments import SourceArguments


@dataclass(frozen=True, kw_only=True)
class InspectArguments(SourceArguments, Arguments):
    """What to inspect, and how. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "inspection"

    splits: list[str] | None = flag("Splits to look at; by default all.")
    model: PathName | None = flag(
        "Also find near-duplicates, outliers and likely wrong labels, by the features of a ProtoSphere, transformers "
        "or timm model (folder or Hub id); best of one that was not trained on these labels."
    )
    pretrained: Annotated[PathName, Beside("model")] | None = flag("Your weights for it, a backbone: file or folder.")
    near_duplicate: Annotated[float, "(0, 1]", Beside("model")] = flag(
        "Cosine of whitened features from which two images are near-duplicates.", 0.65
    )
    wrong_label: Annotated[float, "[0, 1]", Beside("model")] = flag(
        "Score from which a label is likely wrong, where neighbours and class means agree on another class.", 0.9
    )
    output_dir: PathName = flag("Folder for the tables, the report and the sheet of suspects.", "outputs/inspect")
    worst: Annotated[Count, "[1, 100]"] = flag("Suspects of each kind in the report and on the sheet.", 12)
    batch_size: Annotated[Count, Beside("model")] = flag("Images in a step.", 64)
    num_workers: Annotated[CountOrZero, Beside("model")] = flag("Processes that load images.", 2)
    overwrite: bool = flag("Replace the tables that are in the folder, with what was corrected in them.", False)
    json: bool = flag("Print the report as JSON instead of tables.", False)

    def __post_init__(self) -> None:
        check(self)
