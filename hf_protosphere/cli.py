"""The command `protosphere`: one sub-command for each job. The scripts call it too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from typing import Any

from .errors import TrainingInterrupted, UserError

LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # of this process among those of its launcher
PATIENCE = 15  # seconds, more than the first process takes to end


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 for what the user can mend, 128 + signal for an interruption."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), end="")
        raise SystemExit(0 if argv else 2)
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise SystemExit(f"{_usage()}\nprotosphere: error: there is no command {command!r}.")
    try:
        COMMANDS[command](rest)
    except TrainingInterrupted as interruption:  # of all processes together
        if LOCAL_RANK == 0:
            print(f"protosphere {command}: {interruption}", file=sys.stderr)
        raise SystemExit(128 + interruption.signal) from None
    except UserError as error:
        if LOCAL_RANK > 0:
            # Mostly all processes fail alike. The first one says why, and the launcher ends the
            # others; one that is alone with its error lives on and says it itself.
            time.sleep(PATIENCE)
        print(f"protosphere {command}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@dataclass(frozen=True)
class Command:
    """A job and its arguments, by name: imported when the command runs, so that `--help` answers
    without loading torch's distributed parts, data sets and so on."""

    name: str
    arguments: str  # module.Class
    job: str  # module.function
    summary: str
    description: str
    positional: tuple[str, ...] = ()  # what the first arguments are, without a name; the last of
    # these takes all that are left

    def __call__(self, argv: Sequence[str]) -> Any:
        from .parsing import parse_arguments

        argv = list(argv)
        for flag in self.positional:
            count = len(list(takewhile(lambda word: not word.startswith("-"), argv)))
            if count == 0:
                break
            taken = count if flag == self.positional[-1] else 1
            argv = [*argv[taken:], flag, *argv[:taken]]
        prog = f"protosphere {self.name}"
        arguments = parse_arguments(_imported(self.arguments), argv, prog, self.description)
        return _imported(self.job)(arguments)


def _imported(path: str) -> Any:
    module, name = path.split(".")
    return getattr(import_module(f".{module}", __package__), name)


_COMMANDS = (
    Command(
        "train",
        "arguments.TrainArguments",
        "planning.train_or_plan",
        "train a classifier on a data set of the Hub or a local folder",
        "Train an image classifier whose classes are prototypes on the unit sphere.",
    ),
    Command(
        "evaluate",
        "evaluation_arguments.EvaluateArguments",
        "assessment.evaluate",
        "accuracy and neural collapse of a checkpoint on a data set",
        "Accuracy, by prototypes and by class means, and neural collapse of a checkpoint.",
    ),
    Command(
        "finetune",
        "transfer_arguments.FinetuneArguments",
        "transfer.finetune",
        "transfer a checkpoint, or a timm or transformers backbone, to other classes",
        "Transfer a trained network to another data set: by training it in one of several ways, or "
        "without, by probes, nearest neighbours or the class means; compare them, few-shot too.",
    ),
    Command(
        "transfer-suite",
        "transfer_suite_arguments.TransferSuiteArguments",
        "transfer_suite.transfer_suite",
        "transfer several models to several data sets: one table, over a baseline",
        "Transfer several models to several data sets, as `protosphere finetune` does, into one "
        "table with means and relative improvements over a baseline. The YAML file says which. The "
        "same command goes on after an interruption, and tries again what could not be loaded.",
        positional=("--config",),
    ),
    Command(
        "add-class",
        "transfer_arguments.AddClassArguments",
        "class_addition.add_class",
        "teach a checkpoint a new class from a few images, without training",
        "New classes for a checkpoint without training: their prototypes are the mean embeddings "
        "of a few images. What it says of the classes that it knows stays the same, to the bit.",
        positional=("--folder", "--name", "--images"),
    ),
    Command(
        "calibrate",
        "evaluation_arguments.CalibrateArguments",
        "calibration.calibrate",
        'scores that can be trusted, and a threshold below which an image is "unknown"',
        "Choose a checkpoint's threshold for unknown images and the temperature of its scores on "
        "images that it was not trained on, and save both in its configuration.",
        positional=("--model",),
    ),
    Command(
        "publish",
        "sharing_arguments.PublishArguments",
        "hub.publish",
        "send a finished run to the Hub, with a card",
        "Publish a finished run on the Hub: weights, configuration, code, card, metrics and "
        "pictures in one commit, then a tag. Log in by `hf auth login` first.",
        positional=("--folder",),
    ),
    Command(
        "release",
        "sharing_arguments.ReleaseArguments",
        "release.release",
        "train and publish a whole matrix of recipes, objectives and seeds",
        "Train what is missing of a matrix of recipes, objectives and seeds, and publish it with "
        "cards that compare the models, and a page that lists them. The YAML file says which. "
        "The same command goes on after an interruption.",
        positional=("--config",),
    ),
    Command(
        "plot",
        "arguments.PlotArguments",
        "pictures.plot",
        "draw the pictures of one run again, or compare several",
        "Draw a run's pictures again, from its files alone: curves.png, neural_collapse.png and, "
        "once training is over, cosines.png, margins.png and sphere.png.",
        positional=("--runs",),
    ),
    Command(
        "export",
        "sharing_arguments.ExportArguments",
        "export.export",
        "write a checkpoint as ONNX or as a torch.export program",
        "A checkpoint as ONNX or torch.export program, compared with the checkpoint.",
        positional=("--model",),
    ),
    Command(
        "index",
        "retrieval_arguments.IndexArguments",
        "image_search.index",
        "embed a folder of images, or a data set, to search in it",
        "Embed all images of a folder, at any depth, or of a data set, and write an index of them. "
        "Again, it embeds what is new in the folder and drops what is gone.",
        positional=("--images",),
    ),
    Command(
        "search",
        "retrieval_arguments.SearchArguments",
        "image_search.search",
        "find the images of an index that are nearest to yours",
        "Find the images of an index that are nearest to yours, by cosine, or measure how well "
        "images find their own class.",
        positional=("--index", "--queries"),
    ),
    Command(
        "demo",
        "sharing_arguments.DemoArguments",
        "demo_page.demo",
        "a page in the browser: upload an image, see where it falls on the sphere",
        "A page in the browser, by Gradio: upload an image, see its scores, its angles to the "
        'prototypes, where it falls on the sphere, and "unknown" when it is far from all.',
        positional=("--model",),
    ),
)
COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {c.name: c for c in _COMMANDS}


def _usage() -> str:
    commands = "\n".join(f"  {c.name:<14} {c.summary}" for c in _COMMANDS)
    return f"""usage: protosphere COMMAND [--help] [arguments]

Image classifiers with class prototypes on the hypersphere.

commands:
{commands}

`protosphere COMMAND --help` explains every argument. For several processes or machines:
`accelerate launch scripts/train.py [arguments]`, or scripts/evaluate.py, with the same arguments.
"""


if __name__ == "__main__":
    main()
