"""Fields of argument dataclasses, whose `help` is their documentation, and checks of their values.

Every `ArgumentError` names flag, value and the way out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import field
from difflib import get_close_matches
from itertools import chain
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ArgumentError

Count = Annotated[int, 1]  # at least
CountOrZero = Annotated[int, 0]
Positive = Annotated[float, "(0, inf)"]


def flag(text: str, default: Any = None) -> Any:
    """A field that need not be given; a default that is a list is copied."""
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**start, metadata={"help": text})


def required(text: str) -> Any:
    return field(metadata={"help": text})


def decide(arguments: Any, **values: Any) -> None:
    """Give frozen arguments what follows from others of them: for `__post_init__` alone."""
    for name, value in values.items():
        object.__setattr__(arguments, name, value)


def check(arguments: Any) -> None:
    """Every field by its type: the choices of a `Literal`, which argparse checks for flags but not
    for YAML or Python, and the bounds of an `Annotated` number, for any value but None: the least
    whole number, or an interval as it is written: "[0, 1)" holds 0 and not 1.

    Raises:
        ArgumentError: the first value that is not allowed.
    """
    for name, hint in get_type_hints(type(arguments), include_extras=True).items():
        value, kinds = getattr(arguments, name), (hint, *get_args(hint))
        if value is None and NoneType in kinds:
            continue
        for wanted in chain.from_iterable(_unmet(value, kind) for kind in kinds):
            # YAML 1.1 reads 1e-4 as a string.
            is_word = Positive in kinds and isinstance(value, str)
            hint = " (in YAML write 1.0e-4, not 1e-4)" if is_word else ""
            raise ArgumentError(f"--{name} must be {wanted}, but got {value!r}{hint}.")


def _unmet(value: Any, kind: Any) -> Iterator[str]:
    """What the value must be and is not."""
    if get_origin(kind) is Literal and value not in get_args(kind):
        yield f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is not Annotated or value is None:
        return
    for bound in kind.__metadata__:
        if isinstance(bound, int):
            if not isinstance(value, int) or value < bound:
                yield f"a whole number of at least {bound}"
        elif not _is_within(value, bound):
            yield "positive and finite" if kind == Positive else f"in {bound}"


def _is_within(value: Any, interval: str) -> bool:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return False
    low, high = map(float, interval[1:-1].split(","))
    edges = [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
    return low < value < high or value in edges


def check_known(names: Iterable[Any], known: Collection[str], complaint: str) -> None:
    """
    Raises:
        ArgumentError: the complaint about the first name that is not known, and the nearest one.
    """
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ArgumentError(f"{complaint} {name!r}.{hint}")


def check_license(license: str | None) -> None:
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ArgumentError(
            f"license must be an identifier of the Hub, such as apache-2.0, but got {license!r}."
        )
