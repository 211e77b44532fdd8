"""The command `protosphere`: one sub-command for each job. The scripts call it too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from .errors import TrainingInterrupted, UserError

LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # of this process among those of its launcher
PATIENCE = 15  # seconds, more than the first process takes to end

USAGE = """usage: protosphere COMMAND [--help] [arguments]

Image classifiers with class prototypes on the hypersphere.

commands:
  train      train a classifier on a data set of the Hub or a local folder
  evaluate   accuracy and neural collapse of a checkpoint on a data set
  publish    send a finished run to the Hub, with a card
  release    train and publish a whole matrix of recipes, objectives and seeds
  plot       draw the pictures of one run again, or compare several
  export     write a checkpoint as ONNX or as a torch.export program
  demo       a page in the browser: upload an image, see where it falls on the sphere

`protosphere COMMAND --help` explains every argument. For several processes or machines:
`accelerate launch scripts/train.py [arguments]`, or scripts/evaluate.py, with the same arguments.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 for what the user can mend, 128 + signal for an interruption."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        raise SystemExit(0 if argv else 2)
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise SystemExit(f"{USAGE}\nprotosphere: error: there is no command {command!r}.")
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


# The jobs are imported by the command that runs them: `--help` answers without loading torch's
# distributed parts, data sets and so on.


def _train(argv: Sequence[str]) -> Any:
    from .arguments import TrainArguments
    from .parsing import parse_arguments

    description = "Train an image classifier whose classes are prototypes on the unit sphere."
    arguments = parse_arguments(TrainArguments, argv, "protosphere train", description)
    if arguments.dry_run:
        from .planning import dry_run

        return dry_run(arguments)
    from .training import train

    return train(arguments)


def _evaluate(argv: Sequence[str]) -> Any:
    from .arguments import EvaluateArguments
    from .parsing import parse_arguments

    description = "Accuracy, by prototypes and by class means, and neural collapse of a checkpoint."
    arguments = parse_arguments(EvaluateArguments, argv, "protosphere evaluate", description)
    from .evaluation import evaluate

    return evaluate(arguments)


def _publish(argv: Sequence[str]) -> Any:
    from .parsing import parse_arguments
    from .sharing_arguments import PublishArguments

    description = (
        "Publish a finished run on the Hub: weights, configuration, code, card, metrics and "
        "pictures in one commit, then a tag. Log in by `hf auth login` first."
    )
    argv = _first_named("--folder", argv)  # `protosphere publish outputs/run`
    arguments = parse_arguments(PublishArguments, argv, "protosphere publish", description)
    from .hub import publish

    return publish(arguments)


def _release(argv: Sequence[str]) -> Any:
    from .parsing import parse_arguments
    from .sharing_arguments import ReleaseArguments

    description = (
        "Train what is missing of a matrix of recipes, objectives and seeds, and publish it with "
        "cards that compare the models, and a page that lists them. The YAML file says which. "
        "The same command goes on after an interruption."
    )
    argv = _first_named("--config", argv)  # `protosphere release RELEASE.yaml`
    arguments = parse_arguments(ReleaseArguments, argv, "protosphere release", description)
    from .release import release

    return release(arguments)


def _plot(argv: Sequence[str]) -> Any:
    from .arguments import PlotArguments
    from .parsing import parse_arguments

    description = (
        "Draw a run's pictures again, from its files alone: curves.png, neural_collapse.png and, "
        "once training is over, cosines.png, margins.png and sphere.png."
    )
    argv = _first_named("--runs", argv)  # `protosphere plot outputs/run`
    arguments = parse_arguments(PlotArguments, argv, "protosphere plot", description)
    from .pictures import plot

    return plot(arguments)


def _export(argv: Sequence[str]) -> Any:
    from .parsing import parse_arguments
    from .sharing_arguments import ExportArguments

    description = "A checkpoint as ONNX or torch.export program, compared with the checkpoint."
    argv = _first_named("--model", argv)  # `protosphere export outputs/run`
    arguments = parse_arguments(ExportArguments, argv, "protosphere export", description)
    from .export import export

    return export(arguments)


def _demo(argv: Sequence[str]) -> Any:
    from .parsing import parse_arguments
    from .sharing_arguments import DemoArguments

    description = (
        "A page in the browser, by Gradio: upload an image, see its scores, its angles to the "
        'prototypes, where it falls on the sphere, and "unknown" when it is far from all.'
    )
    argv = _first_named("--model", argv)  # `protosphere demo outputs/run`
    arguments = parse_arguments(DemoArguments, argv, "protosphere demo", description)
    from .demo_page import demo

    return demo(arguments)


def _first_named(flag: str, argv: Sequence[str]) -> Sequence[str]:
    return [flag, *argv] if argv and not argv[0].startswith("-") else argv


COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "train": _train,
    "evaluate": _evaluate,
    "publish": _publish,
    "release": _release,
    "plot": _plot,
    "export": _export,
    "demo": _demo,
}


if __name__ == "__main__":
    main()
