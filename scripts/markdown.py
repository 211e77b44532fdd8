"""Tables in Markdown, as `hf_protosphere.plots.table` has them for terminals."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], text_columns: int = 1, *, remarks: bool = False) -> str:
    r"""The cells of `format_table` in Markdown. A vertical bar in a cell stays in it; other Markdown is as it is.

    Example:
        >>> print(markdown_table([["split", "accuracy"], ["a|b", "97.1 %"]]))
        | split | accuracy |
        | --- | ---: |
        | a\|b | 97.1 % |
    """
    header, *lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---" if i < text_columns else "---:" for i in range(len(header))]
    if remarks:
        rule[-1] = "---"
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))
