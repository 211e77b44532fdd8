"""Arguments from flags, YAML files and Python, into one dataclass, and the checks they share."""

from __future__ import annotations

import dataclasses
import math
import re
from argparse import ArgumentParser
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from .errors import ArgumentError

T = TypeVar("T")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse's prints a page of usage and exits
        raise ArgumentError(f"{message}; --help explains every argument.")


def parse_arguments(cls: type[T], argv: Sequence[str] | None, prog: str, description: str) -> T:
    """Flags over the YAML file given by `--config` over defaults.

    Raises:
        ArgumentError: an unreadable file, an unknown or malformed argument.
        SystemExit: as argparse does, for `--help`.
    """
    groups = [base for base in reversed(cls.__mro__) if "_argument_group_name" in vars(base)]
    parser = _Parser(groups, prog=prog, description=description)
    parser.add_argument("--config", help="YAML file with any of these arguments; flags win.")
    # Read first: what the file gives is not required any more.
    config_parser = ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config")
    config = config_parser.parse_known_args(argv)[0].config
    values = read_yaml(config, cls) if config else {}
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    # Of the class itself, whose defaults may differ from those of its groups.
    fields = [f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING]
    parser.set_defaults(**{f.name: f.default for f in fields} | values)
    namespace = vars(parser.parse_args(argv))
    del namespace["config"]
    return cls(**namespace)


def read_yaml(path: str, cls: type, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments from a YAML file, checked against the fields of `cls`; over those of the file
    beside it that it names as its `base`, if it does."""
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ArgumentError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ArgumentError(f"--config {path} must hold 'name: value' lines, but got {values!r}.")
    base = values.pop("base", None)
    if path in above:
        raise ArgumentError(f"--config {path} is its own base: {' → '.join((*above, path))}.")
    beside = str(Path(path).parent / str(base))
    inherited = read_yaml(beside, cls, (*above, path)) if base else {}
    check_known(values, field_names(cls), f"--config {path} has an unknown argument")
    return inherited | values


def field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


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


def write_yaml(arguments: Any, path: Path) -> None:
    path.write_text(yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


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
