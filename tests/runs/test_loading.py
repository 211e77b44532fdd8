"""A classifier that is damaged, or does not fit its configuration, is refused in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.cli import main
from hf_protosphere.data.transforms import build_image_processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=5)
    folder = tmp_path_factory.mktemp("saved")
    ProtoSphereForImageClassification(config).save_pretrained(folder)
    build_image_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A whole checkpoint, to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


def read(folder):
    # Copies: the tensors would lie in the file, which is about to be overwritten.
    return {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}


def change_prototypes(folder, change):
    tensors = read(folder)
    tensors["head.weight"] = change(tensors["head.weight"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: change_prototypes(folder, lambda rows: rows / 0 * 0),
        lambda folder: change_prototypes(folder, lambda rows: rows.repeat(2, 1)),
        lambda folder: (folder / "model.safetensors").write_bytes(b"nothing"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: change_config(folder, backbone_kwargs={"wings": 2}),
        lambda folder: change_config(folder, backbone="resnet81"),
    ],
)
def test_the_command_line_refuses_in_one_line(folder, digits_folder, capfd, damage):
    damage(folder)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--model", str(folder), "--dataset_name", str(digits_folder)])
    assert stopped.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith(f"protosphere evaluate: error: --model {folder} ")
    assert len(error.splitlines()) == 1
