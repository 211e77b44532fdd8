"""The rows of a release: recipes times objectives times seeds."""

import pytest

from hf_protosphere.arguments.parsing import read_yaml
from hf_protosphere.errors import ArgumentError
from scripts.releases.arguments import ReleaseArguments
from scripts.releases.rows import MISSING, matrix
from tests import ROOT


def arguments(recipe, **options):
    return ReleaseArguments(**{"recipes": [recipe], "objectives": ["nonl", "scl"], **options})


def test_the_release_of_the_paper(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    values = read_yaml("scripts/releases/paper.yaml", ReleaseArguments)
    release = ReleaseArguments(**values | {"output_dir": str(tmp_path)})
    rows = {row.name: row for row in matrix(release)}  # every one of them valid arguments
    # Table 13 has five seeds of four objectives on CIFAR, the others have one.
    assert len(rows) == 2 * (4 * 5 + 2) + 2 * 6
    seeds = {name: row.arguments.seed for name, row in rows.items()}
    assert sum(seed == 42 for seed in seeds.values()) == 4 * 6
    assert {seed for name, seed in seeds.items() if name.startswith("cifar")} == {*range(42, 47)}
    scl = rows["imagenet100-resnet50-scl-seed42"]
    assert (scl.arguments.objective, scl.arguments.projection) == ("scl", "mlp")
    assert (scl.arguments.epochs, scl.arguments.blur) == (500, 0.5)
    assert "--num_processes 4 -m hf_protosphere.cli train" in " ".join(scl.command)
    nonl = rows["cifar10-resnet18-nonl-seed42"]
    assert nonl.arguments.dataset_name == "uoft-cs/cifar10"
    assert (nonl.launch, nonl.arguments.projection) == (None, "none")
    assert nonl.folder == tmp_path / "cifar10-resnet18-nonl-seed42"
    temperatures = {name: row.arguments.temperature for name, row in rows.items()}
    assert temperatures["cifar10-resnet18-ntce-seed44"] == 0.6
    assert temperatures["cifar100-resnet18-nonl-seed46"] == 0.1
    batches = {
        row.arguments.objective: 8 * 256 * row.arguments.gradient_accumulation_steps
        for name, row in rows.items()
        if name.startswith("imagenet1k")
    }
    assert batches == {
        "cross_entropy": 2048, "dot_regression": 2048, "normface": 4096, "ntce": 4096,
        "nonl": 8192, "scl": 2048,
    }  # fmt: skip
    for name, row in rows.items():
        if name.startswith("imagenet1k"):
            peak = 0.1 * 8 * row.arguments.gradient_accumulation_steps
            assert row.arguments.learning_rate == pytest.approx(peak), name
            assert row.arguments.warmup_lr_rate * peak == pytest.approx(0.01, rel=0.01), name
    assert {row.state() for row in rows.values()} == {MISSING}
    assert (len(release.collection), len(release.description)) < (60, 150)  # what the Hub takes


def test_rows_are_recipes_times_objectives_times_seeds(recipe):
    rows = matrix(arguments(recipe, seeds=[0, 7], output_dir="out"))
    assert [row.name for row in rows] == [
        "digits-test_resnet-nonl-seed0", "digits-test_resnet-nonl-seed7",
        "digits-test_resnet-scl-seed0", "digits-test_resnet-scl-seed7",
    ]  # fmt: skip
    assert [row.arguments.projection for row in rows] == ["auto", "auto", "mlp", "mlp"]
    assert all(row.arguments.resume for row in rows)
    assert {row.recipe for row in rows} == {recipe}
    kept = matrix(arguments(recipe, seeds=[0, 7], skip=["*-scl-seed7", "*-nonl-*"]))
    assert [row.name for row in kept] == ["digits-test_resnet-scl-seed0"]


def test_overrides_and_launch_by_pattern_the_last_one_wins(recipe):
    rows = matrix(
        arguments(
            recipe,
            overrides={"*": {"epochs": 5}, "*-scl-*": {"epochs": 6, "temperature": 0.07}},
            launch={"*": "--num_processes 1", "*-scl-*": "--num_processes 2"},
        )
    )
    assert [row.arguments.epochs for row in rows] == [5, 6]
    assert [row.arguments.temperature for row in rows] == [None, 0.07]
    assert [row.launch for row in rows] == ["--num_processes 1", "--num_processes 2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ["*-ntce-*"]}, r"'\*-ntce-\*' matches no model"),
        ({"skip": ["*-nonl-*", "*-scl-*"]}, "leaves no model to train"),
        ({"overrides": {"*-ntce-*": {"epochs": 2}}}, r"'\*-ntce-\*' matches no model"),
        ({"overrides": {"*": {"epochs": -1}}}, "digits-test_resnet-nonl-seed0: --epochs must be"),
        ({"overrides": {"*-scl-*": {"dataset_name": "x"}}}, "several data sets, digits, x"),
    ],
)
def test_rows_that_cannot_work_are_said(recipe, options, message):
    with pytest.raises(ArgumentError, match=message):
        matrix(arguments(recipe, **options))


def test_a_recipe_without_data(recipe, tmp_path):
    with pytest.raises(ArgumentError, match=r"base\.yaml, .*dataset_name"):
        matrix(arguments(str(tmp_path / "base.yaml")))


def test_two_recipes_of_one_name(recipe, tmp_path):
    (tmp_path / "more").mkdir()
    other = tmp_path / "more" / "digits.yaml"
    other.write_text("base: ../digits.yaml\n")
    with pytest.raises(ArgumentError, match="both give digits-test_resnet-nonl-seed0"):
        matrix(arguments(recipe, recipes=[recipe, str(other)]))
