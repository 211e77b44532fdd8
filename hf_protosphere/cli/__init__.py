"""The command `protosphere`: one sub-command for each job. The scripts call it too.

Start at `commands.yaml`, the table of all commands. Nothing imports this room."""

import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from ..errors import TrainingInterrupted, UserError
from ..plots.text import say
from .commands import COMMANDS

LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # of this process among those of its launcher
PATIENCE = 15  # seconds, more than the first process takes to end


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 for what the user can mend, 128 + signal for an interruption."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's may be known to its own Python only
    if hasattr(sys.stdout, "reconfigure"):  # ASCII, say, lacks letters that are printed
        sys.stdout.reconfigure(errors="replace")
    run = _run
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        # An error is the launcher's too: its summary tells the first, of many that follow from it.
        from torch.distributed.elastic.multiprocessing.errors import record

        run = record(run)
    run(argv)


def _run(argv: Sequence[str] | None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), end="")
        raise SystemExit(0 if argv else 2)
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        from ..arguments.fields import did_you_mean

        near = did_you_mean(command, COMMANDS) or " protosphere --help lists them."
        _refuse("", f"there is no command {command!r}.{near}")
    try:
        COMMANDS[command](rest)
    except TrainingInterrupted as interruption:  # of all processes together
        if LOCAL_RANK == 0:
            say(f"protosphere {command}: {interruption}", file=sys.stderr)
        raise SystemExit(128 + interruption.signal) from None
    except UserError as error:
        if LOCAL_RANK > 0:
            # Mostly all processes fail alike. The first one says why, and the launcher ends the
            # others; one that is alone with its error lives on and says it itself.
            time.sleep(PATIENCE)
        _refuse(f" {command}", error)
    except Exception as error:
        from ..runs.files import disk_refusal

        if (reason := disk_refusal(error)) is None:
            raise
        place = getattr(error, "filename", None) or "a file of a library, such as a cache,"
        then = "Make room, and run the same command again."
        _refuse(f" {command}", f"{place} cannot be written: {reason}. {then}")


def _refuse(command: str, reason: object) -> NoReturn:
    say(f"protosphere{command}: error: {reason}", file=sys.stderr)
    raise SystemExit(2) from None


def _usage() -> str:
    commands = "\n".join(f"  {c.name:<14} {c.summary}" for c in COMMANDS.values())
    return f"""usage: protosphere COMMAND [--help] [arguments]

Image classifiers with class prototypes on the hypersphere.

commands:
{commands}

`protosphere COMMAND --help` explains every argument. For several processes or machines:
`accelerate launch scripts/train.py [arguments]`, or scripts/evaluate.py, with the same arguments.
"""
