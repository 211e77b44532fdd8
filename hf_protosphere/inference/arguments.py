"""The arguments of `protosphere predict`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..arguments.fields import Arguments, Beside, Count, PathName, check, flag, required
from ..data.arguments import Images
from ..errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class PredictArguments(Images, Arguments):
    """What to label, and where to. Invalid values raise `ArgumentError` at once."""

    _argument_group_name = "predictions"

    model: PathName = required("Folder or Hub id of a ProtoSphere checkpoint.")
    images: list[PathName] | None = flag(
        "Images, folders of them at any depth, patterns such as 'photos/**/*.jpg', text files "
        "(.txt) of paths, one a line, or - for such lines on standard input; or --dataset_name."
    )
    output: PathName = flag("The table to write: .csv, .jsonl or .parquet.", "predictions.csv")
    top_k: Count = flag("So many classes of each image, with their scores.", 1)
    on_bad_image: Literal["row", "error"] = flag("Of a broken image: a row that says why, or stop and name it.", "row")
    resume: bool = flag("Keep the rows of a table, finished or interrupted: only new images are predicted.", False)
    sort_into: PathName | None = flag("Also link each image into a folder of its class in this folder.")
    copy: Annotated[bool, Beside("sort_into")] = flag("Copy the images, not link them.", False)
    batch_size: Count = flag("Images in a step.", 64)
    num_workers: Annotated[int, 0] = flag("Processes that load images.", 2)

    def __post_init__(self) -> None:
        check(self)
        if bool(self.images) == bool(self.dataset_name):
            raise ArgumentError("give images by their paths, or --dataset_name: one of the two.")
        if self.dataset_name and self.sort_into:
            raise ArgumentError("--sort_into is for images that are files: leave it out beside --dataset_name.")
        if not self.output.endswith((".csv", ".jsonl", ".parquet")):
            raise ArgumentError(f"--output {self.output} must end in .csv, .jsonl or .parquet.")
