"""Checks that arguments share; their `ArgumentError` names flag, value and the way out."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_type_hints

from ..errors import ArgumentError


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


def check_choices(arguments: Any) -> None:
    """Literal fields, which argparse checks for flags but not for YAML or Python."""
    for name, hint in get_type_hints(type(arguments)).items():
        options = [hint, *get_args(hint)]
        choices = [value for option in options if _is_literal(option) for value in get_args(option)]
        value = getattr(arguments, name)
        if choices and value not in choices and not (value is None and type(None) in options):
            raise ArgumentError(
                f"--{name} must be one of {', '.join(map(str, choices))}, but got {value!r}."
            )


def _is_literal(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is Literal


def check_positive(arguments: Any, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is None:
            continue
        if not (_is_number(value) and value > 0):
            # YAML 1.1 reads 1e-4 as a string.
            hint = " (in YAML write 1.0e-4, not 1e-4)" if isinstance(value, str) else ""
            raise ArgumentError(f"--{name} must be positive and finite, but got {value!r}{hint}.")


def check_counts(arguments: Any, *names: str, at_least: int = 1) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and (not isinstance(value, int) or value < at_least):
            raise ArgumentError(
                f"--{name} must be a whole number of at least {at_least}, but got {value!r}."
            )


def check_range(arguments: Any, name: str, interval: str) -> None:
    """`interval` as it is written: "[0, 1)" holds 0 and not 1."""
    value = getattr(arguments, name)
    if value is None:
        return
    low, high = map(float, interval[1:-1].split(","))
    above = (value >= low if interval[0] == "[" else value > low) if _is_number(value) else False
    below = (value <= high if interval[-1] == "]" else value < high) if above else False
    if not below:
        raise ArgumentError(f"--{name} must be in {interval}, but got {value!r}.")


def check_license(license: str | None) -> None:
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ArgumentError(
            f"license must be an identifier of the Hub, such as apache-2.0, but got {license!r}."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
