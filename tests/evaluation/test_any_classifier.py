"""Classifiers of transformers and timm, from folders, beside what their libraries make of images."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_protosphere import ProtoSphereForImageClassification
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.evaluation.any_classifier import AnyClassifier, ClassificationLayer, load_any
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.metrics.neural_collapse import METRICS, NeuralCollapse

NAMES = ["digit_2", "digit_0", "digit_1", "digit_9"]  # not in the order of the data set's


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory):
    torch.manual_seed(0)
    network, folder = timm.create_model("test_resnet", num_classes=4), tmp_path_factory.mktemp("timm")
    config = {"input_size": (3, 32, 32), "num_classes": 4, "crop_pct": 1.0}
    network.pretrained_cfg |= config
    save_for_hf(network, folder, model_config={"label_names": NAMES, "num_classes": 4}, safe_serialization=True)
    return folder, network.eval()


@pytest.fixture(scope="module")
def of_transformers(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("transformers")
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=dict(enumerate(NAMES))
    )
    network = ResNetForImageClassification(config)
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, network.eval()


@pytest.mark.parametrize("source", ["of_timm", "of_transformers"])
def test_the_report_is_that_of_its_own_library(source, digits_folder, request):
    folder, network = request.getfixturevalue(source)
    report = evaluate(
        EvaluateArguments(model=str(folder), dataset_name=str(digits_folder), num_workers=0, class_means=False)
    )
    data = load_image_dataset(str(digits_folder), validation_fraction=0).splits["test"][:]
    images = [image.convert("RGB") for image in data["image"]]
    labels = torch.tensor([NAMES.index(f"digit_{label}") for label in data["label"]])
    with torch.no_grad():
        if source == "of_timm":
            transform = create_transform(**resolve_data_config(pretrained_cfg=network.pretrained_cfg))
            features = network.forward_head(
                network.forward_features(torch.stack([transform(x) for x in images])), pre_logits=True
            )
            logits, weight = network.get_classifier()(features), network.get_classifier().weight
        else:
            pixels = ViTImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
            features = network.resnet(pixels).pooler_output.flatten(1)
            logits, weight = network(pixels).logits, network.classifier[1].weight
    assert report["accuracy"] == (logits.argmax(-1) == labels).float().mean().item()
    assert report["neural_collapse"]["absent_classes"] == [3]
    assert [row["class"] for row in report["classes"]] == NAMES
    metric = NeuralCollapse(4, features.shape[1])
    metric.update(F.normalize(features, dim=1), labels)
    expected = metric.compute(F.normalize(weight.detach(), dim=1))
    for info in METRICS:
        if info.name in expected:
            assert report["neural_collapse"][info.name] == pytest.approx(expected[info.name], rel=1e-3), info.name


def test_the_rest_of_evaluate_takes_it_too(of_transformers, of_timm, digits_folder, tmp_path):
    report = evaluate(
        EvaluateArguments(
            model=str(of_timm[0]), compare=str(of_transformers[0]), dataset_name=str(digits_folder), num_workers=0,
            by_layer=True, corruptions=["contrast"], severities="1", ood_dataset=str(digits_folder), ood_split="train",
        )
    )  # fmt: skip
    assert [layer["layer"] for layer in report["by_layer"]][-1] == "embeddings"
    assert len(report["by_layer"]) > 2
    assert report["comparison"]["model"] == str(of_transformers[0])
    assert set(report["robustness"]["errors"]) == {"contrast"}
    assert report["ood"]["num_images"] == 120


def test_ours_are_loaded_as_ever(saved):
    model, _ = load_any(str(saved))
    assert isinstance(model, ProtoSphereForImageClassification)


def test_where_several_layers_could_be_the_classifier_it_is_said(tmp_path):
    network = timm.create_model("test_vit", num_classes=4)
    network.head_drop = torch.nn.Linear(64, 4)
    network.config = ResNetConfig(num_labels=4)
    with pytest.raises(ArgumentError, match=r"2 linear layers with 4 outputs.*one of head_drop, head"):
        AnyClassifier(network)


def test_classes_without_names_are_numbered_and_those_of_one_name_told_apart():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3))
    network.config = ResNetConfig(num_labels=3)
    assert AnyClassifier(network).config.class_names == ["0", "1", "2"]
    network.config = ResNetConfig(id2label={0: "crane", 1: "crane", 2: "owl"})
    assert AnyClassifier(network).config.class_names == ["crane (0)", "crane (1)", "owl"]
    assert ClassificationLayer(network).class_names == ["crane", "crane", "owl"]


def test_what_is_no_trained_classifier_is_refused(of_transformers, of_timm, digits_folder, tmp_path):
    of_transformers[1].resnet.save_pretrained(tmp_path / "headless")
    ViTImageProcessor().save_pretrained(tmp_path / "headless")
    with pytest.raises(
        ArgumentError, match=r"headless is no trained classifier: its weights lack 'classifier\.1\.bias'"
    ):
        load_any(str(tmp_path / "headless"))

    for name in ("hostile", "lacking", "others"):
        (tmp_path / name).mkdir()
        config = json.loads((of_timm[0] / "config.json").read_text())
        weights = load_file(of_timm[0] / "model.safetensors")
        if name == "hostile":
            config["model_args"]["checkpoint_path"] = "/etc/passwd"
        elif name == "lacking":
            del weights["fc.weight"]
        else:
            config["label_names"] = ["cat", "dog", "owl", "cow"]
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file(weights, tmp_path / name / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArgumentError, match="model_args must not hold 'checkpoint_path'"):
        load_any(str(tmp_path / "hostile"))
    with pytest.raises(ArgumentError, match=r"lacking is no trained classifier: its weights lack '.*fc\.weight'"):
        load_any(str(tmp_path / "lacking"))
    with pytest.raises(DataError, match=r"not among the 4 known ones: digit_0.* Known are cat, dog, owl, cow"):
        evaluate(EvaluateArguments(model=str(tmp_path / "others"), dataset_name=str(digits_folder)))
