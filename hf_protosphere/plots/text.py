"""Foreign text, such as names of classes and files, in terminals and figures; in Markdown see `hub.markdown`."""

import sys
from typing import Any

is_quiet = False  # by `--quiet`: nothing is said but results, warnings and errors
KEPT = "\n\t\u200c\u200d"  # the last two cannot be seen, but words and emoji are written with them


def printable(text: object, encoding: str = "utf-8") -> str:
    """Text that a terminal shows and does not obey, in lines as they are: � for what steers it, or
    turns its direction, and ? for what the encoding lacks.

    >>> printable("caf\\u00e9 \\x1b[2J", "ascii")
    'caf? ?[2J'
    """
    seen = "".join(c if c.isprintable() or c in KEPT else " " if c.isspace() else "\ufffd" for c in str(text))
    return seen.encode(encoding, "replace").decode(encoding)


def say(*words: object, **options: Any) -> None:
    """Print, whatever the words are and whatever the output takes."""
    encoding = getattr(options.get("file", sys.stdout), "encoding", None) or "utf-8"
    print(printable(" ".join(map(str, words)), encoding), **options)


def one_line(text: object) -> str:
    """Foreign text without line breaks and other characters that cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split()) or "unnamed"


def shorten(text: object, length: int) -> str:
    """One line of at most so many characters."""
    line = one_line(text)
    return line if len(line) <= length else f"{line[: length - 1]}…"


def for_figure(text: object, length: int = 20) -> str:
    """A short line that matplotlib shows as it is: "$" is no mathematics, a leading "_" hides nothing in legends."""
    line = shorten(text, length).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line
