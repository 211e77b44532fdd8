"""Foreign text is words and nothing else; numbers as people write them."""

import html

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_protosphere.hub.markdown import NAMES_SHOWN, duration, inline, listed, percent
from hf_protosphere.plots.text import one_line

MARKDOWN = MarkdownIt("gfm-like")
NASTY = st.sampled_from(["|", "`x`", "*x*", "_x_", "~~x~~", "<b>", "[x](y)", "\\(", "&lt;", "$$"])


def test_ordinary_names_are_left_alone():
    for name in ("golden_retriever", "digit 0", "T-shirt/top", "Ente", "鸭", "🦆", "(none)"):
        assert inline(name) == name
    assert inline("") == inline("\u200b\n") == "unnamed"
    assert inline("x" * 1000) == "x" * 59 + "…"
    assert inline(None) == "None"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(NASTY, st.text(max_size=8)), max_size=4).map("".join))
def test_any_name_is_shown_as_it_is(name):
    line = one_line(name)
    shown = line if len(line) <= 60 else f"{line[:59]}…"
    assert html.unescape(MARKDOWN.renderInline(f"a {inline(name)} b")) == f"a {shown} b"
    (row,) = (t for t in MARKDOWN.parse(f"|x|\n|-|\n|a {inline(name)}|")[-6:] if t.type == "inline")
    assert [child.type for child in row.children if not child.type.startswith("text")] == []


def test_of_many_names_the_first_are_listed():
    names = [f"class_{i}" for i in range(NAMES_SHOWN)]
    assert listed(names) == ", ".join(names)
    assert listed([*names, "one|more"]) == f"{', '.join(names)} and 1 more, all in config.json"
    assert listed(["a|b"] * 2) == "a&#124;b, a&#124;b"
    assert listed(["x"] * 1011).endswith("and 1,001 more, all in config.json")


def test_numbers():
    assert [percent(share) for share in (0.0, 0.99996, 1.0)] == ["0.00 %", "100.00 %", "100.00 %"]
    assert [duration(seconds) for seconds in (0.25, 119.4, 120, 7199, 7200)] == [
        "0.25 seconds", "119 seconds", "2.0 minutes", "120.0 minutes", "2.0 hours",
    ]  # fmt: skip
