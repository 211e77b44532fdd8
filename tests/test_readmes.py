"""Every command and code block of every README runs; links, names and flags in them are right.

Commands run as they are written, in a folder where what they name exists: a run of digits, folders
of images, small networks in place of the Hub's. Flags that make them quick are added. What needs a
launcher, a cluster or an account is read by the launcher's own parser.
"""

import configparser
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import timm
import torch
from accelerate.commands.launch import launch_command_parser
from datasets import load_dataset
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch.distributed.run import get_args_parser
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_protosphere  # noqa: F401  (registers its models with the Auto classes)
from hf_protosphere.cli import main
from hf_protosphere.cli.commands import COMMANDS, _imported
from scripts import demo
from tests import ROOT, SCRIPTS
from tests.data import write_shard

PACKAGE = ROOT / "hf_protosphere"
# Not to be run here: each of these has a test that does.
CARDS = {
    PACKAGE / "metrics" / "evaluate_modules" / "neural_collapse" / "README.md":
        "tests/metrics/test_evaluate_module.py",
    **{ROOT / "model_cards" / name / "README.md": "tests/hub/test_card.py" for name in ("demo", "airnet-cifar10")},
}  # fmt: skip
READMES = [
    ROOT / "README.md",
    *sorted(SCRIPTS.rglob("README.md")),
    *sorted(PACKAGE.glob("*/README.md")),
]
EACH = pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
# Appended to commands as they are written; the last of two equal flags counts.
TRAINING = (
    "--epochs 1 --warmup_epochs 0 --batch_size 8 --num_workers 0 --max_eval_samples 20 --report_to none --no_pictures "
)
QUICK = {
    "train": TRAINING + "--backbone test_resnet --small_images false --pretrained false",
    "finetune": TRAINING + "--max_train_samples 48",
    "evaluate": "--num_workers 0 --max_train_samples 40 --max_eval_samples 20",
    "calibrate": "--num_workers 0",
    "inspect": "--worst 1",
    "index": "--num_workers 0",
    "search": "--num_workers 0",
    "predict": "--num_workers 0",
    "transfer-suite": "--dry_run",
    "release": "--dry_run",
}
# Run by `make test-slow`: seconds to minutes each, and the code behind them has its own tests.
SLOW = {
    "--compare all": "transfers in eight ways",
    "--mode lora": "peft takes seconds to import",
    "--shots": "draws of four numbers of images, three ways each",
    "--corruptions all": "75 corruptions of every image",
    "protosphere demo outputs/demo/run": "gradio takes seconds to import",
    "--format onnx": "torch traces the network",
    "--pictures outputs/seen": "draws three large pictures",
    "outputs/day": "integration/test_day.py runs these, one after the other",
    "scripts.theory": "minimises ten objectives",
    "load_without_package": "a process that must not have imported the package",
    "torchrun --nproc-per-node 2": "two processes, a launcher",
    "two_processes_cpu.yaml": "two processes, a launcher",
}


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int  # of the README, the first of the code

    def commands(self):
        """Words of each command, without comments."""
        for line in self.code.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks(readme):
    text = readme.read_text()
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1)


def commands(readme):
    return [words for block in blocks(readme) if block.language == "bash" for words in block.commands()]


def prose(readme):
    return re.sub(r"^```.*?^```$", "", readme.read_text(), flags=re.MULTILINE | re.DOTALL)


def inline_code(readme):
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(readme))]


def reason_to_wait(words):
    return next((why for what, why in SLOW.items() if what in " ".join(words)), None)


def test_every_readme_is_here():
    found = {*PACKAGE.rglob("README.md"), *SCRIPTS.rglob("README.md")}
    assert found | {ROOT / "README.md"} | CARDS.keys() == {*READMES, *CARDS}
    for test in CARDS.values():
        assert (ROOT / test).is_file()


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*READMES, *CARDS, *SCRIPTS.rglob("RESULTS.md")], ids=lambda path: path.parent.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):  # another site
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_table_of_commands_is_that_of_the_command_line():
    rows = re.findall(r"^\| \[`([\w-]+)`\]\((\S+)\) \| (.+) \|$", prose(ROOT / "README.md"), re.MULTILINE)
    assert [(name, text) for name, _, text in rows] == [
        (command.name, command.summary) for command in COMMANDS.values()
    ]
    for name, page, _ in rows:
        assert ["protosphere", name] in [words[:2] for words in commands(ROOT / page)], page


@EACH
def test_modules_that_are_named_exist(readme):
    for code in inline_code(readme):
        if re.fullmatch(r"hf_protosphere(\.\w+)+", code):
            parent, _, name = code.rpartition(".")
            assert hasattr(importlib.import_module(parent), name), code


def flags_of_commands():
    """Of all commands, with those of launchers that the README of the scripts speaks of."""
    known = {"config", "help", "quiet", "completion", "num_processes", "cpu", "multi_gpu", "num_machines", "nnodes",
             "nproc-per-node", "machine_rank"}  # fmt: skip
    for command in COMMANDS.values():
        fields = _imported(command.arguments).__dataclass_fields__
        known |= {*fields, *(f"no_{field}" for field in fields if fields[field].default is True)}
    return known


@EACH
def test_flags_and_commands_in_sentences_exist(readme):
    known = flags_of_commands()
    for code in inline_code(readme):
        assert {*re.findall(r"--([\w-]+)", code)} <= known, code
        words = shlex.split(code.removeprefix("ACCELERATE_USE_CPU=true "))
        if words[0] in STARTERS and len(words) > 1:
            check(words)


def test_tables_of_choices_are_those_of_the_parser():
    """A table that a flag is the head of has a row for each of its choices, in the README of its command."""
    found = {}
    for page in READMES:
        for flag, rows in re.findall(r"^\| `--(\w+)` \|.*\n\|[-|]+\n((?:\|.*\n)+)", prose(page), re.MULTILINE):
            found[page.parent.name, flag] = re.findall(
                r"`(\w+)`", " ".join(row.split("|")[1] for row in rows.splitlines())
            )
    modes = COMMANDS["finetune"].parser().kinds["mode"]
    assert found == {("transfer", "mode"): [*get_args(modes)]}


@EACH
def test_commands_and_code_run(readme, workplace, monkeypatch, request):
    if readme.parent.name in ("hub", "releases", "scripts"):  # with an account, as after `hf auth login`
        request.getfixturevalue("hub")
    names = {}
    for block in blocks(readme):
        if block.language == "python":
            # With the line numbers of the README in a traceback.
            exec(compile("\n" * (block.line - 1) + block.code, readme, "exec"), names)
        elif block.language == "bash":
            for words in block.commands():
                check(words)
                if reason_to_wait(words) is None:
                    run(words, monkeypatch)
        else:
            assert block.language in ("text", "bibtex")


LONG = [
    pytest.param(readme, words, id=f"{readme.parent.name}: {reason_to_wait(words)}")
    for readme in READMES
    for words in commands(readme)
    if reason_to_wait(words)
]


def test_every_reason_to_wait_is_needed():
    assert {reason_to_wait(case.values[1]) for case in LONG} == {*SLOW.values()}


@pytest.mark.slow
@pytest.mark.parametrize(("readme", "words"), [case for case in LONG if "test_day" not in case.id])
def test_commands_that_take_longer_run(readme, words, workplace, monkeypatch):
    run(words, monkeypatch)


@pytest.mark.slow  # a minute: the training of `make demo`, as it is
def test_the_demo_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    demo.run()
    assert "a_4.png: AutoModel 4 " in capfd.readouterr().out


def check(words):
    """What can be said of a command without running it: its program, files and flags exist."""
    program, *rest = (word for word in words if word != "...")
    if program == "protosphere":
        assert rest[0] in (*COMMANDS, "--completion"), rest
    elif program == "make":
        assert re.search(rf"^{rest[0]}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        extras = "\n".join(setup["options.extras_require"].values())
        for package in rest[1:]:
            assert re.search(rf"^{package}\b", extras, re.MULTILINE) or package == "deepspeed"
    elif program == "hf":
        program = Path(sys.executable).with_name("hf")
        assert "token" in subprocess.check_output([program, *rest, "--help"], text=True)
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), rest
    elif program == "sbatch":
        script = next(i for i, word in enumerate(rest) if word.endswith(".sbatch"))
        assert (ROOT / rest[script]).is_file()
        parse_script("train", rest[script + 1 :])
    elif program in ("torchrun", "accelerate") and any(word.endswith(".py") for word in rest):
        if program == "torchrun":
            arguments = get_args_parser().parse_args(rest)
        else:
            arguments = launch_command_parser().parse_args(rest[1:])
            assert arguments.config_file is None or (ROOT / arguments.config_file).is_file()
        assert (ROOT / arguments.training_script).is_file()
        parse_script(Path(arguments.training_script).stem, arguments.training_script_args)
    else:
        assert program in ("python", "export", "torchrun", "accelerate"), program
        assert program != "python" or (ROOT / rest[0]).is_file()


STARTERS = ("protosphere", "make", "pip", "hf", "python", "sbatch", "torchrun", "accelerate")


def parse_script(name, words):
    """By the command of that name; what the README leaves out is given."""
    required = {"train": "--dataset_name x", "evaluate": "--dataset_name x --model x",
                "finetune": "--dataset_name x --model x"}[name]  # fmt: skip
    words = [word for i, word in enumerate(words) if "my_run.yaml" not in words[i : i + 2]]
    return COMMANDS[name].parse([*required.split(), *words])


def run(words, monkeypatch):
    """In the working directory; of what is not run, `check` has said all that can be said."""
    program, *rest = words
    if program == "protosphere":
        if rest[0] == "demo" and "--space" not in rest:
            monkeypatch.setattr("gradio.Blocks.block_thread", lambda page: page.close())
        main([*rest, *quick(rest)])
    elif program == "python" and rest[0] == "-m":
        monkeypatch.setattr(sys, "argv", rest[1:])
        runpy.run_module(rest[1], run_name="__main__")
    elif program == "python":
        subprocess.run([sys.executable, *rest], check=True)
    elif reason_to_wait(words):  # a launcher
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        program = Path(sys.executable).with_name(program)
        subprocess.run([program, *rest, *quick(["train"])], check=True, env=environment)


def quick(words):
    """Flags to append: they win over those of the README."""
    flags = QUICK.get(words[0], "").split()
    if words[0] == "inspect" and "--model" in words:  # to which, untrained, all digits look alike
        flags += ["--near_duplicate", "1"]
    if "moco_v2.pth" in words:  # which is read
        flags = flags[: flags.index("--pretrained")]
    if "--shots" in words:
        flags += ["--min_steps", "1", "--trials", "2"]
    if words[0] == "train" and "--resume" not in words:
        flags.append("--overwrite")
    if words[0] == "train":
        count = "--num_train_images" if "--streaming" in words else "--max_train_samples"
        flags += [count, "48"]
    if "--config" in words and words[0] == "train":  # of a data set of the Hub
        flags += ["--dataset_name", "cifar10", "--label_column", "label"]
    return flags


@pytest.fixture
def workplace(built, tmp_path, monkeypatch):
    """A copy of what was built, for this test alone, as the working directory."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with what the READMEs name."""
    folder = tmp_path_factory.mktemp("readmes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build()
    return folder


def build():
    for name in ("scripts", "hf_protosphere"):
        Path(name).symlink_to(ROOT / name)
    demo.save_samples(demo.write_digits(demo.DATA), demo.SAMPLES)
    for split, count in {"train": 400, "test": 100}.items():
        some = load_dataset(str(demo.DATA), split=split).select(range(count))
        some.to_parquet(demo.DATA / f"{split}-00000-of-00001.parquet")
    main(
        f"train --dataset_name {demo.DATA} --output_dir {demo.RUN} --backbone test_resnet "
        "--epochs 2 --batch_size 64 --optimizer adamw --learning_rate 3e-3 --no_pictures "
        "--validation_fraction 0.2 --num_workers 0 --report_to none".split()
    )
    for name in ("cifar10", "first", "second", "cross_entropy", "nonl"):
        shutil.copytree(demo.RUN, Path("outputs") / name)
    model = AutoModelForImageClassification.from_pretrained(demo.RUN)
    model.remove_classes(["6", "7", "8", "9"])
    model.save_pretrained("outputs/zero_to_five")
    AutoImageProcessor.from_pretrained(demo.RUN).save_pretrained("outputs/zero_to_five")
    for name in ("resnet50", "timm/resnet18.a1_in1k"):  # small, in place of the Hub's
        backbone = timm.create_model("test_resnet", num_classes=3)
        save_for_hf(backbone, name, safe_serialization=True)
    weights = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save({"state_dict": {f"module.encoder_q.{name}": w for name, w in weights.items()}}, "moco_v2.pth")
    save_file(weights, "weights.safetensors")
    names = [str(i) for i in range(10)]
    anybodys = timm.create_model("test_resnet", num_classes=10)
    of_digits = {"label_names": names, "num_classes": 10}
    save_for_hf(anybodys, "path/to/my_classifier", model_config=of_digits, safe_serialization=True)
    for name in ("cifar10", "path/to/clothing"):
        Path(name).symlink_to(demo.DATA.resolve())
    shutil.copytree(demo.DATA, "path/to/imagenet")
    Path("path/to/imagenet/test-00000-of-00001.parquet").rename("path/to/imagenet/validation-00000-of-00001.parquet")
    Path("path/to/shards").mkdir()
    for split in ("train", "validation"):
        write_shard(Path(f"path/to/shards/{split}-0000.tar"), *load_dataset(str(demo.DATA), split="test")[:].values())
    save_images()


def save_images():
    """Folders of images: known and unknown digits, some to train on, some without labels."""
    rows = load_dataset(str(demo.DATA), split="test")[:]
    for i, (image, label) in enumerate(zip(rows["image"], rows["label"])):
        folder = f"known/{'test' if i % 2 else 'train'}/{label}" if label < 6 else "unknown"
        for place in [folder, *([f"path/to/my_images/{label}"] if label < 3 else [])]:
            Path(place).mkdir(parents=True, exist_ok=True)
            image.save(f"{place}/{i}.png")
    rows["image"][0].save("image.png")
    shutil.copytree("unknown", "path/to/photos")
    for i in (1, 2):
        Path("path/to/okapis").mkdir(exist_ok=True)
        rows["image"][i].save(f"path/to/okapis/okapi_{i}.jpg")
