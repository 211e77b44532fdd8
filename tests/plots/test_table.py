"""Tables come back from their text, cell by cell."""

import re

from hf_protosphere.plots.table import format_table

ROWS = [
    ["mode", "data set", "accuracy", "images"],
    ["knn", "pets", "9.10 %", "3,669"],
    ["linear_probe", "a|b", "-", "12"],
]


def test_columns_are_aligned():
    header, rule, *lines = format_table(ROWS, text_columns=2).split("\n")
    assert rule == "─" * len(header)
    for row, line in zip(ROWS, (header, *lines)):
        assert re.split(r"\s{2,}", line) == row
    for i, title in enumerate(ROWS[0]):
        start = header.index(title)
        end = start + len(title)
        for row, line in zip(ROWS[1:], lines):
            at = start if i < 2 else end - len(row[i])
            assert line[at:].startswith(row[i])


def test_remarks_are_of_any_length_and_widen_nothing():
    rows = [[*row, ""] for row in ROWS]
    plain = format_table(ROWS, text_columns=2).split("\n")
    rows[2][-1] = "no such images, " * 9 + "alas"
    with_remark = format_table(rows, text_columns=2, remarks=True).split("\n")
    assert with_remark[:3] == plain[:3]
    assert with_remark[3] == f"{plain[3]}  {rows[2][-1]}"
