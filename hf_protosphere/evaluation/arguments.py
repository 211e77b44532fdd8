"""The arguments of measuring a checkpoint: a group for each thing that can be asked of it."""

from dataclasses import dataclass

from ..arguments.fields import Arguments, Count, PathName, check, flag, required
from ..data.arguments import DataArguments
from ..open_set.arguments import OpenSetArguments
from ..robustness.arguments import RobustnessArguments


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(OpenSetArguments, RobustnessArguments, DataArguments, Arguments):
    """What to evaluate, on what. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "evaluation"

    model: PathName = required(
        "Folder or Hub id of a ProtoSphere checkpoint, or of any image classifier of transformers or timm."
    )
    compare: PathName | None = flag(
        "Another model, on the same images: by how much it differs, McNemar's test, and the images on which it does."
    )
    by_layer: bool = flag("Also measure how neural collapse grows with depth: at every layer.", False)
    split: str = flag("Split to evaluate on.", "test")
    class_means: bool = flag("Also classify by the class means of --train_split: one pass over it.", True)
    batch_size: Count = flag("Images per process and step.", 256)
    output: PathName | None = flag("Write the report as JSON here.")
    pictures: PathName | None = flag(
        "Write report.html into this folder, a page that works offline: classes, confusions, the most confident "
        "errors, calibration and geometry; its pictures (PNG) and tables (CSV) beside it."
    )
    json: bool = flag("Print the report as JSON instead of a table.", False)

    def __post_init__(self) -> None:
        check(self)
        self.check_robustness()
