"""Every command that writes a folder has it alone, and replaces nothing there that is not ours."""

import threading
from pathlib import Path

import pytest

from hf_protosphere.cli import main
from hf_protosphere.errors import ArgumentError
from hf_protosphere.hub.card import write_card
from hf_protosphere.runs.files import write_yaml
from hf_protosphere.runs.folders import held_folder
from tests.open_set.test_threshold import noise, save_checkpoint
from tests.runs.test_files import full_disk

# The command without its folder, the flag that gives it, and a file that it would replace.
COMMANDS = {
    "train": ("train --dataset_name DATA --batch_size 32 --resume", "--output_dir", "losses.py"),
    "finetune": (
        "finetune --model MODEL --dataset_name DATA --batch_size 32", "--output_dir", "config.json",
    ),
    "finetune --compare": (
        "finetune --model MODEL --dataset_name DATA --compare prototypes,knn --resume",
        "--output_dir", "prototypes/backbones.py",
    ),
    "inspect": ("inspect DATA", "--output_dir", "suspects.png"),
    "add-class": ("add-class MODEL new IMAGE", "--output_dir", "checking.py"),
    "calibrate": (
        "calibrate MODEL --dataset_name DATA --split test --num_workers 0",
        "--output_dir", "losses.py",
    ),
    "evaluate": (
        "evaluate --model MODEL --dataset_name DATA --num_workers 0", "--pictures", "cosines.png",
    ),
    "export": ("export MODEL", "--output_dir", "README.md"),
    "index": ("index IMAGES --model MODEL --overwrite", "--index_dir", "index.arrow"),
    "transfer-suite": (
        "transfer-suite SUITE --models MODEL --modes knn", "--output_dir", "table.md",
    ),
    "plot": ("plot RUN", "--output_dir", "curves.png"),
}  # fmt: skip


@pytest.fixture(scope="module")
def given(digits_folder, tmp_path_factory):
    """What stands in the commands for paths."""
    folder = tmp_path_factory.mktemp("given")
    names = [f"digit_{digit}" for digit in range(3)]
    save_checkpoint(folder / "model", with_snapshot=False, id2label=dict(enumerate(names)))
    (folder / "images").mkdir()
    write_yaml(folder / "suite.yaml", {"datasets": {"digits": {"dataset_name": str(digits_folder)}}})
    noise(1).save(folder / "images" / "a.png")
    return {
        "DATA": digits_folder, "MODEL": folder / "model", "IMAGES": folder / "images",
        "IMAGE": folder / "images" / "a.png", "RUN": folder / "model", "SUITE": folder / "suite.yaml",
    }  # fmt: skip


def error_of(command, given, folder, capsys):
    words, flag, _ = COMMANDS[command]
    argv = [str(given.get(word, word)) for word in words.split()]
    with pytest.raises(SystemExit) as stopped:
        main([*argv, flag, str(folder)])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_ours_is_named_and_stays(command, given, tmp_path, capsys):
    _, flag, name = COMMANDS[command]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    error = error_of(command, given, tmp_path, capsys)
    assert f": error: {flag} {tmp_path} holds {name}, not written by this package" in error
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.read_text() for path in files] == ["mine"]


@pytest.fixture
def held_elsewhere(tmp_path):
    """A folder that another thread holds, which is as good as another process."""
    held, done = threading.Event(), threading.Event()

    def hold():
        with held_folder(tmp_path / "folder", "--output_dir", ()):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    yield tmp_path / "folder"
    done.set()
    thread.join()


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "plot"])
def test_a_folder_that_another_writes_is_refused(command, given, held_elsewhere, capsys):
    error = error_of(command, given, held_elsewhere, capsys)
    flag = COMMANDS[command][1]
    assert f": error: {flag} {held_elsewhere} is being written by process " in error
    assert [path.name for path in held_elsewhere.iterdir()] == [".protosphere"]


@pytest.mark.parametrize("command", ["add-class", "calibrate", "evaluate"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(command, given, tmp_path, capsys):
    with full_disk(20_000):
        error = error_of(command, given, tmp_path, capsys)
    assert "cannot be written: File too large" in error
    assert [path.name for path in tmp_path.iterdir()] == [".protosphere"]


def test_so_is_a_card(held_elsewhere, tmp_path):
    with pytest.raises(ArgumentError, match="is being written by process"):
        write_card(held_elsewhere)
    Path(tmp_path / "README.md").write_text("mine")
    with pytest.raises(ArgumentError, match=r"holds README\.md, not written"):
        write_card(tmp_path)
