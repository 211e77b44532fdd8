"""Backbones of both libraries: built as asked, started from local weights, named when unknown."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.backbones import pooled_features, source_of, timm_name, use_small_image_stem
from tests.models import TRANSFORMERS, build, images


@pytest.mark.parametrize(
    ("backbone", "kwargs", "channels"),
    [
        ("test_resnet", {}, 3),
        ("resnet10t", {}, 1),
        ("resnet18", {}, 3),
        (
            "resnet",
            {"backbone_source": "transformers", "backbone_kwargs": TRANSFORMERS["resnet"]},
            3,
        ),
    ],
)
def test_small_image_stem_keeps_the_resolution(backbone, kwargs, channels):
    def resolution(small_images):
        model = build(backbone, small_images=small_images, num_channels=channels, **kwargs).eval()
        backbone_model = model.protosphere.backbone
        with torch.no_grad():
            pixels = images(1, channels, 32, 32)
            if "backbone_source" in kwargs:
                return backbone_model(pixels).last_hidden_state.shape[-1]
            return backbone_model.forward_features(pixels).shape[-1]

    assert resolution(True) == 4 * resolution(False)


def test_small_image_stem_of_another_family_is_an_error():
    with pytest.raises(ValueError, match=r"small_images=True.*test_vit.*patch_size"):
        build("test_vit", small_images=True)


def test_unknown_backbones_suggest_near_names():
    with pytest.raises(ValueError, match=r"no backbone 'resnet81'.*'resnet18'"):
        build("resnet81")
    with pytest.raises(ValueError, match=r"no backbone 'dinov'.*'dinov2'"):
        build("dinov", backbone_source="transformers")


def test_nothing_is_downloaded_to_build_a_model(monkeypatch):
    # tests/conftest.py sets HF_HUB_OFFLINE; a socket would be the other way out.
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("tried to connect"))
    build()
    build("vit", backbone_source="transformers", backbone_kwargs=TRANSFORMERS["vit"])


def test_from_backbone_starts_from_local_timm_weights(tmp_path):
    source = timm.create_model("test_resnet", num_classes=0)
    file = tmp_path / "backbone.safetensors"
    save_file(source.state_dict(), file)
    model = ProtoSphereForImageClassification.from_backbone(
        "timm/test_resnet.r160_in1k", pretrained=file, num_labels=4, image_size=64
    )
    assert model.config.backbone_source == "timm"
    assert model.config.image_size == 64
    assert model.config.image_mean == list(source.pretrained_cfg["mean"])
    for name, value in source.state_dict().items():
        assert torch.equal(model.protosphere.backbone.state_dict()[name], value), name


def test_from_backbone_starts_from_a_transformers_checkpoint(tmp_path):
    config = AutoConfig.for_model("vit", image_size=32, **TRANSFORMERS["vit"])
    source = AutoModel.from_config(config, add_pooling_layer=False)
    source.save_pretrained(tmp_path / "vit")
    model = ProtoSphereForImageClassification.from_backbone(str(tmp_path / "vit"), num_labels=4)
    assert (model.config.backbone_source, model.config.backbone) == ("transformers", "vit")
    for name, value in source.state_dict().items():
        assert torch.equal(model.protosphere.backbone.state_dict()[name], value), name
    model.save_pretrained(tmp_path / "ours")  # and what it saves needs the checkpoint no more
    (tmp_path / "vit").rename(tmp_path / "gone")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    pixels = images(2, 3, 32, 32)
    assert torch.equal(again(pixels).logits, model.eval()(pixels).logits)


def test_from_backbone_names_what_it_cannot_find():
    with pytest.raises(ValueError, match=r"neither a timm model .*resnet18"):
        ProtoSphereForImageClassification.from_backbone("resnet1818", num_labels=4)


def test_pooled_features_of_every_output():
    pooled, hidden = torch.randn(2, 5, 1, 1), torch.randn(2, 7, 5)
    assert torch.equal(pooled_features(hidden[:, 0]), hidden[:, 0])  # timm's are as they come
    with_pooler = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
    assert torch.equal(pooled_features(with_pooler), pooled[:, :, 0, 0])  # as ResNets pool
    token = pooled_features(BaseModelOutput(last_hidden_state=hidden))
    assert torch.equal(token, torch.stack([hidden[0, 0], hidden[1, 0]]))  # the class token
    feature_map = torch.randn(2, 5, 3, 4)
    mean = pooled_features(BaseModelOutput(last_hidden_state=feature_map))
    assert mean[1, 2].item() == pytest.approx(sum(feature_map[1, 2].flatten().tolist()) / 12)


def test_a_small_image_stem_is_one_convolution_of_stride_one():
    backbone = timm.create_model("resnet18", num_classes=0, in_chans=1)
    use_small_image_stem(backbone, "resnet18")
    assert isinstance(backbone.maxpool, nn.Identity)
    assert backbone.conv1.weight.shape == (64, 1, 3, 3)
    assert (backbone.conv1.stride, backbone.conv1.padding) == ((1, 1), (1, 1))


def test_the_source_of_a_name(tmp_path):
    assert timm_name("hf-hub:timm/resnet18.a1_in1k") == "resnet18.a1_in1k"
    named = [build(name).protosphere.backbone for name in ("timm/test_resnet", "test_resnet")]
    assert str(named[0]) == str(named[1])
    assert source_of("timm/resnet18.a1_in1k") == source_of("resnet18") == "timm"
    assert source_of("facebook/dinov2-small") == "transformers"
    for config, source in (({"architecture": "resnet18"}, "timm"), ({}, "transformers")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert source_of(str(tmp_path)) == source


def test_from_backbone_takes_a_folder_that_timm_saved(tmp_path):
    source = timm.create_model("test_resnet", num_classes=0)
    saved = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"has no model\.safetensors, and nothing is unpickled"):
        ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=4)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=4)
    assert (model.config.backbone, model.config.image_mean) == ("test_resnet", [0.1, 0.2, 0.3])
    for name, value in source.state_dict().items():
        assert torch.equal(model.protosphere.backbone.state_dict()[name], value), name
