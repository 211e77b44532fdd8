"""The `help` of a field is its documentation; what cannot work is refused with flag, value and the way out."""

import pickle
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest

from hf_protosphere.arguments.fields import (
    Arguments as Given,
)
from hf_protosphere.arguments.fields import (
    Beside,
    Count,
    CountOrZero,
    PathName,
    Positive,
    Seed,
    check,
    check_known,
    check_license,
    decide,
    flag,
    required,
)
from hf_protosphere.errors import ArgumentError


@dataclass
class Arguments:
    epochs: int = flag("Passes over the images.", 10)
    name: str | None = flag("What it is called.")
    seeds: list[int] = flag("Of each run.", [0, 1])


def test_a_flag_has_its_default_and_its_help():
    assert Arguments() == Arguments(10, None, [0, 1])
    assert Arguments(epochs=3).epochs == 3
    assert {field.name: field.metadata["help"] for field in fields(Arguments)} == {
        "epochs": "Passes over the images.",
        "name": "What it is called.",
        "seeds": "Of each run.",
    }


def test_a_list_is_nobody_elses_default():
    Arguments().seeds.append(2)
    assert Arguments().seeds == [0, 1]


def test_what_is_required_has_no_default():
    @dataclass
    class Picnic:
        guests: int = required("How many.")

    assert Picnic(2).guests == 2
    with pytest.raises(TypeError, match="guests"):
        Picnic()


def test_what_follows_from_other_arguments_is_decided_once():
    @dataclass(frozen=True, kw_only=True)
    class Picnic:
        guests: int = flag("How many.", 2)
        plates: int | None = flag("By default as many as guests.")

        def __post_init__(self):
            if self.plates is None:
                decide(self, plates=self.guests)

    assert Picnic(guests=3).plates == 3
    assert Picnic(guests=3, plates=1).plates == 1
    with pytest.raises(FrozenInstanceError):
        Picnic().plates = 5


@dataclass
class Checked:
    kind: Literal["a", "b"] = "a"
    maybe: Literal["c", "d"] | None = None
    free: str = "anything"
    precision: Literal["no", "bf16"] = "no"
    rate: Positive = 1.0
    least: float = 0.0
    fence: bool = True
    names: list[str] | None = None
    counts: list[Count] | None = None
    options: Annotated[str, dict] | None = None
    values: dict[str, int] | None = None
    folder: PathName = "."
    others: list[PathName] | None = None
    seed: Seed = 0
    count: Count | None = 1
    workers: CountOrZero = 0
    share: Annotated[float, "[0, 1)"] = 0.0
    decay: Annotated[float, "(0, 1]"] = 1.0
    percentage: Annotated[float, "(0, 100]"] | None = None
    cosine: Annotated[float, "[-1, 1]"] = 0.0
    port: Annotated[Count, "[1, 65535]"] = 80


def refused(message):
    return pytest.raises(ArgumentError, match=message)


def test_choices_hold_for_yaml_and_python_too():
    check(Checked())
    check(Checked("b", "d", "e"))
    with refused("^--kind must be one of a, b, but got 'c'"):
        check(Checked("c"))
    with refused("^--kind must be one of a, b, but got None"):
        check(Checked(None))
    with refused("^--maybe must be one of c, d, but got 'a'"):
        check(Checked(maybe="a"))


@pytest.mark.parametrize("value", [1, 0.5, 1e-30])
def test_positive_numbers(value):
    check(Checked(rate=value))


@pytest.mark.parametrize("value", [0, -1, 0.0, float("nan"), float("inf"), "3", [1], True, None])
def test_what_is_not_positive(value):
    with refused("^--rate must be positive and finite, but got "):
        check(Checked(rate=value))


def test_numbers_that_yaml_takes_for_words():
    with refused(r"but got '1e-4' \(in YAML write 1\.0e-4, not 1e-4\)\.$"):
        check(Checked(rate="1e-4"))


def test_counts():
    check(Checked(count=1, workers=0))
    check(Checked(count=None))
    for name, value, least in (
        ("count", 0, 1), ("workers", -1, 0), ("count", 2.0, 1), ("port", "2", 1),
        ("workers", None, 0), ("count", True, 1), ("seed", 1.0, 0), ("seed", -1, 0),
    ):  # fmt: skip
        with refused(rf"^--{name} must be a whole number of at least {least}, but got {value!r}\.$"):
            check(Checked(**{name: value}))


@pytest.mark.parametrize(
    ("name", "interval", "inside", "outside"),
    [
        ("share", "[0, 1)", [0, 0.5, 0.999], [-0.001, 1, 1.0]),
        ("decay", "(0, 1]", [0.001, 1], [0, 0.0, 1.001]),
        ("percentage", "(0, 100]", [95, 100, None], [0, 101, float("nan"), float("inf"), "50"]),
        ("cosine", "[-1, 1]", [-1, 1], [-1.5, 1.5]),
        ("port", "[1, 65535]", [1, 65535], [65536]),
        ("seed", "[0, 4294967296)", [0, 2**32 - 1], [2**32]),
    ],
)
def test_ranges_are_as_they_are_written(name, interval, inside, outside):
    for value in inside:
        check(Checked(**{name: value}))
    for value in outside:
        with pytest.raises(ArgumentError) as error:
            check(Checked(**{name: value}))
        assert str(error.value) == f"--{name} must be in {interval}, but got {value!r}."


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("free", 3, "text"),
        ("free", None, "text"),
        ("least", "1", "a number"),
        ("least", True, "a number"),
        ("fence", "yes", "true or false"),
        ("fence", 1, "true or false"),
        ("names", ["a", 1], "a list, and each of it text"),
        ("counts", [1, 2.0], "a list, and each of it a whole number of at least 1"),
        ("options", 3, "text"),
        ("values", ["a"], "a mapping, such as {name: value}"),
        ("folder", 3, "text"),
        ("precision", True, "one of no, bf16"),
    ],
)
def test_what_is_of_another_kind(name, value, wanted):
    with pytest.raises(ArgumentError) as error:
        check(Checked(**{name: value}))
    assert str(error.value) == f"--{name} must be {wanted}, but got {value!r}."


def test_giant_values_are_told_in_a_line():
    bomb = ["lol"]
    for _ in range(100):
        bomb = [bomb] * 9
    for value in (bomb, "x" * 10**6, {"a": bomb}):
        with pytest.raises(ArgumentError) as error:
            check(Checked(seed=value))
        assert len(str(error.value)) < 300


def test_what_yaml_python_and_shells_write_in_their_own_way(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    given = Checked(
        precision=False, names="a", counts=(1, 2), options={"a": 1}, folder="~/run", others=[Path("~"), "b~/c"]
    )
    check(given)
    assert (given.precision, given.names, given.counts) == ("no", ["a"], [1, 2])
    assert (given.options, given.folder) == ({"a": 1}, "/home/ada/run")
    assert given.others == ["/home/ada", "b~/c"]


@dataclass(frozen=True, kw_only=True)
class Trip(Given):
    days: Count = flag("How many.", 3)
    nights: int | None = flag("By default one less.")
    boat: Literal["none", "sail"] = flag("To take.", "none")
    sails: Annotated[Count, Beside("boat")] | None = flag("How many.")
    knots: Annotated[Positive, Beside("boat", "sail")] = flag("How fast.", 4.0)

    def __post_init__(self):
        check(self)
        if self.nights is None:
            decide(self, nights=self.days - 1)


def test_what_was_given_is_known_from_what_is_default():
    trip = Trip(days=3, nights=None)
    assert trip == Trip()
    assert (trip.given, Trip().given) == ({"days": 3}, {})
    with refused(r"^Trip has no 'dais'\. Did you mean 'days'\?$"):
        Trip(dais=3)
    longer = trip.but(boat="sail").but(days=5)
    assert longer.given == {"days": 5, "boat": "sail"}
    assert longer.nights == 4  # which follows anew
    assert vars(longer).keys() == {field.name for field in fields(Trip)}
    copied = pickle.loads(pickle.dumps(longer))
    assert (copied, copied.given) == (longer, longer.given)


def test_what_does_nothing_alone_is_refused():
    assert Trip(boat="sail", sails=2, knots=5).sails == 2
    assert Trip(knots=4.0).knots == 4.0  # a file of all arguments says it too
    for name, value, needed in (("sails", 2, "--boat"), ("knots", 5, "--boat sail")):
        with refused(rf"^--{name} {value} is for {needed} only: give that, or leave it out\.$"):
            Trip(**{name: value})


def test_names_that_are_not_known_and_what_was_meant():
    known = ["epochs", "batch_size"]
    check_known(["epochs"], known, "there is no")
    check_known([], known, "there is no")
    with refused(r"^there is no 'epocs'\. Did you mean 'epochs'\?$"):
        check_known(["batch_size", "epocs"], known, "there is no")
    with refused(r"^there is no 'xyz'\.$"):
        check_known(["xyz"], known, "there is no")
    with refused(r"^there is no 3\.$"):  # YAML's names may be numbers
        check_known([3], known, "there is no")


def test_licenses_are_identifiers_of_the_hub():
    for license in (None, "mit", "apache-2.0", "cc-by-4.0"):
        check_license(license)
    for license in ("", "Apache 2", "MIT", "-mit"):
        with refused("license must be an identifier of the Hub"):
            check_license(license)
