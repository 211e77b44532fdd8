"""Weights of a file get to the backbone by whatever prefix, and nothing else does."""

import pickle
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
    assert f"{len(body(trained))} of {len(body(trained))} tensors loaded" in caplog.text
    assert f"0 missing; 2 ({prefix}fc.bias, {prefix}fc.weight) left over" in caplog.text


@pytest.mark.parametrize("names", [["state_dict"], ["model"], ["teacher", "backbone"]])
def test_of_checkpoints_with_other_things_in_them(trained, tmp_path, names):
    values = body(trained)
    for name in reversed(names):
        values = {name: values}
    torch.save(values | {"epoch": 3}, tmp_path / "w.pth")
    assert_loaded(from_file(f"local-dir:{tmp_path / 'w.pth'}"), trained)


def test_a_folder_and_the_shards_of_one(trained, tmp_path):
    save_file(trained, tmp_path / "model.safetensors")
    assert_loaded(from_file(tmp_path), trained)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds none of model\.safetensors"):
        from_file(tmp_path / "empty")
    with pytest.raises(ValueError, match="there is no such file or folder"):
        from_file(tmp_path / "gone.pth")


def test_another_network_is_refused(trained, tmp_path, caplog):
    path = tmp_path / "w.pth"
    less = body(trained)
    gone = less.popitem()[0]
    gone = next(name for name in reversed(less) if not name.endswith("tracked")) if "tracked" in gone else gone
    less.pop(gone, None)
    torch.save(less, path)
    with pytest.raises(ValueError, match=rf"1 \({gone}\) missing.*--partial_weights"):
        from_file(path)
    from_file(path, partial_weights=True)
    deeper = body(trained) | {"layer1.9.conv1.weight": torch.zeros(1)}  # all of ours, and more blocks
    torch.save(deeper, path)
    with pytest.raises(ValueError, match=r"left over.*--partial_weights"):
        from_file(path)
    assert_loaded(from_file(path, partial_weights=True), trained)
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="another backbone than ResNet"):
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

    cases = [
        lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})),
        lambda path: torch.save({"a": Bomb()}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: path.write_bytes(b""),
        giant, compressed, recursive, cut, nan,
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
    load_from(timm.create_model("test_vit", num_classes=0, img_size=64), tmp_path / "w.pth")


def test_without_a_connection_a_line_says_at_once_what_helps(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    for name in ("test_resnet", "user/no-such-backbone"):
        with pytest.raises((OSError, ValueError), match=r"cannot be reached.*pretrained=FOLDER_OR_FILE") as it:
            ProtoSphereForImageClassification.from_backbone(name, num_labels=2)
        assert "\n" not in str(it.value)
    assert time.monotonic() - started < 5
    assert not constants.HF_HUB_OFFLINE
