"""A trained network for other classes: what is copied, what is trained, what adapters leave."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.errors import ArgumentError
from hf_protosphere.objectives import default_temperature
from hf_protosphere.runs.loading import kind_of
from hf_protosphere.training.adaptation import (
    _depth,
    classes_in_common,
    count_parameters,
    count_trained_parameters,
    first_prototypes,
    freeze,
    parameter_groups,
    with_new_classes,
    without_adapters,
)
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def build(names=("a", "b", "c"), **options):
    torch.manual_seed(0)
    defaults = {"backbone": "test_resnet", "image_size": 32, "id2label": dict(enumerate(names))}
    return ProtoSphereForImageClassification(ProtoSphereConfig(**defaults | options)).eval()


def arguments(**options):
    return TrainArguments(dataset_name="x", report_to="none", **options)


def test_the_network_is_copied_and_classes_are_matched_by_name():
    source = build(projection="mlp", projection_dim=8, softmax_temperature=0.2)
    model = with_new_classes(source, ["c", "x", "a", "y"], objective="ntce").eval()
    with torch.no_grad():
        ours, theirs = model(IMAGES), source(IMAGES)
    assert torch.equal(ours.embeddings, theirs.embeddings)
    torch.testing.assert_close(model.prototypes[[0, 2]], source.prototypes[[2, 0]])
    assert classes_in_common(source.config, ["c", "x", "a", "y"]) == {0: 2, 2: 0}
    assert model.config.objective == "ntce"
    assert model.config.label2id == {"c": 0, "x": 1, "a": 2, "y": 3}


def test_the_temperature_is_the_sources_for_the_same_task_only():
    source = build(softmax_temperature=0.3)

    def temperature(names="xyz", objective="ntce", **given):
        return with_new_classes(source, names, objective=objective, **given).config

    assert temperature().softmax_temperature == 0.3
    assert temperature(softmax_temperature=0.7).softmax_temperature == 0.7
    for config in (temperature("wxyz"), temperature(objective="nonl")):
        rule = default_temperature(config.objective, config.num_labels)
        assert config.softmax_temperature == rule


def test_a_linear_head_is_copied_to_a_linear_head_only():
    source = build(objective="cross_entropy")
    same = with_new_classes(source, ["b", "z"], objective="cross_entropy")
    assert torch.equal(same.classifier.weight[0], source.classifier.weight[1])
    other = with_new_classes(source, ["b", "z"], objective="nonl")
    assert not torch.allclose(other.prototypes[0], source.prototypes[1], atol=0.1)


def test_first_prototypes_are_class_means_of_the_classes_that_are_new():
    source = build()
    means = F.normalize(torch.randn(3, 96) + 1, dim=1)  # which share a direction
    model = with_new_classes(source, ["b", "y", "z"])
    first = first_prototypes(model, means, source.config)
    torch.testing.assert_close(first[0], source.prototypes[1].detach())
    centred = F.normalize(means - means.mean(0), dim=1)
    torch.testing.assert_close(first[1:], centred[1:])
    strangers = with_new_classes(source, ["x", "y", "z"])
    assert torch.equal(first_prototypes(strangers, means, source.config), means)
    assert torch.equal(first_prototypes(model, means, None), means)


def test_freezing_leaves_the_projection_and_the_head():
    model = build()
    freeze(model, arguments(freeze_backbone=True))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"protosphere.projection.0.{x}" for x in ("weight", "bias")} | {"head.weight"}
    assert count_trained_parameters(model) == 96 * 97 + 3 * 96
    fixed = build(prototypes="class_means", projection="none")
    with pytest.raises(ArgumentError, match=r"leaves nothing to train .* class_means prototypes"):
        freeze(fixed, arguments(freeze_backbone=True))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_merged_adapters_compute_what_adapters_do(backbone):
    model = build(backbone=backbone)
    before, plain = count_parameters(model), copy.deepcopy(model)
    freeze(model, arguments(lora_rank=2))
    assert count_parameters(model) == before
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name or ".backbone." not in name)
        if "lora_B" in name:  # zero at first: nothing changes
            torch.nn.init.normal_(parameter, std=0.1)
    merged = without_adapters(model)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        adapted, expected = model(IMAGES).logits, merged(IMAGES).logits
        torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(expected, plain(IMAGES).logits, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "test_resnet"},
        {"backbone": "test_vit"},
        {
            "backbone": "vit",
            "backbone_source": "transformers",
            "backbone_kwargs": {
                "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
                "intermediate_size": 64, "patch_size": 8,
            },
        },
    ],
)  # fmt: skip
def test_lower_layers_learn_slower(options):
    model = build(**options)
    groups = parameter_groups(model, 1.0, 0.05, 0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert {id(p) for p in named.values()} == rates.keys()
    ordered = [
        rates[id(p)] for name, p in named.items() if ".backbone." in name and "token" not in name and "pos" not in name
    ]
    assert ordered == sorted(ordered)
    assert ordered[0] < ordered[-1] <= rates[id(model.head.weight)] == 1.0
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert id(model.head.weight) not in decayed
    everything = parameter_groups(model, 1.0, 0.05, 0.5, decay_all=True)
    assert {group["weight_decay"] for group in everything} == {0.05}
    assert {id(p) for group in everything for p in group["params"]} == rates.keys()


def test_a_learned_temperature_never_decays():
    model = build(objective="ntce", learned_temperature=True)
    groups = parameter_groups(model, 1.0, 0.05, None, decay_all=True)
    spared = [p for group in groups if not group["weight_decay"] for p in group["params"]]
    assert len(spared) == 1 and spared[0] is model.head.log_temperature  # noqa: PT018


def test_training_leaves_the_backbone_as_it_was_or_a_plain_checkpoint(digits_folder, tmp_path):
    options = {
        "dataset_name": str(digits_folder), "epochs": 1, "batch_size": 16, "num_workers": 0,
        "report_to": ["none"], "pictures": False,
    }  # fmt: skip
    train(TrainArguments(**options, backbone="test_resnet", output_dir=str(tmp_path / "source")))
    source = ProtoSphereForImageClassification.from_pretrained(tmp_path / "source")
    more = {"finetune_from": str(tmp_path / "source"), "images_per_class": 8}
    results = train(
        TrainArguments(**options, **more, freeze_backbone=True, imprint=True, output_dir=str(tmp_path / "head"))
    )
    head = ProtoSphereForImageClassification.from_pretrained(tmp_path / "head")
    for name, tensor in source.protosphere.backbone.state_dict().items():  # statistics too
        assert torch.equal(head.protosphere.backbone.state_dict()[name], tensor)
    assert not torch.equal(head.prototypes, source.prototypes)
    assert results["train_counts"] == dict.fromkeys(["digit_0", "digit_1", "digit_2"], 8)
    assert results["provenance"]["from_pretrained_weights"] is True
    assert results["provenance"]["trainable_parameters"] == 96 * 97 + 3 * 96

    train(TrainArguments(**options, **more, lora_rank=2, output_dir=str(tmp_path / "lora")))
    lora = ProtoSphereForImageClassification.from_pretrained(tmp_path / "lora")
    assert lora.state_dict().keys() == source.state_dict().keys()
    assert not torch.equal(lora.prototypes, source.prototypes)


def test_what_a_name_stands_for(tmp_path):
    assert kind_of("resnet18") == kind_of("timm/resnet18.a1_in1k") == "timm"
    build().save_pretrained(tmp_path / "ours")
    assert kind_of(str(tmp_path / "ours")) == "protosphere"
    save_for_hf(timm.create_model("test_resnet"), tmp_path / "timm", safe_serialization=True)
    assert kind_of(str(tmp_path / "timm")) == "timm"
    (tmp_path / "other").mkdir()
    with pytest.raises(ArgumentError, match=r"--model .*other is no timm model, and no checkpoint"):
        kind_of(str(tmp_path / "other"))
    with pytest.raises(ArgumentError, match="there is no such folder"):
        kind_of(str(tmp_path / "missing" / "x"))
    (tmp_path / "other" / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(ArgumentError, match="has no model type"):
        kind_of(str(tmp_path / "other"))


def test_a_folder_that_timm_saved(tmp_path):
    source = timm.create_model("test_resnet", num_classes=7)
    save_for_hf(source, tmp_path, safe_serialization=True)
    model = ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=2)
    for name, tensor in model.protosphere.backbone.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])
    assert (model.config.backbone, model.config.image_size) == ("test_resnet", 160)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is neither a file"):
        ProtoSphereForImageClassification.from_backbone(str(tmp_path), num_labels=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.5, "freeze_backbone": True}, "--layer_decay 0.5 trains the backbone"),
        ({"lora_rank": 2, "freeze_backbone": True}, "--lora_rank 2 trains the backbone"),
        ({"layer_decay": 0.0}, r"--layer_decay must be in \(0, 1\]"),
        ({"lora_rank": 0}, "--lora_rank must be a whole number"),
        ({"images_per_class": 0}, "--images_per_class must be a whole number"),
        ({"finetune_from": "a", "pretrained": True}, "--finetune_from a and --pretrained both"),
        ({"finetune_from": "a", "resume_from": "b"}, "--resume_from b and --finetune_from a both"),
        ({"images_per_class": 2, "streaming": True}, "which --images_per_class needs"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ArgumentError, match=message):
        arguments(**options)


def test_the_depth_of_a_parameter_is_read_from_its_name():
    names = (
        "embeddings.cls_token",
        "layers.6.mlp.fc1.bias",
        "encoder.stages.2.layers.0.layer.1.weight",
        "norm.weight",
    )
    assert [*map(_depth, names)] == [(-1.0,), (6.0,), (2.0, 0.0), (math.inf,)]
