"""Completion by the Tab key, in a real bash, and what it costs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_protosphere.cli.commands import COMMANDS
from hf_protosphere.cli.completion import answer
from hf_protosphere.errors import ArgumentError


def candidates(*words):
    return answer("--complete", [*words])


def test_commands_flags_and_choices():
    assert candidates() == candidates("") == [*COMMANDS, "--help"]
    assert candidates("ev") == ["evaluate"]
    assert candidates("train", "--out") == ["--output_dir"]
    assert candidates("finetune", "run", "data", "--mode", "la") == ["layerwise"]
    assert candidates("train", "--no_pi") == ["--no_pictures"]
    assert candidates("train", "--help", "") == ["all"]
    assert candidates("train", "") == candidates("train", "--exclude", "") == candidates("fly", "--a") == []


def test_an_unknown_shell_is_one_line():
    for shell in ("tcsh", ""):
        with pytest.raises(ArgumentError, match=f"^--completion takes bash, zsh or fish, but got '{shell}'"):
            answer("--completion", [shell])


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_in_bash(tmp_path):
    """As bash does when Tab is pressed; files where the command knows none."""
    program = tmp_path / "protosphere"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hf_protosphere.cli "$@"\n')
    program.chmod(0o755)
    code = f"""
PATH="{tmp_path}:$PATH"
eval "$(protosphere --completion bash)"
complete -p protosphere
tab() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _protosphere; echo "${{COMPREPLY[*]}}"; }}
tab protosphere cal
tab protosphere calibrate run --sets ""
tab protosphere calibrate run --sc
tab protosphere predict ""
"""
    bash = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    how, *found = bash.stdout.splitlines()
    assert how == "complete -o bashdefault -o default -F _protosphere protosphere"
    assert found == ["calibrate", "lac aps raps", "--score", ""]
