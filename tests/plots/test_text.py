"""Foreign text is shown, and does nothing else: to terminals, figures, Markdown and YAML."""

import io
import warnings

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from hf_protosphere.data.labels import some
from hf_protosphere.hub.markdown import inline
from hf_protosphere.metrics.snapshot import Snapshot
from hf_protosphere.plots.sphere import plot_sphere
from hf_protosphere.plots.style import new_figure, save_figure
from hf_protosphere.plots.table import format_table
from hf_protosphere.plots.text import for_figure, one_line, printable, say, shorten

HOSTILE = [
    "$5_to_$10", r"$\frac$", "$$", r"\$x$", "a$b", "_hidden", "_", "__init__", "", "\x1b[2J\x1b]0;x\x07",
    "two\nlines", "tab\there", "carriage\rreturn", "\u202etxt.exe", "\u2066x\u2069",
    "شجرة الزيتون", "עץ",
    "鸭", "\U0001f986", "👩\u200d🔬", "cafe\u0301", "\udcff", "x" * 5000, "| <script> `x` [y](z)",
    "- a: {b", "'", '"', "#", "null", "{%x%}", "a\xa0b",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ntext\twith lines", "plain\ntext\twith lines"),
        ("\x1b[31mred\x07", "�[31mred�"),
        ("a\rb\u202ec", "a b�c"),
        ("👩\u200d🔬 שלום a\xa0b", "👩\u200d🔬 שלום a b"),
        ("\udcff", "�"),
    ],
)
def test_a_terminal_shows_text_and_does_not_obey_it(text, shown):
    assert printable(text) == shown


def test_what_the_output_lacks_is_replaced():
    assert printable("→ café ─", "ascii") == "? caf? ?"
    assert printable("→ café ─", "cp1252") == "? café ?"
    for encoding in ("ascii", "cp1252", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        for name in HOSTILE:
            say(name, "→", file=stream, end="")
        stream.flush()
        assert b"\x1b" not in stream.buffer.getvalue()
    say("in memory →", file=(memory := io.StringIO()))
    assert memory.getvalue() == "in memory →\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [(" a\n\tb ", "a b"), ("a\u202eb\x00", "a b"), ("\ud800", "unnamed"), (7, "7")],
)
def test_one_line(text, line):
    assert one_line(text) == line


def test_long_names_are_cut():
    assert [shorten(name, 5) for name in ("abcde", "abcdef")] == ["abcde", "abcd…"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a$b", r"a\$b"), ("_x", " _x"), ("$" * 30, r"\$" * 19 + "…"), ("\x1b[1m", "[1m"), (3, "3")],
)
def test_figures_do_no_mathematics_and_hide_nothing(name, shown):
    assert for_figure(name) == shown


def test_hostile_names_are_drawn_without_a_warning(tmp_path, figures):
    names = HOSTILE[:10]
    vectors = torch.randn(len(names), 3, generator=torch.Generator().manual_seed(0))
    snapshot = Snapshot.of_prototypes(torch.nn.functional.normalize(vectors, dim=1), names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_sphere(snapshot, tmp_path / "sphere.png")
        figure = new_figure(6, 12)
        axes = figure.subplots()
        for i, name in enumerate(HOSTILE):
            axes.plot([0, 1], [i, i], label=for_figure(name))
        axes.legend()
        save_figure(figure, tmp_path / "names.png", 50)
    for saved, of in zip(figures, (names, HOSTILE)):
        (legend,) = [*saved.legends, *filter(None, [saved.axes[0].get_legend()])]
        assert [text.get_text() for text in legend.get_texts()] == [for_figure(n) for n in of]


def test_terminals_markdown_and_yaml_hold_hostile_names_together():
    table = format_table([["name", "n"], *([name, str(i)] for i, name in enumerate(HOSTILE))])
    assert len(table.split("\n")) == len(HOSTILE) + 2
    assert "\x1b" not in table + some(HOSTILE)
    assert "\u202e" not in table + some(HOSTILE)
    for name in HOSTILE:
        assert yaml.safe_load(yaml.safe_dump({"name": one_line(name)})) == {"name": one_line(name)}
        (line,) = MarkdownIt("gfm-like").parse(f"a {inline(name)} b")[1:-1]
        assert {child.type for child in line.children} <= {"text", "text_special"}
