"""What cannot work is refused with flag, value and the way out."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import pytest

from hf_protosphere.arguments.checks import (
    check_choices,
    check_counts,
    check_known,
    check_license,
    check_positive,
    check_range,
)
from hf_protosphere.errors import ArgumentError


def refused(message):
    return pytest.raises(ArgumentError, match=message)


def given(value):
    return SimpleNamespace(x=value)


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


@dataclass
class Choices:
    kind: Literal["a", "b"] = "a"
    maybe: Literal["c", "d"] | None = None
    free: str = "anything"


def test_choices_hold_for_yaml_and_python_too():
    check_choices(Choices())
    check_choices(Choices("b", "d", "e"))
    with refused("^--kind must be one of a, b, but got 'c'"):
        check_choices(Choices("c"))
    with refused("^--kind must be one of a, b, but got None"):
        check_choices(Choices(None))
    with refused("^--maybe must be one of c, d, but got 'a'"):
        check_choices(Choices(maybe="a"))


@pytest.mark.parametrize("value", [1, 0.5, 1e-30, None])
def test_positive_numbers(value):
    check_positive(given(value), "x")


@pytest.mark.parametrize("value", [0, -1, 0.0, float("nan"), float("inf"), "3", [1]])
def test_what_is_not_positive(value):
    with refused("^--x must be positive and finite, but got "):
        check_positive(given(value), "x")


def test_numbers_that_yaml_takes_for_words():
    with refused(r"but got '1e-4' \(in YAML write 1\.0e-4, not 1e-4\)\.$"):
        check_positive(given("1e-4"), "x")


def test_counts():
    check_counts(given(1), "x")
    check_counts(given(0), "x", at_least=0)
    check_counts(given(None), "x")
    for value, least in ((0, 1), (-1, 0), (2.0, 1), ("2", 1)):
        with refused(rf"^--x must be a whole number of at least {least}, but got {value!r}\.$"):
            check_counts(given(value), "x", at_least=least)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, 0.999, None], [-0.001, 1, 1.0]),
        ("(0, 1]", [0.001, 1], [0, 0.0, 1.001]),
        ("(0, 100]", [95, 100], [0, 101, float("nan"), float("inf"), "50"]),
        ("[-1, 1]", [-1, 1], [-1.5, 1.5]),
    ],
)
def test_ranges_are_as_they_are_written(interval, inside, outside):
    for value in inside:
        check_range(given(value), "x", interval)
    for value in outside:
        with pytest.raises(ArgumentError) as error:
            check_range(given(value), "x", interval)
        assert str(error.value) == f"--x must be in {interval}, but got {value!r}."


def test_licenses_are_identifiers_of_the_hub():
    for license in (None, "mit", "apache-2.0", "cc-by-4.0"):
        check_license(license)
    for license in ("", "Apache 2", "MIT", "-mit"):
        with refused("license must be an identifier of the Hub"):
            check_license(license)
