"""Every recipe is read, built and takes two steps; small differences over one base."""

import pytest

from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import dry_run
from tests import SCRIPTS

RECIPES = sorted((SCRIPTS / "recipes").glob("*.yaml"))
BASES = {"cifar.yaml", "imagenet.yaml"}
NAMES = [path.name for path in RECIPES if path.name not in BASES]


def parsed(name, *flags):
    path = next(path for path in RECIPES if path.name == name)
    return parse_arguments(TrainArguments, ["--config", str(path), *flags], "train", "")


def test_the_recipes_of_the_paper_and_quick_ones_are_there():
    assert {path.name for path in RECIPES} > BASES
    for dataset in ("cifar10", "cifar100", "imagenet100", "imagenet1k"):
        assert {f"{dataset}.yaml", f"{dataset}-scl.yaml"} <= set(NAMES)
    assert sum(name.startswith("quick-") for name in NAMES) >= 2
    for path in RECIPES:
        assert path.read_text().startswith("# ")  # says what it is
        if path.name not in BASES:
            assert "\nbase: " in path.read_text()


def test_a_recipe_stands_on_its_bases_and_flags_win():
    arguments = parsed("cifar100-scl.yaml")
    assert (arguments.backbone, arguments.small_images, arguments.epochs) == ("resnet18", True, 500)
    assert (arguments.dataset_name, arguments.label_column) == ("uoft-cs/cifar100", "fine_label")
    assert (arguments.objective, arguments.views, arguments.temperature) == ("scl", 2, 0.07)
    assert arguments.weight_decay == 1e-4
    assert parsed("cifar100-scl.yaml", "--epochs", "30").epochs == 30
    assert parsed("imagenet1k.yaml").sync_batchnorm


@pytest.mark.parametrize("name", NAMES)
def test_dry_run(name, digits_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset_name", str(digits_folder), "--label_column", "label", "--num_workers", "0"]
    arguments = parsed(name, *flags, "--batch_size", "4", "--image_size", "32",
                       "--mixed_precision", "no")  # fmt: skip
    plan = dry_run(arguments)
    printed = capsys.readouterr().out
    assert plan["steps"] == 27 * arguments.epochs  # of 108 images
    assert plan["images"] == 108 * arguments.epochs
    assert plan["seconds_per_epoch"] > 0
    assert plan["memory_bytes"] > 2**20
    millions = plan["parameters"] / 1e6
    expected = 23.5 if "imagenet" in name else 0.37 if "quick" in name else 11.2
    assert expected * 0.95 < millions < expected * 1.4  # more with a projection
    assert f"{millions:,.2f} M" in printed
    assert "s an epoch" in printed
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
