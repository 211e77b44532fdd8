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
from hf_protosphere.cli import commands
from hf_protosphere.cli.commands import COMMANDS
from hf_protosphere.cli.commands import _imported as imported
from hf_protosphere.errors import ArgumentError, TrainingInterrupted
from hf_protosphere.plots import text
from hf_protosphere.runs.processes import announce
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
    monkeypatch.setitem(COMMANDS, "train", failing(KeyboardInterrupt()))
    assert exit_code("train") == 128 + signal.SIGINT
    assert capsys.readouterr().err == "protosphere train: interrupted\n"


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
    "torch", "transformers", "datasets", "accelerate", "timm", "pandas", "matplotlib", "scipy", "sklearn",
    "torchmetrics", "evaluate", "wandb", "peft", "gradio", "faiss", "onnx", "huggingface_hub", "tqdm",
)  # fmt: skip


def test_the_list_of_commands_waits_for_no_library():
    code = "import sys, hf_protosphere.cli as cli; cli.main(['--help'])"
    code = f"import contextlib, sys\nwith contextlib.suppress(SystemExit):\n    {code}\nprint('loaded', *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.startswith("usage: protosphere COMMAND")
    assert not {"torch", "transformers", "numpy", "timm", "datasets", "huggingface_hub"} & {
        *loaded.split("\nloaded ")[1].split()
    }


def test_help_and_errors_in_arguments_wait_for_no_library():
    """One process for all commands: their help, a flag that there is not, and values of another kind; and one
    that is out of its bounds, which the dataclass refuses."""
    code = f"""
import contextlib, io, sys
from hf_protosphere.cli import main
out, err = io.StringIO(), io.StringIO()
wrong = [["train", "d", "--epochs", "-1"], ["finetune", "m", "d", "--mode", "none"],
         ["train", "d", "--objective", "x"], ["calibrate", "m", "d", "--coverage", "2"],
         ["evaluate", "m", "d", "more"], ["predict", "m"]]
ends = ["--help", "all"], ["--no_such"]
for argv in [["--help"], *wrong, *([name, *end] for name in {[*COMMANDS]} for end in ends)]:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        main(argv)
print(err.getvalue().count("error: "), *(name for name in {HEAVY} if name in sys.modules))
import matplotlib  # which refuses a notebook's MPLBACKEND where there is no such package
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env=os.environ | {"MPLBACKEND": "module://no_notebook.backend_inline"},
    )  # fmt: skip
    assert loaded.stdout.split() == [str(6 + len(COMMANDS))]


def test_quiet_leaves_results_warnings_and_errors(capsys, monkeypatch):
    def job(argv):
        announce("lines")
        text.say("results")

    monkeypatch.setitem(COMMANDS, "plot", job)
    quiet, loud = (["--quiet"], ["--quiet=true"], ["--quiet", "run"]), ([], ["--quiet", "false"], ["--quiet=no"])
    for words in (*quiet, *loud):
        cli.main(["plot", *words])
        assert (*capsys.readouterr(),) == ("results\n", "" if words in quiet else "lines\n")
        assert not text.is_quiet  # of what Python calls next
    assert exit_code("train", "--quiet", "--epochs", "x") == 2
    assert "invalid int value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("is_terminal", "flags", "bars"),
    [(False, "", 0), pytest.param(True, "--quiet", 0, marks=pytest.mark.slow), (True, "", 4)],  # each starts libraries
)
def test_bars_are_for_terminals(is_terminal, flags, bars):
    """Those of all libraries: each makes one, which says whether it is shown."""
    code = f"""
import sys
sys.stderr.isatty = lambda: {is_terminal}
from hf_protosphere import cli
def job(argv):
    from datasets.utils.tqdm import tqdm as of_datasets
    from huggingface_hub.utils import tqdm as of_hub
    from tqdm.auto import tqdm
    from transformers.utils import logging
    print("bars", sum(not make(range(3)).disable for make in (tqdm, of_datasets, of_hub, logging.tqdm)))
cli.COMMANDS["plot"] = job
cli.main(["plot", *"{flags}".split()])
"""
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=_no_bars())
    assert shown.stdout == f"bars {bars}\n"


def _no_bars():
    return {name: value for name, value in os.environ.items() if name not in cli.BARS}


def test_the_next_command_is_said_once_and_not_to_programs(capsys, monkeypatch, tmp_path):
    command = COMMANDS["index"]
    monkeypatch.setattr(commands, "_imported", lambda path: imported(path) if path != command.job else lambda _: None)
    argv = ["index", "m", str(tmp_path)]
    cli.main(argv)
    assert capsys.readouterr() == ("", "next: protosphere search outputs/index path/to/query.png\n")
    for rank, more in (("1", []), ("0", ["--quiet"])):
        monkeypatch.setenv("RANK", rank)
        cli.main([*argv, *more])
        assert capsys.readouterr() == ("", "")
