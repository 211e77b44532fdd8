"""The parser of a command and its page of `--help`: what most people need, or, of `--help all`, everything."""

import dataclasses
import re
import shutil
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Collection, Sequence
from inspect import get_annotations
from textwrap import fill
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from ..errors import ArgumentError
from .fields import did_you_mean, without_none

INDENT = 30  # the column where explanations begin
WIDTH = 100  # at most: longer lines are hard to read
TRUTH = dict.fromkeys(("yes", "true", "True", *"ty1"), True) | dict.fromkeys(("no", "false", "False", *"fn0"), False)


class Parser(ArgumentParser):
    """Flags from dataclasses, a group each.

    Args:
        groups: dataclasses, of their own fields, without those that they inherit; a field's `help` is its explanation.
            Of two fields of one name the last one explains it, in the group of the first.
        positional: names of fields whose values need no flag.
        common: names of the fields that most people need, to which `--help` keeps.
        example: arguments to show after `prog`.
    """

    def __init__(
        self, groups: Sequence[type], *, positional: Sequence[str] = (),
        common: Sequence[str] = (), example: str = "", **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(allow_abbrev=False, add_help=False, argument_default=SUPPRESS, **kwargs)
        self.positional, self.common, self.example = positional, common, example
        self.sections: dict[str, list[str]] = {}
        self.fields: dict[str, dataclasses.Field] = {}
        self.kinds: dict[str, Any] = {}
        self.add_argument("-h", "--help", nargs="?", const="")
        for group in groups:
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", group.__name__.strip("_").removesuffix("Arguments")).lower()
            own, hints = _own_fields(group), get_type_hints(group)
            names = [field.name for field in own if field.name not in self.fields]
            self.sections[vars(group).get("_argument_group_name", words)] = names
            self.fields |= {field.name: field for field in own}
            self.kinds |= {field.name: without_none(hints[field.name]) for field in own}
            for name in names:
                self._add(name)
        factories = {name: field.default_factory for name, field in self.fields.items()}
        made = {name: factory() for name, factory in factories.items() if factory is not dataclasses.MISSING}
        self.defaults = {name: field.default for name, field in self.fields.items()} | made

    def _add(self, name: str) -> None:
        """The flag of a field, with its negation where it is on by default."""
        kind = self.kinds[name]
        one = get_args(kind)[0] if self._is_list(name) else kind
        choices = {str(choice): choice for choice in get_args(one)} if get_origin(one) is Literal else {}
        choices = TRUTH if one is bool else choices
        options: dict[str, Any] = {"type": one, "nargs": "+" if self._is_list(name) else None}
        if choices:
            options |= {"type": lambda word: choices.get(word, word), "choices": dict.fromkeys(choices.values())}
        more = {key: value for key, value in self.fields[name].metadata.items() if key != "help"}
        self.add_argument(f"--{name}", **options | more)
        if self._is_switch(name) and self.fields[name].default:
            self.add_argument(f"--no_{name}", action="store_false", dest=name)

    def _is_switch(self, name: str) -> bool:
        return self.kinds.get(name) is bool and self.fields[name].default is not None

    def _is_list(self, name: str) -> bool:
        return get_origin(self.kinds[name]) is list

    def _spelt(self, word: str, following: str) -> str:
        """A flag with underscores; a switch with its value, so that it takes no other word for that."""
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            return word
        flag = f"--{flag[2:].replace('-', '_')}"
        is_bare = self._is_switch(flag[2:]) and not equals and following not in TRUTH
        return f"{flag}=true" if is_bare else f"{flag}{equals}{value}"

    def given(self, argv: Sequence[str], of_file: Collection[str] = ()) -> dict[str, Any]:
        """What flags and words say, without any default; with "help" no more than that can be relied on.

        A word is the value of the first of `positional` that no flag gives. What a file gives takes one only where
        there are enough for all, and none before one that takes several."""
        namespace, rest = self.parse_known_args([*map(self._spelt, argv, [*argv[1:], ""])])
        if "help" in (values := vars(namespace)):
            return values
        if flags := [word for word in rest if word[:1] == "-" and word != "-"]:
            near = did_you_mean(flags[0].split("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(rest[rest.index(flags[0]) :])}.{near}")
        free = [name for name in self.positional if name not in values]
        several = [name for name in free[-1:] if self._is_list(name)]
        if several or len(rest) < len(free):
            free = [name for name in free if name in several or name not in of_file]
        values |= zip(free, rest)
        if several and len(rest) >= len(free):
            values[free[-1]] = rest[len(free) - 1 :]
        elif len(rest) > len(free):
            there = " and ".join(f"--{name}" for name in self.positional if name not in free)
            self.error(f"one word too many: {rest[len(free)]!r}{there and f', beside {there}'}")
        return values

    def completions(self, before: str, begun: str) -> list[str]:
        """What may come after a word, where something is begun: flags, or the choices of one; of other values none."""
        if begun.startswith("-"):
            return [*self._option_string_actions]
        choices = getattr(self._option_string_actions.get(before), "choices", None) or ()
        return ["all"] if before == "--help" else [*map(str, choices)]

    def error(self, message: str) -> NoReturn:  # argparse's prints a page of usage and exits
        end = "" if message.endswith("?") else ";"
        raise ArgumentError(f"{message.removesuffix('.')}{end} --help all explains every argument.")

    def format_help(self, everything: bool = False) -> str:
        width = min(WIDTH, shutil.get_terminal_size().columns)
        parts = [self._usage(width), fill(self.description or "", width)]
        if self.example:
            parts.append(f"example:\n  {self.prog} {self.example}")
        sections = {"most used": self.common} if self.common else {}
        if everything or not self.common:
            sections |= {title: [n for n in names if n not in self.common] for title, names in self.sections.items()}
        for title, names in sections.items():
            if names:
                parts.append("\n".join([f"{title}:", *(self._explained(name, width) for name in names)]))
        parts.append("Names may have hyphens for underscores: --batch-size is --batch_size.")
        if left := len(self.fields.keys() - {name for names in sections.values() for name in names}):
            parts[-1] = f"These are the most used; `{self.prog} --help all` explains the other {left} too."
        return "\n\n".join(parts) + "\n"

    def _usage(self, width: int) -> str:
        words = {name: name.upper() + " ..." * self._is_list(name) for name in self.positional}
        # A command that takes its file first has no flags for what the file says.
        needed = (self.defaults[name] is dataclasses.MISSING or name == "config" for name in words)
        words = [word if is_needed else f"[{word}]" for word, is_needed in zip(words.values(), needed)]
        return fill(" ".join(["usage:", self.prog, *words, "[arguments]"]), width, subsequent_indent=" " * 7)

    def _explained(self, name: str, width: int) -> str:
        """The flag, and what it is for beside it, or below where there is no room."""
        field, default = self.fields[name], self.defaults[name]
        flag = f"  --{name}"
        if self._is_switch(name):
            flag += f", --no_{name}" if field.default else ""
        else:
            flag += _value(name, self.kinds[name])
        text = field.metadata["help"] % ()  # argparse's %% for %
        if default is True:
            text += " (default: on)"
        elif default is not False and default not in (None, "", [], dataclasses.MISSING) and "y default" not in text:
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


def _value(name: str, kind: Any) -> str:
    """What follows a flag: its choices, the kind of number, or its name in capitals."""
    if get_origin(kind) is Literal:
        return f" {{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) is list:
        return _value(name, get_args(kind)[0]) + " ..."
    return {int: " N", float: " X", bool: " {true,false}"}.get(kind, f" {name.upper()}")
