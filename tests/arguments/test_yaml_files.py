"""YAML by anybody is plain values, or refused at once."""

import datetime

import pytest

from hf_protosphere.arguments.yaml_files import parse_yaml

LAUGHS = "\n".join(["a0: &a0 [lol, lol]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"aliases \(\*name\) are not read"),
        ("a: &a [*a]", "aliases"),
        ("<<: *x", "aliases"),
        ("a: " + "x" * 2**20, "1,048,579 characters are more than"),
        ("[" * 1500, "recursion"),
        ("a: [", "expected the node content"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("\x00", "special characters are not allowed"),
        ("a: 2026-99-99", "month must be in"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_read():
    assert parse_yaml("a: [1, x]\nb: {c: null}") == {"a": [1, "x"], "b": {"c": None}}
    assert parse_yaml("") is None
    assert parse_yaml("a: 2026-01-02") == {"a": datetime.date(2026, 1, 2)}
