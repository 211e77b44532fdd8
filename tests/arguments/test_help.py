"""The page of --help: first what matters, then every field once, and no noise."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from hf_protosphere.arguments.fields import flag
from hf_protosphere.arguments.help import Parser


@dataclass(kw_only=True)
class GardenArguments:
    place: str = field(metadata={"help": "Where it is."})
    trees: list[str] | None = field(default=None, metadata={"help": "What grows."})
    fence: bool = flag("Keep the deer out.", True)
    pond: bool = flag("Let the frogs in.", False)
    heated: bool | None = flag("The greenhouse; by default in winter.")


@dataclass(kw_only=True)
class Weather:
    _argument_group_name = "above"

    sky: Literal["clear", "grey"] | None = flag("What is above.")
    clouds: int = flag("How many, at most 100 %%.", 0)
    hours: list[int] = field(default_factory=lambda: [9, 17], metadata={"help": "Of the day."})
    note: str = flag("For the visitors, in as many words as it takes to tell them.", "")


SHORT = """\
usage: visit PLACE [TREES ...] [arguments]

See a garden.

example:
  visit here oak

most used:
  --place PLACE               Where it is.
  --sky {clear,grey}          What is above.

These are the most used; `visit --help all` explains the other 7 too.
"""
WHOLE = """
garden:
  --trees TREES ...           What grows.
  --fence, --no_fence         Keep the deer out. (default: on)
  --pond                      Let the frogs in.
  --heated {true,false}       The greenhouse; by default in winter.

above:
  --clouds N                  How many, at most 100 %. (default: 0)
  --hours N ...               Of the day. (default: 9 17)
  --note NOTE                 For the visitors, in as many words as it takes to
                              tell them.

Names may have hyphens for underscores: --batch-size is --batch_size.
"""


def parser(**options):
    return Parser([GardenArguments, Weather], prog="visit", description="See a garden.", **options)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_the_whole_page():
    ours = parser(positional=("place", "trees"), common=("place", "sky"), example="here oak")
    assert ours.format_help() == SHORT
    page = ours.format_help(everything=True)
    assert page == SHORT[: SHORT.index("\nThese are")] + WHOLE


def test_without_common_arguments_there_are_groups_only():
    page = parser().format_help()
    assert page.startswith("usage: visit [arguments]\n\nSee a garden.\n\ngarden:\n")
    assert "most used" not in page


def test_defaults_are_those_that_count():
    ours = parser()
    ours.defaults |= {"note": "welcome", "pond": True, "fence": False}
    page = ours.format_help()
    assert "(default: welcome)" in page
    assert "Let the frogs in. (default: on)" in page
    assert "--fence, --no_fence         Keep the deer out.\n" in page


def test_wide_and_narrow_terminals(monkeypatch):
    for columns, longest in (("60", 60), ("300", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        lines = parser().format_help().splitlines()
        assert max(len(line) for line in lines if line.startswith(" ")) <= longest


def test_long_names_stand_on_a_line_of_their_own():
    @dataclass(kw_only=True)
    class Long:
        _argument_group_name = "long"

        a_name_of_many_many_words: int = flag("Short.", 1)

    page = Parser([Long], prog="p", description="").format_help()
    assert f"\n  --a_name_of_many_many_words N\n{' ' * 30}Short. (default: 1)\n" in page


def test_of_two_fields_of_one_name_the_last_explains_in_the_place_of_the_first():
    @dataclass(kw_only=True)
    class Night:
        clouds: int = flag("At night fewer.", 3)
        stars: int = flag("How many.", 7)

    page = Parser([Weather, Night], prog="p", description="").format_help()
    assert page.index("--clouds N") < page.index("night:") < page.index("--stars N")
    assert page.count("--clouds") == 1
    assert "At night fewer. (default: 3)" in page


def test_what_the_tab_key_may_complete():
    ours = parser()
    assert ours.completions("--sky", "") == ["clear", "grey"]
    assert ours.completions("--help", "") == ["all"]
    assert ours.completions("--place", "") == ours.completions("visit", "") == []  # of files the shell knows more
    assert {"--sky", "--fence", "--no_fence", "--help"} <= {*ours.completions("--sky", "--")}
