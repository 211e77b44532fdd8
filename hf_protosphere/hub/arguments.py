"""The arguments of what comes after training: publishing, releasing, exporting."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..arguments.fields import Arguments, Beside, Count, PathName, check, decide, flag, required
from ..arguments.parsing import read_text
from ..data.arguments import LabelledImages
from ..errors import ArgumentError

# What git takes for a tag, and nothing for another branch or address.
TAG = re.compile(r"(?!(main|refs|heads)(/|$))(?!.*(\.\.|(\.lock|\.)(/|$)))\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PublishArguments(Arguments):
    """What to publish, and where. Invalid values raise `ArgumentError` at once."""

    folder: PathName = required("Folder of a finished run.")
    repo_id: str = required("Where: 'user/name' on the Hub.")
    private: bool = flag("Make a new repository private.", False)
    revision: str | None = flag("Tag the commit with this name, such as v1.0.")
    create_pr: bool = flag("Open a pull request instead of a commit on main.", False)
    license: str | None = flag("Of the weights, as the Hub names it (apache-2.0). Without one the card says so.")
    notes: PathName | None = flag("File of Markdown to be printed in the card.")
    compare_with: list[PathName] | None = flag(
        "Folders of finished runs of the same recipe with other objectives and seeds, for a table "
        "in the card: it links to repositories that are called like the folders."
    )
    commit_message: str = flag("What the commit is called.", "Publish by hf_protosphere")

    def __post_init__(self) -> None:
        check(self)
        if self.repo_id.count("/") != 1 or not all(self.repo_id.split("/")):
            raise ArgumentError(f"--repo_id must be 'user/name', but got {self.repo_id!r}.")
        if self.revision is not None and not TAG.fullmatch(self.revision):
            raise ArgumentError(f"--revision must be such as v1.0, not main or refs/..., but got {self.revision!r}.")
        if self.create_pr and self.revision is not None:
            raise ArgumentError(f"--revision {self.revision} tags main, and --create_pr leaves it alone: give one.")
        self.card_options  # noqa: B018  (notes that cannot be read are an error now, not later)

    @property
    def card_options(self) -> dict[str, Any]:
        """What `hub.card.render_card` takes beside the folder."""
        names = ("repo_id", "license", "compare_with")
        notes = None if self.notes is None else read_text(self.notes, "--notes")
        return {name: getattr(self, name) for name in names} | {"notes": notes}


@dataclass(frozen=True, kw_only=True)
class ExportArguments(LabelledImages, Arguments):
    """What to export, and how. Invalid values raise `ArgumentError` at once."""

    model: PathName = required("Folder or Hub id of a ProtoSphere checkpoint.")
    format: Literal["onnx", "torch_export"] = flag(
        "onnx, for onnxruntime and many others; or torch_export, for torch alone.", "onnx"
    )
    output_dir: PathName | None = flag(
        "Folder for the exported model and its README; by default one called as the format, in that of the model."
    )
    num_images: Annotated[Count, Beside("dataset_name")] = flag(
        "Images, balanced by class, to compare it with the checkpoint on; without a data set noise.", 64
    )

    def __post_init__(self) -> None:
        check(self)
        if self.output_dir is None:
            if not Path(self.model).is_dir():
                raise ArgumentError(f"--model {self.model} is no folder here: give --output_dir, for the result.")
            decide(self, output_dir=str(Path(self.model) / self.format))
        if Path(self.output_dir).resolve() == Path(self.model).resolve():
            raise ArgumentError(f"--output_dir {self.output_dir} is the model's own, with a README.md: give another.")
        packages = ("onnx", "onnxscript", "onnxruntime") if self.format == "onnx" else ()
        if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
            raise ArgumentError(f"--format {self.format} needs what is missing: pip install {' '.join(missing)}.")


@dataclass(frozen=True, kw_only=True)
class DemoArguments(Arguments):
    """What page to show, and where. Invalid values raise `ArgumentError` at once."""

    model: PathName = required("Folder or Hub id of a ProtoSphere checkpoint.")
    unknown_angle: Annotated[float, "(0, 180]"] | None = flag(
        "An image farther than this from every prototype is unknown, in degrees. By default as far "
        "as 95 %% of the held-out images in the checkpoint's snapshot keep within; without a "
        "snapshot, half the angle between two prototypes at neural collapse."
    )
    host: str = flag("Address to listen on; 0.0.0.0 lets other machines in.", "127.0.0.1")
    port: Annotated[Count, "[1, 65535]"] | None = flag("Port to listen on; by default the first free one from 7860.")
    space: PathName | None = flag("Show nothing: write the files of a Hub Space with this page into this folder.")

    def __post_init__(self) -> None:
        check(self)
        for name in ("host", "port"):
            if self.space is not None and name in self.given:
                raise ArgumentError(f"--{name} is of a page here, and --space shows none.")
