"""The page of `--help`: how a command is called, what most people need, then every group."""

import dataclasses
import re
import shutil
from argparse import Namespace
from collections.abc import Sequence
from copy import copy
from inspect import get_annotations
from textwrap import fill
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from ..errors import ArgumentError
from .fields import did_you_mean, field_names, without_none

INDENT = 30  # the column where explanations begin
WIDTH = 100  # at most: longer lines are hard to read


class Parser(HfArgumentParser):
    """Flags from dataclasses, a group each.

    Args:
        groups: dataclasses, of their own fields, without those that they inherit; a field's `help` is its explanation.
        positional: names of fields whose values need no flag.
        common: names of the fields that most people need, with which the page begins.
        example: arguments to show after `prog`.
    """

    def __init__(
        self, groups: Sequence[type], *, positional: Sequence[str] = (),
        common: Sequence[str] = (), example: str = "", **kwargs: Any,
    ) -> None:  # fmt: skip
        groups = [_own(group) for group in groups]
        super().__init__(groups, allow_abbrev=False, **kwargs)
        self.positional, self.common, self.example = positional, common, example
        self.sections = {group._argument_group_name: field_names(group) for group in groups}
        self.fields = {field.name: field for group in groups for field in dataclasses.fields(group)}
        hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
        self.kinds = {name: without_none(hint) for name, hint in hints.items()}

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """What the words say, without any default."""
        nothing = object()
        blank = Namespace(**{action.dest: nothing for action in self._actions})
        required = [action.dest for action in self._actions if action.required]
        for action in self._actions:
            action.required = False  # of a name that is misspelt, the misspelling is told
        namespace, unknown = self.parse_known_args(argv, blank)
        for name in self.positional[-1:]:  # the last of these may be behind the flags too
            is_list = get_origin(self.kinds[name]) is list and getattr(namespace, name) is nothing
            if unknown and is_list and all(word == "-" or word[:1] != "-" for word in unknown):
                vars(namespace)[name], unknown = unknown, []
        if unknown:
            near = did_you_mean(unknown[0].split("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{near}")
        if missing := [name for name in required if getattr(namespace, name) is nothing]:
            names = ", ".join(f"--{name}" for name in missing)
            self.error(f"the following arguments are required: {names}")
        return {name: value for name, value in vars(namespace).items() if value is not nothing}

    def error(self, message: str) -> NoReturn:  # argparse's prints a page of usage and exits
        end = "" if message.endswith("?") else ";"
        raise ArgumentError(f"{message.removesuffix('.')}{end} --help explains every argument.")

    def format_help(self) -> str:
        width = min(WIDTH, shutil.get_terminal_size().columns)
        parts = [self._usage(width), fill(self.description or "", width)]
        if self.example:
            parts.append(f"example:\n  {self.prog} {self.example}")
        sections = {"most used": self.common} if self.common else {}
        for title, names in self.sections.items():
            sections[title] = [name for name in names if name not in self.common]
        for title, names in sections.items():
            if names:
                lines = [self._explained(name, width) for name in names]
                parts.append("\n".join([f"{title}:", *lines]))
        parts.append("Names may have hyphens for underscores: --batch-size is --batch_size.")
        return "\n\n".join(parts) + "\n"

    def _usage(self, width: int) -> str:
        words = [self.prog]
        for name in self.positional:
            value = name.upper() + " ..." * (get_origin(self.kinds[name]) is list)
            # A command that takes its file first has no flags for what the file says.
            needed = _is_required(self.fields[name]) or name == "config"
            words.append(value if needed else f"[{value}]")
        for name, field in self.fields.items():
            if _is_required(field) and name not in self.positional:
                words.append(f"--{name}{_value(name, self.kinds[name])}")
        return fill(f"usage: {' '.join(words)} [arguments]", width, subsequent_indent=" " * 7)

    def _explained(self, name: str, width: int) -> str:
        """The flag, and what it is for beside it, or below where there is no room."""
        field, kind, default = self.fields[name], self.kinds[name], self.get_default(name)
        flag = f"  --{name}"
        if kind is bool and field.default is not None:  # a switch
            flag += f", --no_{name}" if field.default else ""
        else:
            flag += _value(name, kind)
        text = field.metadata["help"] % ()  # argparse's %% for %
        if default is True:
            text += " (default: on)"
        elif default is not False and default not in (None, "", []):
            shown = default if not isinstance(default, list) else " ".join(map(str, default))
            text += f" (default: {shown})"
        margin = " " * INDENT
        text = fill(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
        return flag.ljust(INDENT) + text[INDENT:] if len(flag) < INDENT - 1 else f"{flag}\n{text}"


def groups_of(cls: type) -> list[type]:
    """Those dataclasses among a class and its bases that have flags of their own, the last base first."""
    return [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base) and _own_fields(base)]


def _own_fields(group: type) -> list[dataclasses.Field]:
    """Fields that it does not inherit. One without help has no flag."""
    own = get_annotations(group)
    return [field for field in dataclasses.fields(group) if field.name in own and "help" in field.metadata]


def _own(group: type) -> type:
    """A dataclass of these alone, which is called as the class is: `ExportArguments` are the group "export"."""
    hints = get_type_hints(group, include_extras=True)
    fields = [(field.name, hints[field.name], copy(field)) for field in _own_fields(group)]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", group.__name__.strip("_").removesuffix("Arguments")).lower()
    name = {"_argument_group_name": vars(group).get("_argument_group_name", words)}
    return dataclasses.make_dataclass(group.__name__, fields, kw_only=True, namespace=name)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING is field.default_factory


def _value(name: str, kind: Any) -> str:
    """What follows a flag: its choices, the kind of number, or its name in capitals."""
    if get_origin(kind) is Literal:
        return f" {{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) is list:
        return _value(name, get_args(kind)[0]) + " ..."
    return {int: " N", float: " X", bool: " {true,false}"}.get(kind, f" {name.upper()}")
