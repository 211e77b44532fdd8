"""The `help` of a field is its documentation; what cannot work is refused with flag, value and the
way out."""

from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Annotated, Literal

import pytest

from hf_protosphere.arguments.fields import (
    Count,
    CountOrZero,
    Positive,
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
    rate: Positive = 1.0
    count: Count | None = 1
    workers: CountOrZero = 0
    share: Annotated[float, "[0, 1)"] = 0.0
    decay: Annotated[float, "(0, 1]"] = 1.0
    percentage: Annotated[float | None, "(0, 100]"] = None
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


@pytest.mark.parametrize("value", [1, 0.5, 1e-30, None])
def test_positive_numbers(value):
    check(Checked(rate=value))


@pytest.mark.parametrize("value", [0, -1, 0.0, float("nan"), float("inf"), "3", [1]])
def test_what_is_not_positive(value):
    with refused("^--rate must be positive and finite, but got "):
        check(Checked(rate=value))


def test_numbers_that_yaml_takes_for_words():
    with refused(r"but got '1e-4' \(in YAML write 1\.0e-4, not 1e-4\)\.$"):
        check(Checked(rate="1e-4"))


def test_counts():
    check(Checked(count=1, workers=0))
    check(Checked(count=None, workers=None))
    for name, value, least in (
        ("count", 0, 1), ("workers", -1, 0), ("count", 2.0, 1), ("port", "2", 1)
    ):  # fmt: skip
        with refused(
            rf"^--{name} must be a whole number of at least {least}, but got {value!r}\.$"
        ):
            check(Checked(**{name: value}))


@pytest.mark.parametrize(
    ("name", "interval", "inside", "outside"),
    [
        ("share", "[0, 1)", [0, 0.5, 0.999, None], [-0.001, 1, 1.0]),
        ("decay", "(0, 1]", [0.001, 1], [0, 0.0, 1.001]),
        ("percentage", "(0, 100]", [95, 100], [0, 101, float("nan"), float("inf"), "50"]),
        ("cosine", "[-1, 1]", [-1, 1], [-1.5, 1.5]),
        ("port", "[1, 65535]", [1, 65535], [65536]),
    ],
)
def test_ranges_are_as_they_are_written(name, interval, inside, outside):
    for value in inside:
        check(Checked(**{name: value}))
    for value in outside:
        with pytest.raises(ArgumentError) as error:
            check(Checked(**{name: value}))
        assert str(error.value) == f"--{name} must be in {interval}, but got {value!r}."


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
