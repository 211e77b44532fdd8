"""Tables of text, aligned for terminals. The first row is the header."""

from collections.abc import Sequence

from .text import printable


def format_table(rows: Sequence[Sequence[str]], text_columns: int = 1, *, remarks: bool = False) -> str:
    """
    Args:
        rows: of as many cells each; the first is the header.
        text_columns: so many of the first columns are text, to the left; numbers are to the right.
        remarks: the last column is text too, of any length.

    Example:
        >>> rows = [["split", "accuracy", ""], ["test", "97.1 %", "of 300 images"]]
        >>> print(format_table(rows, remarks=True))
        split  accuracy
        ───────────────
        test     97.1 %  of 300 images
    """
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    if remarks:
        widths[-1] = 0
    sides = [str.ljust if i < text_columns else str.rjust for i in range(len(widths))]
    header, *lines = ("  ".join(side(*cell) for side, *cell in zip(sides, row, widths)) for row in rows)
    header = header.rstrip() if remarks else header
    return "\n".join([header, "─" * len(header), *(line.rstrip() for line in lines)])
