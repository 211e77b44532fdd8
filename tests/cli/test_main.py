"""`protosphere`: its usage, exit codes, messages without tracebacks, and the ways to start it."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from hf_protosphere import cli
from hf_protosphere.cli.commands import COMMANDS
from hf_protosphere.errors import ArgumentError, TrainingInterrupted
from tests import SCRIPTS


def exit_code(*argv):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    return stopped.value.code


def failing(error):
    def command(argv):
        raise error

    return command


def test_usage(capsys):
    assert exit_code("--help") == exit_code("-h") == 0
    usage = capsys.readouterr().out
    assert exit_code() == 2
    for command in COMMANDS.values():
        assert f"  {command.name} " in usage
        assert command.summary in usage
    for name, hint in (
        ("fly", "protosphere --help lists them."),
        ("tran", "Did you mean 'train'?"),
    ):
        assert exit_code(name) == 2
        error = capsys.readouterr().err
        assert error == f"protosphere: error: there is no command {name!r}. {hint}\n"


def test_what_the_user_can_mend_is_one_line_and_exit_code_2(tmp_path, capsys):
    nothing, output = str(tmp_path / "nothing"), str(tmp_path / "output")
    assert exit_code("train", "--dataset_name", nothing, "--output_dir", output) == 2
    error = capsys.readouterr().err
    assert error.startswith("protosphere train: error: --dataset_name")
    assert "Traceback" not in error


def test_terminals_show_messages_and_do_not_obey_them(capsys, monkeypatch):
    error = ArgumentError("no \x1b[2J\u202e\udcff class\nhere")
    monkeypatch.setitem(COMMANDS, "train", failing(error))
    assert exit_code("train") == 2
    assert capsys.readouterr().err == "protosphere train: error: no �[2J�� class\nhere\n"


def test_output_that_lacks_letters_ends_no_work(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setitem(COMMANDS, "train", lambda argv: print("─→ done"))
    cli.main(["train"])
    output.flush()
    assert output.buffer.getvalue() == b"?? done\n"


def test_a_disk_that_is_full_is_one_line_wherever_a_library_says_so(capsys, monkeypatch):
    def write():
        raise OSError(28, "No space left on device", "/cache/a.arrow")

    def generate(argv):
        try:
            write()
        except OSError as error:
            raise KeyError("cannot generate the data set") from error

    for command, place in ((lambda argv: write(), "/cache/a.arrow"), (generate, "a file of a lib")):
        monkeypatch.setitem(COMMANDS, "plot", command)
        assert exit_code("plot") == 2
        said = capsys.readouterr().err
        assert said.startswith(f"protosphere plot: error: {place}")
        assert "cannot be written: No space left on device. Make room" in said
        assert said.count("\n") == 1
    monkeypatch.setitem(COMMANDS, "plot", failing(KeyError("another")))
    with pytest.raises(KeyError):
        cli.main(["plot"])


def test_of_several_processes_the_first_one_speaks(tmp_path, capsys, monkeypatch):
    argv = ("train", "--dataset_name", str(tmp_path / "nothing"))
    waited = []
    monkeypatch.setattr(cli, "LOCAL_RANK", 1)
    monkeypatch.setattr(cli.time, "sleep", waited.append)  # until the launcher ends this process
    assert exit_code(*argv) == 2
    assert waited == [cli.PATIENCE]
    assert "error: --dataset_name" in capsys.readouterr().err  # the launcher did not
    stopped = failing(TrainingInterrupted("stopped", signal.SIGTERM))
    monkeypatch.setitem(COMMANDS, "train", stopped)
    assert exit_code("train") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cli, "LOCAL_RANK", 0)
    assert exit_code("train") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "protosphere train: stopped\n"


def test_a_launcher_is_told_of_an_error_but_not_of_what_the_user_can_mend(tmp_path, monkeypatch):
    summary = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(summary))  # as torchrun does
    monkeypatch.setitem(COMMANDS, "train", failing(ArgumentError("--epochs must be positive.")))
    assert exit_code("train") == 2
    assert not summary.exists()
    monkeypatch.setitem(COMMANDS, "train", failing(RuntimeError("out of luck")))
    with pytest.raises(RuntimeError, match="out of luck"):
        cli.main(["train"])
    assert "RuntimeError: out of luck" in json.loads(summary.read_text())["message"]["message"]


def test_the_installed_command_is_main():
    (installed,) = entry_points(group="console_scripts", name="protosphere")
    assert installed.load() is cli.main


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("demo", "inspect")])
def test_every_command_has_a_script(command, monkeypatch, capsys):
    # All but a page, which is one process; scripts/demo.py is that of `make demo`. A scripts/inspect.py
    # would be in the way of Python's own inspect for every script beside it.
    script = SCRIPTS / f"{command.replace('-', '_')}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: protosphere {command} ")


def test_the_package_runs_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf_protosphere.cli", "evaluate", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("hf_protosphere.cli", run_name="__main__")
    assert capsys.readouterr().out.startswith("usage: protosphere evaluate ")


HEAVY = (
    "datasets", "accelerate", "timm", "matplotlib", "scipy", "torchmetrics", "evaluate", "peft",
    "gradio", "onnx", "transformers.modeling_utils",  # a fifth of the time of all imports
    "hf_protosphere.modeling_protosphere",
    "hf_protosphere.training.train", "hf_protosphere.training.setup",
)  # fmt: skip


def test_the_list_of_commands_waits_for_no_library():
    code = "import sys, hf_protosphere.cli as cli; cli.main(['--help'])"
    code = f"import contextlib, sys\nwith contextlib.suppress(SystemExit):\n    {code}\nprint('loaded', *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.startswith("usage: protosphere COMMAND")
    assert not {"torch", "transformers", "numpy", "timm", "datasets", "huggingface_hub"} & {
        *loaded.split("\nloaded ")[1].split()
    }


def test_help_loads_no_code_of_jobs():
    """One process for all commands and `import hf_protosphere`, which load nothing heavy."""
    code = f"""
import contextlib, io, sys
import torch, transformers, hf_protosphere
from hf_protosphere.cli import main
for argv in [["--help"], *([name, "--help"] for name in {[*COMMANDS]})]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(argv)
print(*(name for name in {HEAVY} if name in sys.modules))
import matplotlib  # which refuses a notebook's MPLBACKEND where there is no such package
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"MPLBACKEND": "module://no_notebook.backend_inline"},
    )
    assert loaded.stdout.split() == []
