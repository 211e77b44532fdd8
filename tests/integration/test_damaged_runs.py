"""Every command that reads a run, a model or an index, over damaged copies of good ones: each ends
well or with one line and exit code 2, soon, and never with a traceback.

`pytest -m slow` walks a thousand cases and prints one line of figures.
"""

import json
import random
import resource
import shutil
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hf_protosphere.cli import main
from hf_protosphere.hub import export, publish
from tests import FIXTURES

DATA = FIXTURES / "version_0_1_0" / "blobs"
NETWORK = '{"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}'
TRAIN = [
    "train", "--dataset_name", DATA, "--backbone", "resnet", "--backbone_source", "transformers",
    "--backbone_kwargs", NETWORK, "--image_size", "32", "--batch_size", "8", "--num_workers", "0",
    "--report_to", "none", "--epochs", "2", "--keep_checkpoints", "2", "--no_pictures", "--output_dir", "run",
]  # fmt: skip
FINETUNE = [
    "finetune", "--model", "run", "--dataset_name", DATA, "--num_workers", "0", "--compare",
    "prototypes,knn", "--output_dir", "rows", "--resume",
]  # fmt: skip
SECONDS, MEMORY = 10, 4 * 2**30

MODEL = ["run/config.json", "run/model.safetensors", "run/preprocessor_config.json"]
SNAPSHOT, RESULTS, ARGUMENTS = "run/snapshot.safetensors", "run/results.json", "run/arguments.yaml"
METRICS, NEWEST = "run/metrics.jsonl", "run/checkpoints/step-00000008"
# Commands, and what they read.
COMMANDS = {
    "evaluate": (
        ["evaluate", "--model", "run", "--dataset_name", DATA, "--num_workers", "0"], MODEL,
    ),
    "calibrate": (
        ["calibrate", "run", "--dataset_name", DATA, "--false_rejection_rate", "0.5",
         "--output_dir", "calibrated"],
        [*MODEL, ARGUMENTS],
    ),
    "publish": (
        ["publish", "run", "--repo_id", "user/name"],
        [*MODEL, ARGUMENTS, RESULTS, RESULTS, "run/calibration.json"],
    ),
    "plot": (["plot", "run", "--output_dir", "pictures"], [METRICS, METRICS, SNAPSHOT, SNAPSHOT]),
    "export": (["export", "run", "--format", "torch_export"], MODEL),
    "index": (
        ["index", DATA / "test", "--model", "run", "--index_dir", "index", "--num_workers", "0"],
        [*MODEL, "index/index.arrow", "index/index.arrow"],
    ),
    "search": (
        ["search", "index", DATA / "test" / "class_0" / "1.png", "--model", "run"],
        [*MODEL, "index/index.arrow", "index/index.arrow"],
    ),
    "finetune": (FINETUNE, [*MODEL, "rows/transfer.yaml", "rows/rows.jsonl"]),
    "add-class": (
        ["add-class", "run", "new", DATA / "test" / "class_1", "--output_dir", "added"],
        [*MODEL, SNAPSHOT, SNAPSHOT, RESULTS],
    ),
    "train": (
        [*TRAIN, "--resume"],
        [ARGUMENTS, METRICS, "run/environment.json", "run/best/model.safetensors",
         *(f"{NEWEST}/{name}" for name in ("model.safetensors", "optimizer.bin", "progress.json",
                                           "random_states_0.pkl"))],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A trained and calibrated run, an index by it, and a transfer of it."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(TRAIN)
        run(["calibrate", "run", *COMMANDS["calibrate"][0][2:6]])
        run(COMMANDS["index"][0])
        run([word for word in FINETUNE if word != "--resume"])
    return folder


def run(words):
    main([str(word) for word in words])


@pytest.fixture
def bounded(monkeypatch):
    """What needs no test here and takes long: the Hub, pictures, and an exporter."""
    monkeypatch.setattr(publish, "_upload", lambda *_: "address")
    monkeypatch.setattr(export, "largest_difference", lambda *_: 0.0)
    written = ("model.pt2", lambda *given: given[-1].write_bytes(b""), lambda file: None)
    monkeypatch.setitem(export.FORMATS, "torch_export", written)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# Damages


VALUES = [
    None, True, False, 0, -1, 1, 2, 10**9, 2**63, 1e308, float("nan"), float("inf"), 0.5, "", "x",
    "../../x", "é\u202e\x1b[31m", [], [None], {}, {"x": 1}, [[[[]]]], "hf-hub:user/x",
]  # fmt: skip


def places(value, path=()):
    """All paths into a structure."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def changed(value, chance):
    """The structure with something in it replaced, or taken away."""
    *way, last = chance.choice([path for path in places(value) if path] or [("x",)])
    owner = value
    for key in way:
        owner = owner[key]
    if isinstance(value, dict | list) and chance.random() < 0.25 and last != "x":
        del owner[last]
    else:
        owner[last] = chance.choice(VALUES)
    return value


def structured(path, chance):
    """A wrong value in a file that stays what it is: JSON, YAML, safetensors or Parquet."""
    if path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text()), chance)))
    elif path.suffix == ".yaml":
        values = changed(yaml.safe_load(path.read_text()), chance)
        path.write_text(yaml.safe_dump(values, allow_unicode=True))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        row = chance.randrange(len(lines))
        lines[row] = json.dumps(changed(json.loads(lines[row]), chance))
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".safetensors":
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        name = chance.choice([*tensors])
        tensors[name] = chance.choice(
            [tensors[name] * torch.nan, tensors[name].flatten()[:1], tensors[name].to(torch.int8),
             tensors[name][None], tensors[name].double(), torch.zeros(0), tensors[name] * 1e30]
        ).contiguous()  # fmt: skip
        if chance.random() < 0.2:
            tensors[chance.choice(["x", "head.bias"])] = tensors.pop(name)
        save_file(tensors, path, {"format": "pt", "class_names": '["a"]', "split": "test"})
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        column = chance.choice(table.column_names)
        if chance.random() < 0.5:
            key, text = next(iter(table.schema.metadata.items()))
            said = json.dumps(changed(json.loads(text), chance))
            table = table.replace_schema_metadata({key: said})
        else:
            table = chance.choice([table.drop_columns(column), table[:0], table[:1]])
        pq.write_table(table, path)
    else:
        flipped(path, chance)


def flipped(path, chance):
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 8, 100])):
        data[chance.randrange(min(len(data), chance.choice([64, len(data)])))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path, chance):
    data = path.read_bytes()
    path.write_bytes(data[: chance.choice([0, 1, len(data) // 2, chance.randrange(len(data))])])


def gone(path, chance):
    path.unlink()
    if chance.random() < 0.3:
        path.mkdir()


def foreign(path, chance):
    texts = [b"\0" * 100, b"\xff\xfe", b"[" * 10**5, b"{}", b"[]", b"null", b'""', b"\n", b"{}\n",
             b"a: &a [*a]\n", b"\x80\x04."]  # fmt: skip
    path.write_bytes(chance.choice(texts))


DAMAGES = [structured, structured, structured, flipped, cut, gone, foreign]


@contextmanager
def damaged(good, folder, name, number):
    """A copy of what a command reads, with one file damaged; where it is, and which one it was."""
    chance = random.Random(f"{name} {number}")
    shutil.copytree(good, folder)
    path, damage = folder / chance.choice(COMMANDS[name][1]), chance.choice(DAMAGES)
    damage(path, chance)
    yield f"{name}, case {number}: {damage.__name__} {path.relative_to(folder)}"
    shutil.rmtree(folder)


def outcome(name, capfd):
    """0 or 2 of a command, or what went wrong."""
    capfd.readouterr()
    try:
        run(COMMANDS[name][0])
        return 0
    except SystemExit as stopped:
        error = capfd.readouterr().err
        message = error[error.rfind(f"protosphere {name}: error: ") :].rstrip("\n")
        whole = message.startswith("protosphere ") and "\n" not in message and len(message) < 3000
        return 2 if stopped.code == 2 and whole else f"exit code {stopped.code}: {error[-2000:]}"
    except BaseException:
        return traceback.format_exc()


def walk(good, tmp_path, monkeypatch, capfd, cases):
    """The outcomes of so many cases, of all commands in turn, and the longest one's seconds."""
    refused, problems, longest = 0, [], 0.0
    for number in range(cases):
        name = [*COMMANDS][number % len(COMMANDS)]
        with damaged(good, folder := tmp_path / "copy", name, number) as what:
            monkeypatch.chdir(folder)
            started = time.process_time()
            ended = outcome(name, capfd)
            seconds = time.process_time() - started
            monkeypatch.chdir(tmp_path)
        longest = max(longest, seconds)
        refused += ended == 2
        if ended not in (0, 2):
            problems.append(f"{what}\n{ended}")
        if seconds > SECONDS:
            problems.append(f"{what}\ntook {seconds:.1f} s")
    return refused, problems, longest


@pytest.mark.slow  # 7 s; `make fuzz` throws a thousand
def test_sixty_damaged_copies(good, tmp_path, monkeypatch, capfd, bounded):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    refused, problems, _ = walk(good, tmp_path, monkeypatch, capfd, 60)
    assert problems == []
    assert refused > 30  # most damage is noticed; what changes a weight a little cannot be


@pytest.mark.slow  # a thousand commands: minutes
def test_a_thousand_damaged_copies(good, tmp_path, monkeypatch, capfd, bounded):
    cases = 1000
    refused, problems, longest = walk(good, tmp_path, monkeypatch, capfd, cases)
    with capfd.disabled():
        print(
            f"\ndamaged runs, models and indexes: {cases:,} cases, {refused:,} refused, "
            f"{cases - refused - len(problems):,} accepted, tracebacks = {len(problems)}, longest {longest:.1f} s"
        )
    assert problems == []
