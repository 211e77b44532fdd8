"""Weights of a file get to the backbone by whatever prefix, and nothing else does."""

import json
import pickle
import re
import time
import zipfile

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.checking import load_from, read_weights


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(3)
    return {k: v.clone() for k, v in timm.create_model("test_resnet", num_classes=5).state_dict().items()}


def body(weights):
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}


def from_file(path, **options):
    options = {"num_labels": 4, "image_size": 32} | options
    return ProtoSphereForImageClassification.from_backbone("test_resnet", pretrained=path, **options)


def assert_loaded(model, weights):
    own = model.protosphere.backbone.state_dict()
    for name, value in body(weights).items():
        assert torch.equal(own[name], value), name


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "model.", "module.encoder_q."])
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
def test_by_every_prefix_and_kind_of_file(trained, tmp_path, prefix, suffix, caplog):
    path, named = tmp_path / f"w.{suffix}", {prefix + name: value for name, value in trained.items()}
    save_file(named, path) if suffix == "safetensors" else torch.save(named, path)
    assert_loaded(from_file(path), trained)
    after = f" after {prefix!r}" if prefix else ""
    said = f"{path}{after}: {len(body(trained))} of {len(body(trained))} tensors loaded; 0 missing; "
    assert said + "2 left over: fc.bias, fc.weight." in caplog.text


@pytest.mark.parametrize("names", [["state_dict"], ["model"], ["teacher", "backbone"]])
def test_of_checkpoints_with_other_things_in_them(trained, tmp_path, names):
    values = body(trained)
    for name in reversed(names):
        values = {name: values}
    torch.save(values | {"epoch": 3}, tmp_path / "w.pth")
    assert_loaded(from_file(f"local-dir:{tmp_path / 'w.pth'}"), trained)


def test_of_two_networks_the_one_that_is_kept(trained, tmp_path):
    """As MoCo's encoder_q beside its encoder_k, or DINO's teacher beside its student."""
    both = {f"{of}.backbone.{n}": v if of == "teacher" else -v for n, v in body(trained).items()
            for of in ("student", "teacher")}  # fmt: skip
    torch.save(both, tmp_path / "w.pth")
    assert_loaded(from_file(tmp_path / "w.pth"), trained)


def test_a_folder(trained, tmp_path):
    save_file(trained, tmp_path / "model.safetensors")
    assert_loaded(from_file(tmp_path), trained)
    assert_loaded(from_file(f"local-dir:{tmp_path}"), trained)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "gone.pth"):
        with pytest.raises(ValueError, match=rf"{name} is neither a file of weights nor a folder with model\.saf"):
            from_file(tmp_path / name)


def shards(folder, weights, weight_map=None):
    """In a folder as transformers saves large networks: two files and their index."""
    names = sorted(weights)
    files = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in {*files.values()}:
        save_file({name: weights[name] for name in names if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files | (weight_map or {})}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_folder_of_shards(trained, tmp_path):
    shards(tmp_path, {f"backbone.{name}": value for name, value in trained.items()})
    assert len({*read_weights(tmp_path)}) == len(trained)
    assert_loaded(from_file(tmp_path), trained)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names 'model-00002-of-00002\.safetensors', which is no"):
        from_file(tmp_path)


def test_shards_lie_beside_their_index(trained, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(trained, tmp_path / "outside.safetensors")
    shards(inside, trained, {"x": "../outside.safetensors"})
    with pytest.raises(ValueError, match=r"names '\.\./outside\.safetensors', which is no"):
        from_file(inside)
    (inside / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(ValueError, match=r"must map the names of tensors to files"):
        from_file(inside)


def test_names_that_only_their_authors_gave_are_converted_by_timm(tmp_path):
    torch.manual_seed(4)
    source = timm.create_model("test_convnext", num_classes=3)
    theirs = {}
    for name, value in source.state_dict().items():
        name = re.sub(r"^stem\.(\d)", r"downsample_layers.0.\1", name)
        name = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", name)
        name = re.sub(r"^stages\.(\d)\.blocks", r"stages.\1", name).replace("conv_dw", "dwconv")
        name = name.replace("mlp.fc", "pwconv").replace("head.norm", "norm").replace("head.fc", "head")
        theirs[name] = value
    torch.save({"model": theirs, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, tmp_path / "w.pth")
    target = timm.create_model("test_convnext", num_classes=0)
    load_from(target, tmp_path / "w.pth")
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_another_network_is_refused(trained, tmp_path, caplog):
    path = tmp_path / "w.pth"
    less = body(trained)
    gone = "layer4.0.bn2.weight"
    del less[gone]
    torch.save(less, path)
    with pytest.raises(ValueError, match=rf"1 missing: {gone};.*--partial_weights"):
        from_file(path)
    from_file(path, partial_weights=True)
    deeper = body(trained) | {"layer1.9.conv1.weight": torch.zeros(1)}  # all of ours, and more blocks
    torch.save(deeper, path)
    with pytest.raises(ValueError, match=r"left over.*--partial_weights"):
        from_file(path)
    assert_loaded(from_file(path, partial_weights=True), trained)
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"do not fit ResNet.*\(0 of .* another backbone"):
        from_file(path, partial_weights=True)


def test_colours_are_those_of_the_images(trained, tmp_path):
    torch.save(trained, tmp_path / "w.pth")
    model = from_file(tmp_path / "w.pth", num_channels=1)
    first = next(model.protosphere.backbone.parameters())
    assert torch.allclose(first, next(iter(trained.values())).sum(1, keepdim=True))


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_hostile_files_are_refused_in_one_line(trained, tmp_path):
    def giant(path):
        torch.save({next(iter(trained)): torch.zeros(1).expand(2**40)}, path)

    def compressed(path):
        torch.save(trained, tmp_path / "plain.pth")
        with zipfile.ZipFile(tmp_path / "plain.pth") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))

    def recursive(path):
        values = {}
        values["model"] = values
        torch.save(values, path)

    def cut(path):
        torch.save(trained, path)
        path.write_bytes(path.read_bytes()[:-5000])

    def nan(path):
        first = next(iter(trained))
        torch.save(trained | {first: trained[first] * float("nan")}, path)

    def nowhere(path):
        torch.save({name: value.to("meta") for name, value in trained.items()}, path)

    cases = [
        lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})),
        lambda path: torch.save({"a": Bomb()}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: path.write_bytes(b""),
        giant, compressed, recursive, cut, nan, nowhere,
    ]  # fmt: skip
    for number, write in enumerate(cases):
        path = tmp_path / f"{number}.pth"
        write(path)
        with pytest.raises(ValueError, match=rf"{number}\.pth") as it:
            from_file(path)
        assert "\n" not in str(it.value), number
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="cut short or no safetensors"):
        read_weights(tmp_path / "w.safetensors")


def test_positions_are_resampled(tmp_path):
    source = timm.create_model("test_vit", num_classes=0, img_size=160)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    target = timm.create_model("test_vit", num_classes=0, img_size=64)
    load_from(target, tmp_path / "w.pth")
    theirs, own = source.pos_embed[:, 1:], target.pos_embed[:, 1:]  # behind the class token
    assert own.shape[1] == 16 < theirs.shape[1]
    assert torch.allclose(own.mean(1), theirs.mean(1), atol=0.02)
    assert torch.equal(target.blocks[0].norm1.weight, source.blocks[0].norm1.weight)


def test_without_a_connection_a_line_says_at_once_what_helps(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    for name in ("test_resnet", "user/no-such-backbone"):
        with pytest.raises((OSError, ValueError), match=r"cannot be reached.*pretrained=WHERE") as it:
            ProtoSphereForImageClassification.from_backbone(name, num_labels=2)
        assert "\n" not in str(it.value)
    assert time.monotonic() - started < 5
    assert not constants.HF_HUB_OFFLINE
