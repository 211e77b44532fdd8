"""What a run is made of: who decides which argument, and the parts that follow from them."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.dataset import load_image_dataset
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError
from hf_protosphere.training import setup
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.setup import (
    build_model,
    count_steps,
    load_training_data,
    resolve,
    training_images,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of classes that the digits' folder has in another order, with a linear projection."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, num_channels=1, projection="linear", projection_dim=8, objective="ntce",
        softmax_temperature=0.2, id2label={0: "digit_2", 1: "digit_0", 2: "digit_1"},
    )  # fmt: skip
    ProtoSphereForImageClassification(config).save_pretrained(folder)
    build_image_processor(config).save_pretrained(folder)
    return str(folder)


def test_a_checkpoint_decides_its_network_without_its_weights(arguments, checkpoint, monkeypatch):
    monkeypatch.setattr(setup, "load_classifier", None)  # which would load them
    given = arguments(finetune_from=checkpoint, backbone="timm/test_resnet", objective="nonl")
    decided, config = resolve(given)
    assert config.class_names == ["digit_2", "digit_0", "digit_1"]
    assert (decided.backbone, decided.projection, decided.projection_dim) == ("test_resnet", "linear", 8)
    assert (decided.image_size, decided.num_channels) == (32, 1)
    assert (decided.objective, decided.temperature) == ("nonl", None)  # of the new classes' head
    same = {"backbone", "backbone_kwargs", "projection", "projection_dim", "image_size", "num_channels"}
    assert {k for k, v in vars(given).items() if v != getattr(decided, k)} <= same


def test_what_is_left_to_the_rule_is_the_checkpoints(arguments, checkpoint):
    decided, _ = resolve(arguments(finetune_from=checkpoint, projection="auto"))
    assert (decided.projection, decided.projection_dim) == ("linear", 8)


def test_what_goes_on_keeps_the_objective_too(arguments, checkpoint):
    decided, _ = resolve(arguments(resume_from=checkpoint, backbone="test_resnet"))
    assert (decided.objective, decided.temperature) == ("ntce", 0.2)
    for name, value in {
        "projection_dim": 16,
        # Those that are the default as well.
        "backbone": "resnet18", "objective": "nonl", "temperature": 0.1, "projection": "none",
        "projection_dim ": 128, "prototypes": "class_means", "num_channels": 3, "image_size": 224,
    }.items():  # fmt: skip
        name = name.strip()
        with pytest.raises(ArgumentError, match=f"--{name} {value} does not fit --resume_from"):
            resolve(arguments(resume_from=checkpoint, **{name: value}))
    with pytest.raises(ArgumentError, match="--projection_dim 128 does not fit --finetune_from"):
        resolve(arguments(finetune_from=checkpoint, projection_dim=128))
    with pytest.raises(ArgumentError, match=r"--backbone_kwargs {'a': 1} does not fit --finetune"):
        resolve(arguments(finetune_from=checkpoint, backbone_kwargs={"a": 1}))
    with pytest.raises(ArgumentError, match="--resume_from nowhere/at/all: there is no such"):
        resolve(arguments(resume_from="nowhere/at/all"))


def test_the_precision_of_the_launcher_is_obeyed_or_refused(arguments, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve(arguments())[0].mixed_precision == "bf16"
    assert resolve(arguments(mixed_precision="bf16"))[0].mixed_precision == "bf16"
    with pytest.raises(ArgumentError, match=r"--mixed_precision no, but .*launch.* bf16"):
        resolve(arguments(mixed_precision="no"))


def test_without_a_checkpoint_nothing_is_decided(arguments):
    given = arguments()
    assert resolve(given) == (given, None)
    dry, _ = resolve(arguments(dry_run=True, overwrite=True, cache_images=True))
    assert (dry.cache_images, dry.check_images, dry.overwrite) == (False, False, False)


def test_the_model_knows_the_classes_in_the_order_of_its_checkpoint(arguments, checkpoint):
    given, config = resolve(arguments(resume_from=checkpoint, backbone="test_resnet"))
    images = training_images(given, config.class_names, None)
    model = build_model(given, images)
    assert model.config.class_names == images.label_names == ["digit_2", "digit_0", "digit_1"]
    stored = ProtoSphereForImageClassification.from_pretrained(checkpoint)
    assert torch.equal(model.head.weight, stored.head.weight)


def test_options_of_the_arguments_reach_the_model(arguments):
    given = arguments(projection="mlp", projection_dim=12, temperature=0.3, objective="normface",
                      backbone_kwargs='{"drop_rate": 0.25}', prototypes="simplex_etf")  # fmt: skip
    model = build_model(given, load_training_data(given))
    config = model.config
    assert (config.projection, config.projection_dim, config.softmax_temperature) == (
        "mlp",
        12,
        0.3,
    )
    assert (config.objective, config.prototypes, config.num_channels) == ("normface", "simplex_etf", 1)
    assert model.protosphere.backbone.drop_rate == 0.25
    assert config.image_size == 32  # the images' own
    with pytest.raises(ArgumentError, match=r"the model cannot be built: .*no backbone 'resent18'"):
        build_model(arguments(backbone="resent18"), load_training_data(given))


def test_shots_are_drawn_from_images_that_are_loaded_once(arguments, digits_folder):
    loaded = load_image_dataset(str(digits_folder), validation_fraction=0)
    first, other = (training_images(arguments(images_per_class=4, seed=seed), None, loaded) for seed in (0, 1))
    assert first.class_counts("train") == other.class_counts("train") == [4, 4, 4]
    assert first.splits["test"] is loaded.splits["test"]
    assert loaded.class_counts("train") == [40, 40, 40]
    paths = [[bytes(image.tobytes()) for image in images.splits["train"]["image"]] for images in (first, other)]
    assert paths[0] != paths[1]


def test_an_epoch_has_whole_steps_only(arguments):
    images = SimpleNamespace(num_train=100, num_labels=3)
    one, two = SimpleNamespace(num_processes=1), SimpleNamespace(num_processes=2)
    assert count_steps(arguments(batch_size=32), images, one) == 3
    assert count_steps(arguments(batch_size=8, gradient_accumulation_steps=3), images, two) == 2
    with pytest.raises(ArgumentError, match=r"--batch_size 64, 2 of them per step, .* at most 50"):
        count_steps(arguments(batch_size=64), images, two)
    with pytest.raises(ArgumentError, match=r"--classes_per_batch 4 is more than the 3 classes"):
        count_steps(arguments(batch_size=8, classes_per_batch=4), images, one)


@pytest.mark.parametrize(
    ("counts", "metric", "lacks"),
    [
        ([3, 0, 5, 2], "neural_collapse", "none of b"),
        ([3, 0, 5, 2], "nc3_self_duality", "none of b"),
        ([3, 0, 5, 2], "nc1_cdnv", None),
        ([1, 1, 1, 1], "nc1_cdnv", "one of each class"),
        ([1, 1, 1, 1], "nc2_equiangular", None),
        ([0, 0, 0, 1], "accuracy", None),
        ([0, 0, 0, 4], "nc1_variability", "none of a, b, c"),
    ],
)
def test_an_epoch_is_not_chosen_by_what_is_not_defined(arguments, counts, metric, lacks):
    images = SimpleNamespace(
        num_labels=4, class_counts=lambda split: counts, is_streamed=False,
        classes_without_images=lambda split: [n for n, count in zip("abcd", counts) if not count],
    )  # fmt: skip
    refuse = partial(setup.refuse_what_classes_lack, arguments(best_metric=metric), images)
    if lacks is None:
        return refuse("validation")
    with pytest.raises(ArgumentError, match=f"--best_metric {metric} is not .* have {lacks}: cho"):
        refuse("validation")


@pytest.mark.parametrize(
    ("backbone", "options", "is_refused"),
    [
        ("test_resnet", {"batch_size": 1}, True),
        ("test_resnet", {"batch_size": 2}, False),
        ("test_resnet", {"batch_size": 1, "objective": "scl"}, False),  # of two views
        ("test_resnet", {"batch_size": 1, "freeze_backbone": True}, False),
        ("test_vit", {"batch_size": 1}, False),
    ],
)
def test_batches_of_one_image_under_batch_norm(arguments, backbone, options, is_refused):
    config = ProtoSphereConfig(backbone=backbone, image_size=32, num_labels=3)
    model = ProtoSphereForImageClassification(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refuse = partial(setup.refuse_single_values, arguments(**options), model)
    if is_refused:
        with pytest.raises(ArgumentError, match=r"--batch_size 1 cannot train test_resnet: .*or a"):
            refuse()
    else:
        refuse()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_synchronised_batch_norm_needs_cuda(arguments):
    alone = Accelerator(cpu=True)
    model = torch.nn.BatchNorm2d(3)
    assert setup.with_synchronized_batchnorm(model, alone) is model
    several = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    with pytest.raises(ArgumentError, match="--sync_batchnorm works on CUDA only"):
        setup.with_synchronized_batchnorm(model, several)


def test_arguments_are_checked_again_when_they_are_decided(arguments):
    with pytest.raises(ArgumentError, match="--batch_size"):
        dataclasses.replace(arguments(), batch_size=0)
    assert isinstance(arguments(), TrainArguments)


def test_weights_of_ones_own_are_found_before_images_are(arguments, tmp_path):
    with pytest.raises(ArgumentError, match=r"--pretrained \S+/gone\.pth: there is no such file or folder"):
        resolve(arguments(pretrained=str(tmp_path / "gone.pth")))
    with pytest.raises(ArgumentError, match="there is no such file or folder"):
        resolve(arguments(pretrained=f"local-dir:{tmp_path}/gone"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "own.pth")
    given = arguments(backbone="test_resnet", pretrained=str(tmp_path / "own.pth"))
    images = SimpleNamespace(num_channels=3, label_names=["a", "b"])
    with pytest.raises(
        ArgumentError, match=r"the model cannot be built: the weights in \S+/own\.pth do not fit ResNet"
    ):
        build_model(resolve(given)[0], images)
