"""Loading is strict: what is damaged, or does not fit its configuration, is refused in one line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification

import hf_protosphere
from hf_protosphere import (
    ProtoSphereConfig,
    ProtoSphereForImageClassification,
    ProtoSphereModel,
)
from hf_protosphere.checking import has_new_head, read_header, read_object, stored_tensors
from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs.loading import load_classifier

CONV = "protosphere.backbone.conv1.0.weight"
VARIANCE = "protosphere.backbone.bn1.running_var"
COUNT = "protosphere.backbone.bn1.num_batches_tracked"


@pytest.fixture
def folder(saved, tmp_path):
    """A whole checkpoint, to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


def load(folder, **kwargs):
    return ProtoSphereForImageClassification.from_pretrained(folder, **kwargs)


def read(folder):
    # Copies: the tensors would lie in the file, which is about to be overwritten.
    return {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}


def change_tensors(folder, change):
    tensors = read(folder)
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def refused(folder, message, **kwargs):
    with pytest.raises(ValueError, match=message) as error:
        load(folder, **kwargs)
    assert len(str(error.value).splitlines()) == 1


def put(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


TENSORS = {
    "a missing tensor": (lambda t: t.pop(VARIANCE), rf"missing tensors: '{VARIANCE}'\."),
    "no prototypes": (lambda t: t.pop("head.weight"), r"missing tensors: 'head.weight'\."),
    "an unexpected tensor": (lambda t: t.update(x=torch.ones(3)), r"unexpected tensors: 'x'\."),
    "another shape": (put(CONV, lambda x: x[:, :2]), r"is \(16, 2, 3, 3\).*be \(16, 3, 3, 3\)"),
    "another dimension": (put("head.weight", lambda x: x[:, :8]), r"\(5, 8\).*be \(5, 96\)"),
    "more prototypes": (put("head.weight", lambda x: x.repeat(2, 1)), r"\(10, 96\).* 5 classes"),
    "integers": (put(CONV, lambda x: x.to(torch.int8)), f"'{CONV}' is stored as I8"),
    "complex numbers": (put("head.weight", lambda x: x * 1j), "'head.weight' is stored as C64"),
    "a float counter": (put(COUNT, lambda x: x.float()), f"'{COUNT}' is stored as F32"),
    "nan": (put("head.weight", lambda x: x / 0 * 0), "'head.weight' holds 480 values"),
    "inf in a buffer": (put(VARIANCE, lambda x: x / 0), f"'{VARIANCE}' holds 32 values"),
}  # fmt: skip


@pytest.mark.parametrize("damage", TENSORS)
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_tensors_that_do_not_fit(folder, damage):
    change, message = TENSORS[damage]
    change_tensors(folder, change)
    refused(folder, f"{folder} .*{message}")


CONFIGS = {
    "too few names": ({"id2label": {str(i): f"c{i}" for i in range(4)}}, r"be \(4, 96\) for 4 "),
    "no names": ({"id2label": None, "label2id": None}, "for 2 classes"),
    "a gap in the names": ({"id2label": {"0": "a", "2": "b"}}, "id2label must map 0, 1, 2"),
    "a list of names": ({"id2label": ["a", "b"]}, "id2label must map .* got .'a', 'b'."),
    "another backbone": ({"backbone": "test_vit"}, "missing .* and 77 more; unexpected .* and 89"),
    "another objective": ({"objective": "cross_entropy"}, "'classifier.bias' and 1 more"),
    "integer dtype": ({"dtype": "int64"}, "dtype must be one of float32, .* got 'int64'"),
    "unknown dtype": ({"dtype": "float33"}, "dtype must be one of float32, .* got 'float33'"),
}


@pytest.mark.parametrize("damage", CONFIGS)
def test_configurations_that_do_not_fit(folder, damage):
    values, message = CONFIGS[damage]
    change_config(folder, **values)
    refused(folder, message)


FILES = {
    "cut short": lambda data: data[:-1000],
    "cut in the header": lambda data: data[:1000],
    "too long": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "a pointer of git lfs": lambda data: b"version https://git-lfs.github.com/spec/v1\nsize 15\n",
    "another header": lambda data: (5).to_bytes(8, "little") + b'["a"]' + data,
}


@pytest.mark.parametrize("damage", FILES)
def test_files_that_are_not_whole(folder, damage):
    file = folder / "model.safetensors"
    file.write_bytes(FILES[damage](file.read_bytes()))
    refused(folder, f"{file} is cut short or no safetensors file")


def test_nothing_is_unpickled(folder, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    tensors = read(folder)
    torch.save(tensors, folder / "model.safetensors")
    refused(folder, "cut short or no safetensors file")
    for name in ("pytorch_model.bin", "adapter_model.bin"):
        torch.save(tensors, folder / name)
    (folder / "model.safetensors").unlink()
    for kwargs in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match=r"no file named model.safetensors"):
            load(folder, **kwargs)
    change_config(folder, transformers_weights="adapter_model.bin")
    refused(folder, "transformers_weights must not be set")


def test_a_new_head_on_purpose(folder):
    refused(folder, "'head.weight' is .*ignore_mismatched_sizes=True", num_labels=7)
    new = load(folder, num_labels=7, ignore_mismatched_sizes=True)
    assert torch.allclose(new.head.weight.norm(dim=-1), torch.ones(7), atol=1e-6)
    linear = load(folder, objective="cross_entropy", ignore_mismatched_sizes=True)
    assert linear.classifier.weight.shape == (5, 96)
    assert torch.equal(new.state_dict()[CONV], read(folder)[CONV])
    change_tensors(folder, put(CONV, lambda x: x[:, :2]))
    refused(folder, CONV, num_labels=7, ignore_mismatched_sizes=True)  # of the head only


def test_an_embedder_has_no_head_and_a_classifier_needs_one(folder, tmp_path):
    embedder, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(embedder) is ProtoSphereModel
    assert info["unexpected_keys"] == {"head.weight"}
    embedder.save_pretrained(tmp_path / "embedder")
    assert torch.equal(
        AutoModel.from_pretrained(tmp_path / "embedder").backbone.conv1[0].weight,
        embedder.backbone.conv1[0].weight,
    )
    refused(tmp_path / "embedder", "missing tensors: 'head.weight'")
    model = load(tmp_path / "embedder", num_labels=3, ignore_mismatched_sizes=True)
    assert model.prototypes.shape == (3, 96)
    change_tensors(folder, put(CONV, lambda x: x.to(torch.int8)))
    with pytest.raises(ValueError, match="stored as I8"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_devices(folder, dtype):
    expected = read(folder)
    model = load(folder, dtype=dtype, device_map="cpu")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(model.head.weight, expected["head.weight"].to(dtype))
    model.save_pretrained(folder)
    again = AutoModelForImageClassification.from_pretrained(folder)
    assert again.dtype == dtype
    assert load(folder, dtype=torch.float32).dtype == torch.float32
    assert {p.device.type for p in load(folder, device_map="meta").parameters()} == {"meta"}


def test_what_overflows_in_half_precision_is_refused(folder):
    change_tensors(folder, put(CONV, lambda x: x * 1e9))
    load(folder)
    refused(folder, r"not finite in torch.float16", dtype=torch.float16)


def test_weights_in_several_files_or_under_another_name(folder):
    model = load(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert torch.equal(load(folder).head.weight, model.head.weight)
    model.save_pretrained(folder / "variant", variant="half")
    assert torch.equal(load(folder / "variant", variant="half").head.weight, model.head.weight)
    file = folder / "variant" / "model.half.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder / "variant", f"{file} is cut short", variant="half")


def test_weights_that_are_given(saved):
    config = ProtoSphereConfig.from_pretrained(saved)
    tensors = read(saved)
    model = load(None, config=config, state_dict=dict(tensors))
    assert torch.equal(model.head.weight, tensors["head.weight"])
    del tensors[VARIANCE]
    with pytest.raises(ValueError, match=VARIANCE):
        load(None, config=config, state_dict=tensors)


def test_what_a_file_says_of_its_tensors(tmp_path):
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(2).bfloat16(), "c": torch.empty(0).long()}
    assert stored_tensors(tmp_path) == {}  # transformers will say that there are no weights
    save_file(tensors, tmp_path / "model.safetensors")
    save_file({"a": torch.ones(1).double()}, tmp_path / "model.wide.safetensors")
    read = {"a": ("F32", (2, 3)), "b": ("BF16", (2,)), "c": ("I64", (0,))}
    assert stored_tensors(tmp_path) == read
    wide = stored_tensors(tmp_path, variant="wide", trust_remote_code=True)
    assert wide == {"a": ("F64", (1,))}
    assert stored_tensors(None) == {}


def test_a_head_is_new_where_a_tensor_of_it_is():
    def info(missing=(), mismatched=()):
        return {"missing_keys": set(missing), "mismatched_keys": set(mismatched)}

    assert not has_new_head(info(missing=["protosphere.backbone.head.weight"]))
    assert has_new_head(info(missing=["classifier.bias"]))
    assert has_new_head(info(mismatched=[("head.weight", (5, 8), (4, 8))]))


# Files of a stranger


def shards(folder, change=lambda index: None):
    """The weights in several files, and their index changed."""
    model = load(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="500KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    return index["weight_map"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["weight_map"].update({CONV: "w.bin"}), "names 'w.bin', which is no .safe"),
        (lambda i: i["weight_map"].update({CONV: "../w.safetensors"}), "names '../w.safetensors'"),
        (lambda i: i["weight_map"].update({CONV: "/w.safetensors"}), "names '/w.safetensors'"),
        (lambda i: i["weight_map"].update({CONV: "gone.safetensors"}), "names 'gone.safetensors'"),
        (lambda i: i["weight_map"].update({CONV: 3}), "must map the names of tensors to files"),
        (lambda i: i.update(weight_map=["a"]), "must map the names of tensors to files"),
    ],
)
def test_an_index_names_only_whole_files_beside_it(folder, monkeypatch, change, message):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    (folder / "w.bin").write_bytes(b"")
    shutil.copy(folder / "model.safetensors", folder.parent / "w.safetensors")
    shards(folder, change)
    refused(folder, f"model.safetensors.index.json {message}")


def test_every_shard_is_checked(folder):
    name = shards(folder)[CONV]
    tensors = {k: v.clone() for k, v in load_file(folder / name).items()}
    save_file(tensors | {CONV: tensors[CONV].long()}, folder / name, metadata={"format": "pt"})
    refused(folder, f"'{CONV}' is stored as I64")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    refused(folder, f"{name} is cut short")


def test_an_adapter_brings_no_weights(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "user/other"}')
    refused(folder, "has an adapter_config.json")


BOMBS = {
    # What is changed in config.json, and a part of the line that refuses it.
    "num_labels": ({"num_labels": 10**9, "id2label": None}, "num_labels must be a number up to"),
    "names": ({"id2label": dict.fromkeys(range(10**6 + 1), "")}, "at most 1,000,000 classes"),
    "projection_dim": ({"projection": "mlp", "projection_dim": 2 * 10**7}, "whole number up to"),
    "projection": ({"projection": "mlp", "projection_dim": 2**20}, r"much larger.*\(1048576, 96\)"),
    "fitted": ({"rejection_score": "vim", "rejection_sizes": [2**20, 2**20]}, r"much larger.*\(96, 1048576\)"),
    "image_size": ({"image_size": 10**9}, "image_size must be a whole number up to 16384"),
    "crop_pct": ({"crop_pct": 1e-9}, "crop_pct must be larger"),
    "layers": ({"backbone_kwargs": {"layers": [10**5] * 4}}, "much larger than the weights"),
    "widths": ({"backbone_kwargs": {"channels": [10**5] * 4}}, "much larger than the weights"),
    "depth": ({"backbone": "test_vit", "backbone_kwargs": {"depth": 10**5}}, "much larger than"),
    "table": ({"backbone": "test_vit", "image_size": 2**14}, r"much larger.*\(1, 1048577, 64\)"),
    "numbers": ({"backbone_kwargs": {"layers": [10**6]}}, "must be at most 131072"),
    "transformers": ({"backbone": "vit", "backbone_source": "transformers",
                      "backbone_kwargs": {"num_hidden_layers": 10**5}}, "much larger than"),
}  # fmt: skip
EXPLODE = """
import json, re, resource, sys, time
from pathlib import Path
from hf_protosphere import ProtoSphereForImageClassification

folder, bombs = Path(sys.argv[1]), json.loads(sys.argv[2])
whole = json.loads((folder / "config.json").read_text())
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
for name, (values, message) in bombs.items():
    (folder / "config.json").write_text(json.dumps(whole | values))
    started = time.process_time()
    try:
        ProtoSphereForImageClassification.from_pretrained(folder)
        print(f"{name} was loaded")
    except ValueError as error:
        if not re.search(message, str(error)):
            print(f"{name}: {error}")
    if (seconds := time.process_time() - started) > 3:  # of a slow machine: a second of most
        print(f"{name} took {seconds:.1f} s")
"""


def test_what_would_fill_the_memory_is_refused_at_once(folder, python):
    given = {name: bomb for name, bomb in BOMBS.items() if name != "names"}
    ended = python("-c", EXPLODE, folder, json.dumps(given))
    assert (ended.returncode, ended.stdout, ended.stderr[-500:]) == (0, "", "")
    values, message = BOMBS["names"]
    with pytest.raises(ValueError, match=message):
        ProtoSphereConfig(**values)


def test_a_giant_header_or_configuration_is_not_read(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**27)  # sparse: it takes no room on the disk
    with pytest.raises(ArgumentError, match=r"config.json has 134,217,728 bytes, more than"):
        load_classifier(str(folder))
    with (folder / "model.safetensors").open("wb") as file:
        file.write((99 * 2**20).to_bytes(8, "little") + b"{")
        file.truncate(2**27)
    refused_file = f"{folder}/model.safetensors is cut short .*a header of 103,809,024 bytes"
    with pytest.raises(ValueError, match=refused_file):
        read_header(folder / "model.safetensors")


def test_deep_or_foreign_json_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for text, message in (
        ("[" * 10**5, "is not whole JSON: "),
        ("", "is not whole JSON: "),
        ("[1]", "must hold a JSON object, but holds a list"),
        ("\ud800", "is not whole JSON: "),
    ):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match=f"{path} {message}"):
            read_object(path)


def test_no_code_beside_a_checkpoint_is_run(folder, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    references = {"AutoConfig": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": references}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ArgumentError, match=f"^--model {folder} cannot be loaded: "):
        load_classifier(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": references}))
    with pytest.raises(ValueError, match="custom code"):
        ProtoSphereForImageClassification.from_backbone(str(folder), backbone_source="transformers", num_labels=2)
    assert not ran.exists()


def test_transformers_is_told_in_one_place_to_run_no_code():
    package = Path(hf_protosphere.__file__).parent
    found = {
        path.name: names
        for path in package.rglob("*.py")
        if (names := re.findall(r"\b(?:Auto\w+\.from_pretrained|pipeline)\(", path.read_text()))
        if path.name != "pipeline_protosphere.py"
    }
    assert found == {}  # `checking.auto` calls them all
