"""Arguments from flags, YAML files and Python, into one dataclass, and the checks they share."""

import dataclasses
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ArgumentError, errors_in_one_line
from .fields import brief, check_known, expanded, field_names, flag
from .help import Parser, groups_of
from .yaml_files import parse_yaml

T = TypeVar("T")


@dataclasses.dataclass(kw_only=True)
class _EveryCommand:
    config: str | None = flag("YAML file with any of these arguments; flags win.")
    quiet: bool = flag("No progress bars, no lines beside results, warnings and errors.", False)


OF_EVERY_COMMAND = field_names(_EveryCommand)
GONE = r"(normalized_)?linear_probe|probe_\w+"  # arguments of training in version 0.1.0, in the files that it left


def parser_of(cls: type, **page: Any) -> Parser:
    """Of a job's arguments; `page` is for `Parser`."""
    parser = Parser([*groups_of(cls), _EveryCommand], **page)
    # Of the class itself, whose defaults may differ from those of its groups.
    fields = [f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING]
    parser.defaults |= {field.name: field.default for field in fields}
    return parser


def parse_arguments(cls: type[T], argv: Sequence[str], parser: Parser | None = None) -> T:
    """Flags, and words without one, over the YAML file given by `--config` over defaults."""
    parser = parser or parser_of(cls)
    given = parser.given(argv)
    values = read_yaml(config, cls) if (config := given.get("config")) else {}
    parser.defaults |= values  # as --help tells them
    if "help" in given:
        print(parser.format_help(given["help"] == "all"), end="")
        raise SystemExit(0)
    values |= parser.given(argv, values)
    needed = [name for name, default in parser.defaults.items() if default is dataclasses.MISSING]
    if missing := ", ".join(f"--{name}" for name in needed if name not in values):
        parser.error(f"the following arguments are required: {missing}")
    return cls(**{name: value for name, value in values.items() if name not in OF_EVERY_COMMAND})


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
