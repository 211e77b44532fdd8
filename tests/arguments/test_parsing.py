"""Flags, YAML and Python give the same arguments, and the same errors."""

from dataclasses import FrozenInstanceError, asdict, dataclass, field
from typing import Literal

import pytest
import yaml

from hf_protosphere.arguments.fields import Arguments, flag
from hf_protosphere.arguments.parsing import parse_arguments, parser_of, read_yaml
from hf_protosphere.errors import ArgumentError


@dataclass(kw_only=True, frozen=True)
class Garden:
    _argument_group_name = "garden"

    place: str = field(metadata={"help": "Where it is."})
    trees: list[str] | None = field(default=None, metadata={"help": "What grows."})
    fence: bool = flag("Keep the deer out.", True)


@dataclass(kw_only=True, frozen=True)
class Weather:
    _argument_group_name = "weather"

    sky: Literal["clear", "grey"] = flag("What is above.", "grey")
    warmth: float = flag("Of the air.", 1e-3)
    days: int | None = flag("How many.")


@dataclass(kw_only=True, frozen=True)
class Picnic(Garden, Weather):
    """Frozen, as arguments may be; its default differs from its group's."""

    days: int | None = 3


@dataclass(kw_only=True, frozen=True)
class Noted(Garden):
    note: str | None = flag("For the visitors.")


def parse(*argv, cls=Picnic, **page):
    return parse_arguments(cls, argv, parser_of(cls, prog="picnic", **page))


@pytest.fixture
def recipe(tmp_path):
    """Write the file and give its path."""

    def write(text, name="recipe.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_flags_win_over_yaml_over_defaults(recipe):
    path = recipe("place: here\nsky: clear\ndays: 7\n")
    assert parse("--config", path, "--days", "9") == Picnic(place="here", sky="clear", days=9)
    assert parse("--place", "there") == Picnic(place="there", days=3)
    assert parse("--config", path).days == 7


def test_kinds_of_flags():
    arguments = parse("--place", "x", "--no_fence", "--trees", "oak", "ash", "--sky", "clear", "--warmth", "1e-4")
    assert arguments == Picnic(place="x", fence=False, trees=["oak", "ash"], sky="clear", warmth=1e-4)
    assert not parse("--place", "x", "--fence", "false").fence
    assert not parse("--place", "x", "--no-fence").fence
    assert parse("--fence", "x", "--days", "2", positional=("place",)) == Picnic(place="x", days=2)  # no value of it
    with pytest.raises(ArgumentError, match=r"argument --fence: invalid choice: .perhaps. "):
        parse("--place", "x", "--fence=perhaps")
    with pytest.raises(FrozenInstanceError):
        arguments.place = "y"


def test_values_that_need_no_flag():
    def words(*argv):
        return parse(*argv, positional=("place", "trees"))

    everything = Picnic(place="here", trees=["oak", "ash"], days=1)
    assert words("here", "oak", "ash", "--days", "1") == everything
    assert words("--days", "1", "--place", "here", "--trees", "oak", "ash") == everything
    assert words("here") == Picnic(place="here")
    assert words("here", "--days", "1", "oak", "-") == Picnic(place="here", trees=["oak", "-"], days=1)
    assert words("here", "-").trees == ["-"]
    assert words("--days", "1", "here", "oak", "--no_fence", "ash").trees == ["oak", "ash"]
    assert words("oak", "--place", "here").trees == ["oak"]  # what a flag gives needs no word
    with pytest.raises(ArgumentError, match="--place"):
        words("--days", "1")


def test_a_word_too_many_is_named():
    for argv, message in (
        (("here", "2", "more"), "^one word too many: 'more'; --help all"),
        (("here", "--place", "there", "--days", "1"), "^one word too many: 'here', beside --place and --days;"),
        (("a", "b", "--place", "there"), "^one word too many: 'b', beside --place;"),
    ):
        with pytest.raises(ArgumentError, match=message):
            parse(*argv, positional=("place", "days"))
    with pytest.raises(ArgumentError, match=r"^one word too many: 'ash', beside --trees;"):
        parse("here", "ash", "--trees", "oak", positional=("place", "trees"))


def test_words_beside_a_file(recipe):
    path = recipe("place: here\n")
    fence = {"positional": ("place", "note"), "cls": Noted}
    assert parse("there", "mind", "--config", path, **fence) == Noted(place="there", note="mind")
    assert parse("mind", "--config", path, **fence) == Noted(place="here", note="mind")
    # Of words behind which several may stand, none is for what the file gives.
    trees = {"positional": ("place", "trees")}
    assert parse("oak", "ash", "--config", path, **trees) == Picnic(place="here", trees=["oak", "ash"])
    assert parse("--config", recipe("trees: [oak]\nplace: here\n"), "ash", **trees).trees == ["ash"]


def test_help_keeps_to_what_most_need(recipe, capsys):
    for argv, is_there in ((("--help",), False), (("--help", "all"), True), (("x", "-h", "--wings"), False)):
        with pytest.raises(SystemExit, match=r"^0$"):
            parse(*argv, common=("place",))
        assert ("--trees" in capsys.readouterr().out) == is_there
    with pytest.raises(SystemExit, match=r"^0$"):
        parse("--config", recipe("days: 9\n"), "--help", "all")
    assert "How many. (default: 9)" in capsys.readouterr().out


def test_a_file_of_all_arguments_gives_them_back(recipe):
    arguments = Picnic(place="x", trees=["oak"], days=None)
    path = recipe(yaml.safe_dump(asdict(arguments)))
    assert parse("--config", path) == arguments
    assert Picnic(**read_yaml(path, Picnic)) == arguments


def test_files_that_cannot_be_read(recipe, tmp_path):
    with pytest.raises(ArgumentError, match=r"unknown argument 'plac'.*'place'"):
        parse("--config", recipe("plac: here\n"))
    with pytest.raises(ArgumentError, match="'name: value' lines, but got"):
        parse("--config", recipe("[1, 2]"))
    with pytest.raises(ArgumentError, match=r"recipe.yaml cannot be read"):
        parse("--config", recipe("{"))
    for text in ("", "# place: here\n", "{}", "0"):
        with pytest.raises(ArgumentError, match="'name: value' lines, but got"):
            parse("--config", recipe(text))
    for text in ("place: [\n", "[" * 500, b"place: caf\xe9\n", "place: \x1b\n", "? [a]: b\n"):
        path = tmp_path / "damaged.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ArgumentError, match=r"damaged.yaml cannot be read: [^\n]*$"):
            parse("--config", str(path))
    with pytest.raises(ArgumentError, match=r"missing.yaml cannot be read"):
        parse("--config", str(tmp_path / "missing.yaml"))


def test_a_file_stands_on_its_base(recipe):
    recipe("place: here\ndays: 1\n", "base.yaml")
    assert read_yaml(recipe("base: base.yaml\ndays: 2\n"), Picnic) == {"place": "here", "days": 2}


def test_bases_that_go_in_circles_or_are_missing(recipe):
    first = recipe("base: b.yaml\n", "a.yaml")
    recipe("base: a.yaml\n", "b.yaml")
    with pytest.raises(ArgumentError, match=r"is its own base: .*a.yaml → .*b.yaml → .*a.yaml"):
        parse("--config", first)
    with pytest.raises(ArgumentError, match=r"d.yaml cannot be read"):
        parse("--config", recipe("base: d.yaml\n"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sky", "pink"), "argument --sky: invalid choice: 'pink'.*--help all explains"),
        (("--days", "many"), "argument --days: invalid int value: 'many'"),
        (("--wings", "2"), "unrecognized arguments: --wings 2; --help all explains"),
        (("--conf", "x.yaml"), r"unrecognized arguments: --conf x.yaml. Did you mean '--config'\?"),
        (("--dayz=2",), r"unrecognized arguments: --dayz=2. Did you mean '--days'\?"),
        (("--config",), "argument --config: expected one argument; --help all explains"),
        (("--days",), "argument --days: expected one argument"),
    ],
)
def test_flags_that_cannot_be_read(flags, message, capsys):
    with pytest.raises(ArgumentError, match=message):
        parse("--place", "x", *flags)
    assert capsys.readouterr().err == ""  # no page of usage


def test_what_is_missing_is_named():
    with pytest.raises(ArgumentError, match="arguments are required: --place"):
        parse("--days", "1")
    # Of a name that is misspelt, the misspelling.
    with pytest.raises(ArgumentError, match=r"--plaze Rome\. Did you mean '--place'\?"):
        parse("--plaze", "Rome")


@dataclass(kw_only=True, frozen=True)
class Hike(Picnic, Arguments):
    """Knows what was given."""


def test_flags_and_files_are_given_and_defaults_are_not(recipe, monkeypatch, tmp_path):
    path = recipe("sky: grey\ndays: null\n")
    hike = parse("--config", path, "--place", "here", "--fence", "true", cls=Hike)
    assert hike.given == {"place": "here", "sky": "grey", "fence": True}
    assert hike == Hike(place="here", days=None)
    monkeypatch.setenv("HOME", str(tmp_path))
    hike = parse("--config=~/recipe.yaml", "--place", "x", cls=Hike)
    assert hike.given == {"place": "x", "sky": "grey"}
