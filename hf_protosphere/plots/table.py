"""Tables of text, for terminals."""

from __future__ import annotations


def format_table(rows: list[list[str]], text_columns: int = 1) -> str:
    """The first row is the header; the first columns are text, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *(line.rstrip() for line in lines[1:])])
