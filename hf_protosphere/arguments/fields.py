"""Fields of argument dataclasses, whose `help` is their documentation, and checks of their values.

Every `ArgumentError` names flag, value and the way out."""

import math
import os
import re
import reprlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ArgumentError

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class Beside:
    """In an `Annotated` type: an argument that does nothing without another one, or without a value
    of it, or one of several, "a|b"; alone it is refused."""

    other: str
    value: str | None = None

    def check(self, arguments: Any, name: str) -> None:
        there, value = getattr(arguments, self.other), getattr(arguments, name)
        is_met = there in self.value.split("|") if self.value else there not in (None, False, "none", [])
        if not is_met and value != arguments.__dataclass_fields__[name].default:
            needed = f"--{self.other}" + (f" {self.value}" if self.value else "")
            raise ArgumentError(f"--{name} {value} is for {needed} only: give that, or leave it out.")


Count = Annotated[int, 1]  # at least
CountOrZero = Annotated[int, 0]
Seed = Annotated[CountOrZero, "[0, 4294967296)"]  # what NumPy takes
Positive = Annotated[float, "(0, inf)"]
PathName = Annotated[str, Path]  # of a file or folder, or an id on the Hub; "~" is the home folder
WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list",
    dict: "a mapping, such as {name: value}",
}  # fmt: skip


class Arguments:
    """Of a job: they know which of them were given, by flag, in YAML or in Python, and which are
    the defaults. None stands for a default wherever it may be given."""

    __slots__ = ("_given",)

    def __new__(cls, **values: Any) -> "Self":
        check_known(values, field_names(cls), f"{cls.__name__} has no")
        arguments = super().__new__(cls)
        object.__setattr__(arguments, "_given", tuple(name for name, value in values.items() if value is not None))
        return arguments

    @property
    def given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._given}

    def but(self, **values: Any) -> "Self":
        """The same with these given too. What follows from others follows anew."""
        return type(self)(**self.given | values)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self.given), ()


def field_names(cls: type) -> list[str]:
    return [own.name for own in fields(cls)]


def flag(text: str, default: Any = None, **more: Any) -> Any:
    """A field that need not be given; a default that is a list is copied. `more` is for argparse."""
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**start, metadata={"help": text, **more})


def required(text: str) -> Any:
    return field(metadata={"help": text})


def decide(arguments: Any, /, **values: Any) -> None:
    """Give frozen arguments what follows from others of them: for `__post_init__` alone."""
    for name, value in values.items():
        object.__setattr__(arguments, name, value)


def check(arguments: Any) -> None:
    """Every field by its type, which argparse checks for flags but not for YAML or Python: kinds,
    the choices of a `Literal`, and what an `Annotated` type says: the least whole number; an
    interval as it is written, "[0, 1)" holding 0 and not 1; another type that will do; `Beside`.

    One value where several may be is a list of it, and `no`, which YAML reads as False, is a word.
    A `~` at the beginning of a path is the home folder."""
    for name, hint in get_type_hints(type(arguments), include_extras=True).items():
        value, kind = getattr(arguments, name), without_none(hint)
        if value is None and kind is not hint:
            continue
        value = _converted(value, kind)
        if wanted := _unmet(value, kind):
            # YAML 1.1 reads 1e-4 as a string.
            is_word = isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value)
            hint = " (in YAML write 1.0e-4, not 1e-4)" if is_word else ""
            raise ArgumentError(f"--{name} must be {wanted}, but got {brief(value)}{hint}.")
        decide(arguments, **{name: value})
        for bound in getattr(kind, "__metadata__", ()):
            if isinstance(bound, Beside):
                bound.check(arguments, name)


def without_none(hint: Any) -> Any:
    """A type without the None that may take its place."""
    kinds = get_args(hint)
    return next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else hint


def _converted(value: Any, kind: Any) -> Any:
    if get_origin(kind) is list:
        values = value if isinstance(value, list | tuple) else [value]
        return [_converted(each, get_args(kind)[0]) for each in values]
    if value is False and get_origin(kind) is Literal and "no" in get_args(kind):
        return "no"
    return expanded(value) if kind == PathName and isinstance(value, str | Path) else value


def expanded(path: str | Path) -> str:
    """The path of a file or folder as a user writes it, with "~" for the home folder, and before it
    "local-dir:", which is how timm is told that a name is a folder's."""
    return os.path.expanduser(os.fspath(path).removeprefix("local-dir:"))


def _unmet(value: Any, kind: Any) -> str | None:
    """What the value must be and is not, in words."""
    parts, bounds = get_args(kind), ()
    if kind is Any:
        return None
    if get_origin(kind) is Literal:
        return None if value in parts else f"one of {', '.join(map(str, parts))}"
    if get_origin(kind) in WORDS:
        origin = get_origin(kind)
        if not isinstance(value, origin):
            return WORDS[origin]
        several = value.values() if origin is dict else value
        wanted = next(filter(None, (_unmet(each, parts[-1]) for each in several)), None)
        return wanted and f"{WORDS[origin]}, and each of it {wanted}"
    if get_origin(kind) is Annotated:
        kind, *bounds = parts
    if isinstance(value, tuple(bound for bound in bounds if isinstance(bound, type))):
        return None
    fits = isinstance(value, int | float if kind is float else kind)
    fits = fits and isinstance(value, bool) == (kind is bool)
    for bound in bounds:
        if isinstance(bound, int) and not (fits and value >= bound):
            return f"a whole number of at least {bound}"
        if isinstance(bound, str) and not (fits and _is_within(value, bound)):
            return "positive and finite" if bound == "(0, inf)" else f"in {bound}"
    return None if fits else WORDS[kind]


def _is_within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    edges = [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
    return math.isfinite(value) and (low < value < high or value in edges)


def brief(value: Any) -> str:
    """As Python writes it, in a line: a few lines of YAML may stand for more than memory holds."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 1, 100, 100
    return shown.repr(value)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The nearest of the known names as a question, with a space before it, if one is near."""
    near = get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_known(names: Iterable[Any], known: Collection[str], complaint: str) -> None:
    """Refuse the first name that is not known, with the complaint, and the nearest one."""
    for name in names:
        if name not in known:
            raise ArgumentError(f"{complaint} {name!r}.{did_you_mean(name, known)}")


def check_license(license: str | None) -> None:
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ArgumentError(f"license must be an identifier of the Hub, such as apache-2.0, but got {license!r}.")
