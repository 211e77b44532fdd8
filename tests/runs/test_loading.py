"""Loading is strict: what is damaged, or does not fit its configuration, is refused in one line."""

import json
import shutil

import pytest
import torch
from transformers.utils import logging as transformers_logging

from hf_protosphere import (
    ProtoSphereConfig,
)
from hf_protosphere.cli import main
from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs.loading import kind_of, load_classifier, load_config
from tests.test_checking import TENSORS, change_config, change_tensors, read


@pytest.fixture
def folder(saved, tmp_path):
    """A whole checkpoint, to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


def test_the_configuration_alone_needs_no_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "preprocessor_config.json").unlink()
    assert load_config(str(folder)).to_dict() == ProtoSphereConfig.from_pretrained(folder).to_dict()


@pytest.mark.parametrize("load", [load_config, load_classifier])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is not a ProtoSphere checkpoint: "),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a ProtoSphere checkp"),
        (lambda folder: change_config(folder, objective="hope"), "cannot be loaded: .*hope"),
        (lambda folder: change_config(folder, id2label={"0": "a", "2": "b"}), "cannot be loaded: "),
        (
            lambda folder: change_config(folder, architectures=["ProtoSphereModel"]),
            r"holds \['ProtoSphereModel'\], not a ProtoSphere",
        ),
        (
            lambda folder: change_config(folder, architectures=None, model_type="vit"),
            r"holds \['vit'\], not a ProtoSphere",
        ),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_what_is_no_classifier_is_said_in_one_line(folder, load, damage, message):
    damage(folder)
    verbosity = transformers_logging.get_verbosity()
    with pytest.raises(ArgumentError, match=rf"^--finetune_from {folder}:? {message}") as error:
        load(str(folder), "--finetune_from")
    assert len(str(error.value).splitlines()) == 1
    assert transformers_logging.get_verbosity() == verbosity


def test_a_classifier_comes_with_its_image_processor(folder):
    model, processor = load_classifier(str(folder))
    assert torch.equal(model.head.weight, read(folder)["head.weight"])
    assert processor.crop_size["height"] == 32


def test_what_a_name_stands_for(folder, tmp_path):
    assert kind_of(str(folder)) == "protosphere"
    assert kind_of("resnet18") == kind_of("timm/resnet18.a1_in1k") == "timm"
    change_config(folder, model_type="vit")
    assert kind_of(str(folder)) == "transformers"
    change_config(folder, architecture="resnet18")
    assert kind_of(str(folder)) == "timm"
    (folder / "config.json").write_text('{"layers": 3}')
    for name, message in (
        (str(folder), "has no model type of transformers, nor"),
        (str(tmp_path / "nothing"), "there is no such folder"),
        ("resnet_of_nobody", "is no timm model, and no checkpoint either: "),
    ):
        with pytest.raises(ArgumentError, match=f"^--model {name}.*{message}"):
            kind_of(name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: change_tensors(folder, TENSORS["nan"][0]),
        lambda folder: change_tensors(folder, TENSORS["more prototypes"][0]),
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"return_dict": False}, None),
        ({"dtype": None}, None),
        ({"label2id": {}}, None),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "its weights are quantised"),
        ({"backbone": None}, "backbone must be the name of an architecture"),
        ({"per_layer_config": {"0": {}}}, "AttributeError"),
        ({"architectures": 5}, "TypeError"),
        ({"image_size": 64}, r"makes \(3, 32, 32\), its config.json asks for .3, 64"),
        ({"backbone_kwargs": {"layers": "many"}}, "cannot be loaded: "),
    ],
)
def test_a_configuration_by_a_stranger(folder, values, message):
    change_config(folder, **values)
    if message is None:
        assert load_classifier(str(folder))[0](torch.zeros(1, 3, 32, 32)).logits.shape == (1, 5)
        return
    with pytest.raises(ArgumentError, match=f"^--model {folder} .*{message}") as error:
        load_classifier(str(folder))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_size": {"height": 10**9, "width": 10**9}}, "must name a crop_size but 1000000000"),
        ({"size": {"shortest_edge": -1}}, "must name a size but -1"),
        ({"image_mean": ["a"]}, "cannot classify an image"),
        ({"rescale_factor": float("nan")}, "no point of the sphere"),
        ({"image_processor_type": "Evil"}, "cannot be loaded: "),
        ({"do_resize": 5, "resample": "x"}, ""),
    ],
)
def test_an_image_processor_by_a_stranger(folder, values, message):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ArgumentError, match=f"^--model {folder} .*{message}") as error:
        load_classifier(str(folder))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, "null", "\x00"])
@pytest.mark.parametrize("read", [kind_of, load_config, load_classifier])
def test_a_configuration_that_is_none(folder, read, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ArgumentError, match=rf"^--model {folder} is no.*: .*config.json") as error:
        read(str(folder))
    assert len(str(error.value).splitlines()) == 1
