"""What every command has from `main`, whatever it does."""

import json

import pytest

from hf_protosphere.cli import main
from hf_protosphere.cli.commands import COMMANDS
from hf_protosphere.errors import ArgumentError


def failing(error):
    def command(argv):
        raise error

    return command


def test_a_launcher_is_told_of_an_error_but_not_of_what_the_user_can_mend(tmp_path, monkeypatch):
    summary = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(summary))  # as torchrun does
    monkeypatch.setitem(COMMANDS, "train", failing(ArgumentError("--epochs must be positive.")))
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert not summary.exists()
    monkeypatch.setitem(COMMANDS, "train", failing(RuntimeError("out of luck")))
    with pytest.raises(RuntimeError, match="out of luck"):
        main(["train"])
    assert "RuntimeError: out of luck" in json.loads(summary.read_text())["message"]["message"]
