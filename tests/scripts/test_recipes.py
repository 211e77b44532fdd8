"""Every recipe is read, built and takes two steps; small differences over one base."""

import pytest
import torch

from hf_protosphere import ProtoSphereConfig
from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.backbones import build_backbone
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import dry_run
from tests import SCRIPTS

RECIPES = sorted((SCRIPTS / "recipes").glob("*.yaml"))
BASES = {"paper.yaml", "cifar.yaml", "imagenet.yaml"}
OWN = {"short-cifar10.yaml", "airnet-cifar10.yaml"}  # by the package's defaults, and with its own network
NAMES = [path.name for path in RECIPES if path.name not in BASES]


def parsed(name, *flags):
    path = next(path for path in RECIPES if path.name == name)
    return parse_arguments(TrainArguments, ["--config", str(path), *flags])


def test_the_recipes_of_the_paper_and_quick_ones_are_there():
    assert {path.name for path in RECIPES} > BASES
    for dataset in ("cifar10", "cifar100", "imagenet100", "imagenet1k"):
        assert {f"{dataset}.yaml", f"{dataset}-scl.yaml"} <= set(NAMES)
        assert f"longtail-{dataset}.yaml" in NAMES or "imagenet" in dataset
    assert sum(name.startswith("quick-") for name in NAMES) >= 2
    for path in RECIPES:
        assert path.read_text().startswith("# ")  # says what it is
        if path.name not in BASES | OWN:
            assert "\nbase: " in path.read_text()


def test_a_recipe_stands_on_its_bases_and_flags_win():
    arguments = parsed("cifar100-scl.yaml")
    network = arguments.backbone, arguments.small_images, arguments.epochs
    assert network == ("resnet18", True, 1000)
    assert (arguments.dataset_name, arguments.label_column) == ("uoft-cs/cifar100", "fine_label")
    assert (arguments.objective, arguments.views, arguments.temperature) == ("scl", 2, 0.07)
    assert arguments.weight_decay == 1e-4
    assert parsed("cifar100-scl.yaml", "--epochs", "30").epochs == 30
    assert parsed("imagenet1k.yaml").sync_batchnorm


# The table of the paper's settings: epochs, images in a step, learning rate, warm-up, temperature,
# probes' learning rate and milestones.
PAPER = {
    "cifar10": (1000, 512, 0.2, 0, None),
    "cifar100": (1000, 512, 0.2, 0, None),
    "imagenet100": (500, 4 * 256, 0.4, 10, 0.2),
    "imagenet1k": (500, 8 * 256 * 4, 3.2, 10, 0.2),
    "cifar10-scl": (1000, 512, 0.05, 0, 0.07),
    "cifar100-scl": (1000, 512, 0.05, 0, 0.07),
    "imagenet100-scl": (500, 4 * 256, 0.8, 10, 0.1),
    "imagenet1k-scl": (500, 8 * 256, 0.8, 5, 0.1),
    "longtail-cifar10": (200, 128, 0.1, 0, None),
    "longtail-cifar100": (200, 128, 0.1, 0, None),
}


@pytest.mark.parametrize("name", PAPER)
def test_recipes_have_the_settings_of_the_paper(name):
    a, tail = parsed(f"{name}.yaml"), name.startswith("longtail")
    devices = 4 if name.startswith("imagenet100") else 8 if name.startswith("imagenet1k") else 1
    images = devices * a.batch_size * a.gradient_accumulation_steps
    found = a.epochs, images, a.learning_rate, a.warmup_epochs, a.temperature
    assert found == PAPER[name]
    assert (a.optimizer, a.momentum, a.nesterov, a.decay_all) == ("sgd", 0.9, False, True)
    if name.startswith("imagenet"):
        assert a.warmup_lr_rate * a.learning_rate == pytest.approx(0.01, rel=0.01)
    assert (a.schedule, a.min_lr_rate, a.seed) == ("cosine", 1e-3, 42)
    assert a.weight_decay == (2e-4 if tail else 1e-4)
    scl = name.endswith("-scl")
    assert a.augmentation == ("crop" if tail else "contrastive" if scl else "resized_crop")
    assert (a.crop_scale, a.horizontal_flip) == (None if tail else 0.2, True)
    assert a.blur == (0.5 if scl and "imagenet" in name else 0.0)
    assert a.projection == ("mlp" if scl else "none")
    assert a.sync_batchnorm == ("imagenet" in name)
    assert a.imbalance == ("exp" if tail else None)


def test_the_long_tails_network_is_resnet_32(tmp_path):
    options = parsed("longtail-cifar10.yaml")
    config = ProtoSphereConfig(
        backbone=options.backbone, backbone_source=options.backbone_source,
        backbone_kwargs=options.backbone_options, small_images=options.small_images,
        image_size=32, num_labels=10,
    )  # fmt: skip
    backbone, width = build_backbone(config)
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    deep = [m for m in convolutions if m.kernel_size == (3, 3)]
    assert (len(deep), width) == (31, 64)  # and the classifier
    assert deep[0].out_channels == 16
    assert sum(p.numel() for p in backbone.parameters()) == 466_256


@pytest.mark.parametrize("name", NAMES)
def test_dry_run(name, digits_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset_name", str(digits_folder), "--label_column", "label", "--num_workers", "0"]
    flags += ["--batch_size", "4", "--gradient_accumulation_steps", "1", "--image_size", "32"]
    flags += ["--imbalance_factor", "1"] if name.startswith("longtail") else []
    flags += ["--validation_fraction", "0.1", "--mixed_precision", "no"]
    arguments = parsed(name, *flags)
    plan = dry_run(arguments)
    printed = capsys.readouterr().out
    assert plan["steps"] == 27 * arguments.epochs  # of 108 images
    assert plan["images"] == 108 * arguments.epochs
    assert plan["seconds_per_epoch"] > 0
    assert plan["memory_bytes"] > 2**20
    millions = plan["parameters"] / 1e6
    small = {"quick": 0.37, "longtail": 0.467, "airnet": 1.2}
    expected = 23.5 if "imagenet" in name else small.get(name.split("-")[0], 11.2)
    assert expected * 0.95 < millions < expected * 1.4  # more with a projection
    assert f"{millions:,.2f} M" in printed
    assert "s an epoch" in printed
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
