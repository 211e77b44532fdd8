"""The command `protosphere`: one sub-command for each job. The scripts call it too.

Start at `commands.yaml`, the table of all commands. Nothing imports this room."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from ..arguments.fields import did_you_mean
from ..arguments.help import TRUTH
from ..errors import TrainingInterrupted, UserError
from ..plots import text
from ..plots.text import say
from .commands import COMMANDS, TEXTS
from .completion import answer

LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # of this process among those of its launcher
BARS = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")  # none, where it is "1"
PATIENCE = 15  # seconds, more than the first process takes to end


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 for what the user can mend, 128 + signal for an interruption."""
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ["MPLBACKEND"] = "agg"  # a notebook's may be known to its own Python only
    flags = (word.partition("=") for word in argv)
    said = (value or then for (flag, _, value), then in zip(flags, [*argv[1:], ""]) if flag == "--quiet")
    text.is_quiet = any(TRUTH.get(word, True) for word in said)
    if text.is_quiet or not sys.stderr.isatty():  # read by tqdm, and by those who do not leave it to tqdm
        os.environ |= dict.fromkeys(BARS, "1")
    if hasattr(sys.stdout, "reconfigure"):  # ASCII, say, lacks letters that are printed
        sys.stdout.reconfigure(errors="replace")
    run = _run
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        # An error is the launcher's too: its summary tells the first, of many that follow from it.
        from torch.distributed.elastic.multiprocessing.errors import record

        run = record(run)
    try:
        run(argv)
    finally:
        text.is_quiet = False


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {c.name:<14} {c.summary}" for c in COMMANDS.values())
        print(TEXTS["usage"].format(commands=lines), end="")
        raise SystemExit(0 if argv else 2)
    command, rest = argv[0], argv[1:]
    answers = dict.fromkeys(("--completion", "--complete"), lambda words: print(*answer(command, words), sep="\n"))
    jobs = COMMANDS | answers
    if command not in jobs:
        near = did_you_mean(command, COMMANDS) or " protosphere --help lists them."
        _refuse("", f"there is no command {command!r}.{near}")
    try:
        jobs[command](rest)
    except (TrainingInterrupted, KeyboardInterrupt) as interruption:  # the first of all processes together
        if LOCAL_RANK == 0:
            say(f"protosphere {command}: {str(interruption) or 'interrupted'}", file=sys.stderr)
        raise SystemExit(128 + getattr(interruption, "signal", signal.SIGINT)) from None
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
        _refuse(f" {command}", f"{place} cannot be written: {reason}. Make room, and run the same command again.")


def _refuse(command: str, reason: object) -> NoReturn:
    say(f"protosphere{command}: error: {reason}", file=sys.stderr)
    raise SystemExit(2) from None
