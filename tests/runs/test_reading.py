"""What a stranger's file may hold: the right things, or a line that says what is wrong."""

import pytest

from hf_protosphere.errors import ArgumentError, DataError, TrainingError
from hf_protosphere.runs.reading import errors_in_one_line, read_json, read_json_lines, read_yaml


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_yaml, "a: &a [*a]", r"aliases \(\*name\) are not read"),
        (read_yaml, "", "must hold 'name: value' lines, but holds None"),
        (read_yaml, "- 1", "must hold 'name: value' lines, but holds .1"),
        (read_yaml, b"\xff\xfe\x00", "codec can't decode"),
        (read_json, "[" * 10**5, "is not whole JSON"),
        (read_json, "[]", "must hold a JSON object"),
        (read_json, b"\xff\xff", "is not whole JSON"),
        (read_json_lines, "{}\n{\n", "line 2, cannot be read"),
        (read_json_lines, "1\n", "line 1, cannot be read: it must be a JSON object, but is 1"),
        (read_json_lines, "[" * 10**5 + "\n", "line 1, cannot be read: RecursionError"),
        (read_json_lines, b"\xff\n", "codec can't decode"),
    ],
)
def test_what_is_refused(tmp_path, read, text, message):
    path = tmp_path / "file"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArgumentError, match=rf"^{path}.*{message}.* Write it again\.$") as error:
        read(path, "Write it again.")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_what_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_text("a: 1\n2: [x]\n")
    assert read_yaml(path) == {"a": 1, "2": ["x"]}
    path.write_text('{"a": 1}\n{"a": 2}\n{"a":')  # the last one was cut short
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_errors_of_others_are_one_line_and_those_for_the_user_stay():
    with (
        pytest.raises(TrainingError, match=r"^x: KeyError: 'a'\. Do y\.$"),
        errors_in_one_line("x", "Do y.", TrainingError),
    ):
        {}["a"]
    with pytest.raises(ArgumentError, match=r"^x: a b$"), errors_in_one_line("x"):
        raise ValueError("a\n  b")
    with pytest.raises(DataError, match=r"^as it is$"), errors_in_one_line("x"):
        raise DataError("as it is")
