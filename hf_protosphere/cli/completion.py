"""What the Tab key completes: commands, flags, choices; the shell itself knows files. Nothing heavy is imported."""

from ..arguments.fields import check_known
from .commands import COMMANDS, TEXTS


def answer(question: str, words: list[str]) -> list[str]:
    """Of "--completion" what a shell runs to complete words. It asks by "--complete" what the last of the words
    behind `protosphere`, which may be empty, can become: nothing where that may be a file."""
    *before, begun = words or [""]
    if question == "--completion":
        check_known([begun], ("bash", "zsh", "fish"), "--completion takes bash, zsh or fish, but got")
        return [TEXTS[begun]]
    known = [] if before else [*COMMANDS, "--help"]
    if before and before[0] in COMMANDS:
        known = COMMANDS[before[0]].parser().completions(before[-1], begun)
    return [word for word in known if word.startswith(begun)]
