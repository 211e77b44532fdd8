"""The command line: sub-commands, exit codes, messages without tracebacks."""

import signal
import subprocess
import sys

import pytest

from hf_protosphere import cli
from hf_protosphere.cli import main
from hf_protosphere.cli.commands import COMMANDS
from hf_protosphere.errors import TrainingInterrupted
from tests import SCRIPTS


def exit_code(*argv):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    return stopped.value.code


def test_usage(capsys):
    assert exit_code("--help") == 0
    usage = capsys.readouterr().out
    assert exit_code() == 2
    for command in COMMANDS:
        assert f"  {command} " in usage
    assert "no command 'fly'" in exit_code("fly")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_its_script_explain_themselves(command, capsys):
    assert exit_code(command, "--help") == 0
    assert f"usage: protosphere {command}" in capsys.readouterr().out
    if command != "demo":  # a page is one process; scripts/demo.py is that of `make demo`
        assert (SCRIPTS / f"{command.replace('-', '_')}.py").exists()


def test_what_the_user_can_mend_is_one_line_and_exit_code_2(tmp_path, capsys):
    argv = (
        "train",
        "--dataset_name",
        str(tmp_path / "nothing"),
        "--output_dir",
        str(tmp_path / "o"),
    )
    assert exit_code(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("protosphere train: error: --dataset_name")
    assert "Traceback" not in error


def test_of_several_processes_the_first_one_speaks(tmp_path, capsys, monkeypatch):
    argv = ("train", "--dataset_name", str(tmp_path / "nothing"))
    waited = []
    monkeypatch.setattr(cli, "LOCAL_RANK", 1)
    monkeypatch.setattr(cli.time, "sleep", waited.append)  # until the launcher ends this process
    assert exit_code(*argv) == 2
    assert waited == [cli.PATIENCE]
    assert "error: --dataset_name" in capsys.readouterr().err  # the launcher did not

    def interrupted(argv):
        raise TrainingInterrupted("stopped", signal.SIGTERM)

    monkeypatch.setitem(COMMANDS, "train", interrupted)
    assert exit_code("train") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ""


def test_help_of_the_script_is_quick_and_needs_no_training_code():
    code = (
        "import sys\n"
        "from hf_protosphere.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'hf_protosphere.training.setup' not in sys.modules\n"
        "assert 'datasets' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
