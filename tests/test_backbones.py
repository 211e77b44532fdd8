"""Backbones of both libraries: built as asked, started from local weights, named when unknown."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.backbones import (
    build_backbone,
    has_nonnegative_features,
    pooled_features,
    source_of,
    timm_name,
    use_small_image_stem,
)
from hf_protosphere.checking import load_weights
from tests.models import TIMM, TRANSFORMERS, build, images


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


@pytest.mark.parametrize("name", [*TIMM, *TRANSFORMERS])
def test_what_noise_says_of_pooled_features_is_what_the_order_of_layers_says(name):
    config = ProtoSphereConfig(
        backbone=name, backbone_source="transformers" if name in TRANSFORMERS else "timm",
        backbone_kwargs=(TIMM | TRANSFORMERS)[name], image_size=32,
    )  # fmt: skip
    backbone, _ = build_backbone(config)
    frozen = next(backbone.children()).eval()
    modes = [module.training for module in backbone.modules()]
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    state = torch.get_rng_state()
    found = has_nonnegative_features(backbone, config)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in backbone.modules()] == modes
    assert not frozen.training
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert found == ("resnet" in name or "efficientnet" in name)  # a ReLU, or SiLU, at the end
    with torch.device("meta"):
        assert has_nonnegative_features(build_backbone(config)[0], config) == found


def test_signed_embeddings_by_default():
    model = build("test_resnet")
    assert (model.config.projection, model.config.projection_dim) == ("linear", 96)
    assert (model.protosphere(images(2, 3, 32, 32)).embeddings < 0).any()
    for backbone, options in (("test_vit", {}), ("test_resnet", {"objective": "cross_entropy"})):
        assert build(backbone, **options).config.projection == "none"
    assert build("test_vit", projection_dim=8).config.projection == "linear"
    assert build("test_resnet", projection="mlp").config.projection_dim == 128


def test_prototypes_on_nonnegative_features_are_warned_of_once(caplog):
    for options in ({"projection": "linear"}, {"prototypes": "class_means"}):
        build("test_resnet", num_labels=7, **{"projection": "none"} | options)
    build("test_vit", num_labels=7, projection="none")
    assert caplog.messages == []
    for _ in range(2):
        build("test_resnet", num_labels=7, projection="none")
    (message,) = caplog.messages
    assert "hardly nearer than a squared distance of 2 - 2*sqrt(1 - 1/K) = 0.148" in message


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
    larger = ProtoSphereForImageClassification.from_backbone(str(tmp_path / "vit"), num_labels=4, image_size=64)
    assert larger(images(2, 3, 64, 64)).logits.shape == (2, 4)
    for name, value in source.state_dict().items():
        assert torch.equal(model.protosphere.backbone.state_dict()[name], value), name
    model.save_pretrained(tmp_path / "ours")  # and what it saves needs the checkpoint no more
    (tmp_path / "vit").rename(tmp_path / "gone")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    pixels = images(2, 3, 32, 32)
    assert torch.equal(again(pixels).logits, model.eval()(pixels).logits)


SIZED = {
    "vit": (1, "embeddings.position_embeddings"),
    "deit": (2, "embeddings.position_embeddings"),
    "siglip_vision_model": (0, "embeddings.position_embedding.weight"),
    "test_vit": (1, "pos_embed"),
}


@pytest.mark.parametrize("backbone", SIZED)
@pytest.mark.parametrize("size", [16, 64])
def test_positions_are_resampled_for_another_image_size(backbone, size):
    others, name = SIZED[backbone]
    timms = backbone == "test_vit"
    options = {
        "backbone_source": "timm" if timms else "transformers",
        "backbone_kwargs": {"patch_size": 8} if timms else TRANSFORMERS["vit"],
    }
    old, new = (build(backbone, image_size=s, **options).eval().protosphere for s in (32, size))
    weights, before = old.backbone.state_dict(), new.backbone.state_dict()
    load_weights(new.backbone, weights)
    for key, value in new.backbone.state_dict().items():
        assert value.shape == before[key].shape
        assert key == name or torch.equal(value, weights[key]), key
    embedding = weights[name].reshape(others + 16, -1)
    got = new.backbone.state_dict()[name].reshape(others + (size // 8) ** 2, -1)
    assert torch.equal(got[:others], embedding[:others])
    grid = embedding[others:].T.reshape(1, -1, 4, 4)
    expected = F.interpolate(grid, 2 * [size // 8], mode="bicubic", antialias=True)
    torch.testing.assert_close(got[others:].T, expected[0].flatten(1))
    assert new(images(2, 3, size, size)).embeddings.isfinite().all()


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_biases_of_relative_positions_are_resampled():
    kwargs = {"backbone_kwargs": TIMM["beit_base_patch16_224"]}
    old, new = (build("beit_base_patch16_224", image_size=s, **kwargs) for s in (32, 64))
    table = old.protosphere.backbone.blocks[0].attn.relative_position_bias_table
    with torch.no_grad():
        table.copy_(torch.arange(52.0).view(-1, 1).clamp(max=49) * torch.tensor([0.0, 1.0]))
    load_weights(new.protosphere.backbone, old.protosphere.backbone.state_dict())
    got = new.protosphere.backbone.blocks[0].attn.relative_position_bias_table
    assert torch.equal(got[-3:], table[-3:])  # those of the class token
    for corner, theirs in ((0, 0), (14, 6), (15 * 15 - 1, 48)):
        torch.testing.assert_close(got[corner], table[theirs])


def test_a_transformer_that_takes_any_size_needs_no_resampling():
    kwargs = {"patch_size": 8, "dynamic_img_size": True}
    model = build("test_vit", backbone_kwargs=kwargs).eval()
    assert model(images(2, 3, 64, 48)).logits.shape == (2, 5)


def test_weights_that_do_not_fit_are_named():
    vit = {"backbone_source": "transformers", "backbone_kwargs": TRANSFORMERS["vit"]}
    for other in (build(), build("vit", **vit, num_channels=1)):
        with pytest.raises(ValueError, match=r"do not fit ViTModel \(.*embeddings\..* number"):
            load_weights(build("vit", **vit).protosphere.backbone, other.protosphere.backbone.state_dict())


def test_weights_for_other_options_are_an_error_in_one_line(tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    AutoModel.from_config(AutoConfig.for_model("vit", **TRANSFORMERS["vit"])).save_pretrained(tmp_path / "vit")
    for name, pretrained, kwargs in (
        ("test_vit", tmp_path / "vit.safetensors", {"mlp_ratio": 2}),
        (str(tmp_path / "vit"), True, {"intermediate_size": 8}),
    ):
        with pytest.raises(ValueError, match=r"do not fit (the image size, the chan|Vision.*another back)") as error:
            ProtoSphereForImageClassification.from_backbone(
                name, pretrained=pretrained, num_labels=3, backbone_kwargs=kwargs
            )
        assert "\n" not in str(error.value)


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
    with pytest.raises(ValueError, match=r"model\.safetensors is neither a file of weights nor"):
        ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=4)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=4)
    assert (model.config.backbone, model.config.image_mean) == ("test_resnet", [0.1, 0.2, 0.3])
    for name, value in source.state_dict().items():
        assert torch.equal(model.protosphere.backbone.state_dict()[name], value), name


@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_a_folder_that_holds_only_pickles_says_how_to_convert_it(tmp_path, monkeypatch, source):
    config = {"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1]}
    saved = config if source == "transformers" else {"architecture": "test_resnet"}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    torch.save({}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match=r"has no model\.safetensors|model\.safetensors is neither") as error:
        ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=2)
    assert len(str(error.value).splitlines()) == 1


def test_weights_of_a_backbone_are_checked_and_fetch_nothing(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="cut short or no safetensors file"):
        ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=2)
    with pytest.raises(ValueError, match="must not hold 'checkpoint_path'"):
        ProtoSphereForImageClassification.from_backbone(
            "test_resnet", num_labels=2, backbone_kwargs={"checkpoint_path": "x"}
        )
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model type 'bert' of transformers takes no images"):
        ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=2)


@pytest.mark.parametrize("kwargs", [{"global_pool": ""}, {"global_pool": None}, {"features_only": True}])
def test_a_backbone_pools_its_features(kwargs):
    with pytest.raises(ValueError, match=r"must leave the pooling to the backbone"):
        build("test_resnet", backbone_kwargs=kwargs)
    with pytest.raises(ValueError, match=r"pool its features to one vector.*\(2, 5, 8\)"):
        pooled_features(torch.ones(2, 5, 8))


def test_a_configuration_that_returns_tuples_is_asked_for_the_names(tmp_path):
    options = {"backbone_source": "transformers", "backbone_kwargs": TRANSFORMERS["vit"]}
    options["backbone_kwargs"] = options["backbone_kwargs"] | {"return_dict": False}
    assert build("vit", **options)(images(2, 3, 32, 32)).logits.shape == (2, 5)
