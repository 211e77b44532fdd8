"""YAML by anybody: as plain values, and no more of them than the file has."""

from typing import Any

import yaml

MAX_CHARACTERS = 2**20


class _NoAliases(yaml.SafeLoader):
    """A few lines of aliases to aliases stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read.")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """What is no YAML, or nested too deep, or has aliases, or is a giant, is a ValueError."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters are more than the {MAX_CHARACTERS:,} of any.")
    try:
        return yaml.load(text, _NoAliases)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
