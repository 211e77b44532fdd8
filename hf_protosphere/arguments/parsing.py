"""Arguments from flags, YAML files and Python, into one dataclass, and the checks they share."""

import dataclasses
import re
import warnings
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ArgumentError, errors_in_one_line
from .fields import brief, check_known, expanded, field_names, flag
from .help import Parser, groups_of
from .yaml_files import parse_yaml

T = TypeVar("T")


@dataclasses.dataclass(kw_only=True)
class _File:
    config: str | None = flag("YAML file with any of these arguments; flags win.")


GONE = r"(normalized_)?linear_probe|probe_\w+"  # arguments of training in version 0.1.0, in the files that it left


def parse_arguments(
    cls: type[T], argv: Sequence[str], prog: str, description: str, *, positional: Sequence[str] = (), **page: Any
) -> T:
    """Flags over the YAML file given by `--config` over defaults.

    Args:
        positional: names of fields whose values may come first, without a flag; the last takes all that are left.
        page: what `--help` says beside the fields, as for `Parser`.
    """
    argv = _with_flags(argv, positional)
    parser = Parser([*groups_of(cls), _File], prog=prog, description=description, positional=positional, **page)
    # Read first: what the file gives is not required any more.
    config = Parser([_File], add_help=False).parse_known_args(argv)[0].config
    values = read_yaml(config, cls) if config else {}
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    # Of the class itself, whose defaults may differ from those of its groups.
    fields = [f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING]
    parser.set_defaults(**{f.name: f.default for f in fields} | values)  # as --help tells them
    values |= parser.given(argv)
    values.pop("config", None)
    return cls(**values)


def _with_flags(argv: Sequence[str], positional: Sequence[str]) -> list[str]:
    """Words without a flag at the beginning, each behind its own; the last one takes the rest."""
    argv = list(argv)
    for name in positional:
        count = len(list(takewhile(lambda word: word == "-" or word[:1] != "-", argv)))
        if count == 0:
            break
        taken = count if name == positional[-1] else 1
        argv = [*argv[taken:], f"--{name}", *argv[:taken]]
    return argv


def read_text(path: str, flag: str) -> str:
    with errors_in_one_line(f"{flag} {path} cannot be read", of=(OSError, ValueError)):
        return Path(expanded(path)).read_text(encoding="utf-8")


def read_yaml(path: str, cls: type, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments from a YAML file, checked against the fields of `cls`; over those of the file
    beside it that it names as its `base`, if it does."""
    with errors_in_one_line(f"--config {path} cannot be read", of=ValueError):
        values = parse_yaml(read_text(path, "--config"))
    if not values or not isinstance(values, dict):
        raise ArgumentError(f"--config {path} must hold 'name: value' lines, but got {brief(values)}.")
    base = values.pop("base", None)
    if path in above:
        raise ArgumentError(f"--config {path} is its own base: {' → '.join((*above, path))}.")
    beside = str(Path(expanded(path)).parent / expanded(str(base)))
    inherited = read_yaml(beside, cls, (*above, path)) if base else {}
    for name in [n for n in values if re.fullmatch(GONE, str(n)) and n not in field_names(cls)]:
        if values.pop(name) is True:
            warnings.warn(f"--config {path}: {name} is gone, `protosphere finetune` has probes.", FutureWarning, 2)
    check_known(values, field_names(cls), f"--config {path} has an unknown argument")
    return inherited | values
