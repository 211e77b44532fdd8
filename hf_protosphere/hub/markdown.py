"""Numbers and foreign text as parts of a Markdown page."""

import re
from collections.abc import Sequence

from ..plots.text import shorten

NAME_LENGTH, NAMES_SHOWN = 60, 10


def inline(text: object) -> str:
    """Foreign text as one short line of Markdown that shows it as it is.

    Not for the beginning of a line, where "-" or "1)" would start a list.

    >>> inline("golden_retriever | <script>")
    'golden_retriever &#124; &#60;script&#62;'
    """
    # Entities: the Hub reads an escaped backslash before "(" as a formula. "_" between letters is no markup.
    special = r"[!-&*.:-@\[-^`{-~]|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(special, lambda found: f"&#{ord(found[0])};", shorten(text, NAME_LENGTH))


def listed(names: Sequence[str]) -> str:
    """The first names, made safe, and how many more there are."""
    shown = ", ".join(inline(name) for name in names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more:,} more, all in config.json" if more > 0 else shown


def percent(share: float) -> str:
    """
    >>> percent(0.9972)
    '99.72 %'
    """
    return f"{share:.2%}".replace("%", " %")


def duration(seconds: float) -> str:
    """
    >>> duration(5400)
    '90.0 minutes'
    """
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} seconds"
