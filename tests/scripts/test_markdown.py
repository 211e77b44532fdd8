"""Tables in Markdown come back from their text, cell by cell."""

import re

from scripts.markdown import markdown_table

ROWS = [
    ["mode", "data set", "accuracy", "images"],
    ["knn", "pets", "9.10 %", "3,669"],
    ["linear_probe", "a|b", "-", "12"],
]


def test_markdown_has_the_same_cells():
    lines = markdown_table(ROWS, text_columns=2).split("\n")
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]
    cells = [[cell.strip().replace(r"\|", "|") for cell in line] for line in cells]
    assert cells == [ROWS[0], ["---", "---", "---:", "---:"], *ROWS[1:]]
    assert markdown_table(ROWS, remarks=True).split("\n")[1] == "| --- | ---: | ---: | --- |"
