"""The arguments of measuring a checkpoint: a group for each thing that can be asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .argument_groups import DataArguments, flag
from .parsing import check_choices, check_counts


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
