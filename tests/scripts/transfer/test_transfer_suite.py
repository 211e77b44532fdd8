"""A transfer suite: one table of models on data sets, which goes on where it stopped."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from hf_protosphere import (
    ProtoSphereConfig,
    ProtoSphereForImageClassification,
    ProtoSphereModel,
)
from hf_protosphere.arguments.parsing import parse_arguments
from hf_protosphere.cli import main
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError
from hf_protosphere.runs import loading
from hf_protosphere.runs.checkpoints import save_model
from hf_protosphere.runs.files import write_yaml
from hf_protosphere.training import setup
from hf_protosphere.transfer.finetune import ROWS
from scripts.transfer.arguments import TransferSuiteArguments
from scripts.transfer.transfer_suite import SuiteError, matrix, transfer_suite
from tests import ROOT

MODES = ["knn", "prototypes"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two checkpoints of random weights."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("digits-first-run", "digits-second-run")):
        torch.manual_seed(seed)
        config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_channels=1)
        model = ProtoSphereForImageClassification(config)
        save_model(model, build_image_processor(config), folder / name)
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def data(digits_folder, tmp_path_factory):
    """Two data sets of two digits each."""
    folder = tmp_path_factory.mktemp("data")
    for name, digits in (("lower", (0, 1)), ("upper", (1, 2))):
        for split in ("train", "test"):
            for digit in digits:
                place = f"{split}/digit_{digit}"
                shutil.copytree(digits_folder / place, folder / name / place)
    return folder


@pytest.fixture
def options(models, data, tmp_path):
    return {
        "models": models,
        "modes": MODES,
        "output_dir": str(tmp_path / "suite"),
        "arguments": {"num_workers": 0, "validation_fraction": 0, "neighbors": 5},
        "datasets": {
            "lower": {"dataset_name": str(data / "lower")},
            "upper": {"dataset_name": str(data / "upper"), "metric": "mean_class_accuracy"},
        },
    }


FORWARD = ProtoSphereModel.forward


def forbidden(self, pixel_values, **options):
    if len(pixel_values) > 1:  # one is that of loading
        raise AssertionError("a forward pass")
    return FORWARD(self, pixel_values, **options)


def run(options, **more):
    return transfer_suite(TransferSuiteArguments(**options | more))


def changed(options, name, **values):
    datasets = options["datasets"]
    return options | {"datasets": datasets | {name: datasets.get(name, {}) | values}}


def test_one_table_with_means_and_improvements(options, models, capsys, monkeypatch):
    loaded, load = [], setup.load_data
    monkeypatch.setattr(setup, "load_data", lambda *a, **k: loaded.append(a) or load(*a, **k))
    results = run(options)
    assert len(loaded) == 2  # each data set once, for all models and modes
    folder = Path(options["output_dir"])
    assert json.loads((folder / "results.json").read_text()) == results
    assert (results["baseline"], results["models"], results["modes"]) == (models[0], models, MODES)
    assert results["failures"] == []
    values = {(r["mode"], r["dataset"], r["model"]): r["value"] for r in results["rows"]}
    assert len(values) == 2 * 2 * 2
    for row in results["rows"]:
        before = values[row["mode"], row["dataset"], models[0]]
        expected = None if row["model"] == models[0] else (row["value"] - before) / before
        assert row["improvement"] == expected
        assert (row["split"], row["num_images"]) == ("test", 30)
    assert {r["dataset"]: r["metric"] for r in results["rows"]} == {
        "lower": "accuracy", "upper": "mean_class_accuracy"
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "digits-first-run (baseline)" not in printed  # without what all share
    assert "first (baseline)" in printed
    markdown = (folder / "table.md").read_text()
    assert markdown.count("\n| knn | ") == 3  # two data sets and their mean
    assert "| knn | mean of 2 |" in markdown
    assert "| knn | upper | mean per class |" in markdown
    assert (folder / "improvements.png").read_bytes().startswith(b"\x89PNG")
    for entry in matrix(TransferSuiteArguments(**options)):
        assert (entry.folder / "prototypes" / "model.safetensors").exists()


def test_what_is_done_is_not_done_again(options, models, monkeypatch, capsys):
    first = run(options | {"models": models[:1], "modes": ["knn"]})
    assert first["baseline"] is None
    assert "(baseline)" not in capsys.readouterr().out
    assert [row["improvement"] for row in first["rows"]] == [None, None]
    assert not (Path(options["output_dir"]) / "improvements.png").exists()

    whole = run(options)  # one more model and one more mode
    kept = [r for r in whole["rows"] if (r["model"], r["mode"]) == (models[0], "knn")]
    assert kept == first["rows"]
    monkeypatch.setattr(loading, "_classify_noise", lambda *_: None)
    monkeypatch.setattr(ProtoSphereModel, "forward", forbidden)
    assert run(options) == whole
    capsys.readouterr()
    run(options, dry_run=True)
    plan = capsys.readouterr().out
    assert plan.count("knn, prototypes") == plan.count("nothing") == 4
    entry = matrix(TransferSuiteArguments(**options))[0]
    rows = (entry.folder / ROWS).read_text().split("\n")
    (entry.folder / ROWS).write_text(rows[0] + "\n" + rows[1][:20])  # killed while it wrote
    run(options, dry_run=True)
    assert "knn              prototypes" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="a forward pass"):
        run(options)
    monkeypatch.undo()
    assert len(run(options)["rows"]) == 8
    assert entry.missing() == []


def test_a_data_set_that_cannot_be_loaded_is_a_row(options, data, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 and nothing else")
    options = changed(options, "absent", dataset_name="user/absent")
    options = changed(options, "broken", dataset_name=str(tmp_path / "broken"))
    datasets = options["datasets"]  # those that fail come first
    options["datasets"] = {n: datasets[n] for n in ("absent", "broken", "lower", "upper")}
    with pytest.raises(SuiteError, match=r"(?s)4 of 8 .*absent, .*user/absent cannot be loaded") as error:
        run(options)
    assert str(error.value).count("It must be a data set on the Hub") == 2  # once for all models
    results = json.loads((Path(options["output_dir"]) / "results.json").read_text())
    assert len(results["rows"]) == 8
    assert results["means"][0]["datasets"] == ["lower", "upper"]
    assert {failure["dataset"] for failure in results["failures"]} == {"absent", "broken"}
    line = next(x for x in capsys.readouterr().out.split("\n") if x.startswith("knn         absent"))
    assert "-  --dataset_name user/absent cannot be loaded: " in line

    # Tried again, now from here.
    (tmp_path / "broken" / "train.parquet").unlink()
    shutil.copytree(data / "lower", tmp_path / "broken", dirs_exist_ok=True)
    results = run(options, data=[f"absent={data / 'upper'}"])
    assert len(results["rows"]) == 16
    assert results["failures"] == []


def test_a_model_without_weights_fails_alone(options, models):
    # timm knows the name; its weights are on the Hub only.
    with pytest.raises(SuiteError, match=r"(?s)1 of 2 .*lower, test_vit: the model cannot be"):
        run(options, models=["test_vit", models[1]], only=["lower"], modes=["prototypes"])
    results = json.loads((Path(options["output_dir"]) / "results.json").read_text())
    assert [row["model"] for row in results["rows"]] == [models[1]]


def test_stopped_in_the_middle_it_goes_on(options, models, monkeypatch, capsys):
    passes = []

    def stopped(self, pixel_values, **more):
        if len(pixel_values) > 1 and pixel_values.shape[-1] > 1:  # neither noise nor features
            passes.append(self)
            if len(passes) == 4:  # three are of the first model: training images, and test images
                signal.raise_signal(signal.SIGTERM)
        return FORWARD(self, pixel_values, **more)

    monkeypatch.setattr(loading, "_classify_noise", lambda *_: None)
    monkeypatch.setattr(ProtoSphereModel, "forward", stopped)
    options["arguments"] |= {"cache_images": False}  # nor features of another test
    file = Path(options["output_dir"]).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(options))
    with pytest.raises(SystemExit) as ended:
        main(["transfer-suite", str(file), "--only", "lower"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert "the same command goes on from here" in capsys.readouterr().err
    main(["transfer-suite", str(file), "--only", "lower"])
    assert len(passes) == 7
    printed = capsys.readouterr().out
    assert printed.count("to do\n") == 2  # upper, in each mode
    assert models[0] in printed


def test_results_of_other_arguments_are_not_mixed(options):
    run(options, only=["lower"])
    options["arguments"] |= {"neighbors": 3}
    with pytest.raises(ArgumentError, match=r"lower/.*--neighbors was 5, is 3"):
        run(options, only=["upper"])  # the table would hold both
    options["arguments"] |= {"neighbors": 5, "probe_augmentation": True}
    with pytest.raises(ArgumentError, match=r"lower/.*--probe_augmentation was False, is True"):
        run(options)


def test_what_cannot_work_is_said_before_any_work(options, tmp_path):
    with pytest.raises(ArgumentError, match=r"--models .*nothing: there is no such folder"):
        run(options, models=[*options["models"], str(tmp_path / "nothing")])
    with pytest.raises(ArgumentError, match="upper: --epochs must be"):
        run(changed(options, "upper", epochs=0))
    with pytest.raises(ArgumentError, match="a/b and a-b would both lie in"):
        run(options, models=["a/b", "a-b"])
    assert not Path(options["output_dir"]).exists()


def suite(folder, **options):
    defaults = {
        "models": ["runs/first", "runs/second"], "modes": ["knn", "prototypes"],
        "datasets": {"pets": {"dataset_name": "user/pets"}, "food": {"dataset_name": "food"}},
    }  # fmt: skip
    return TransferSuiteArguments(**defaults | options, output_dir=str(folder))


def test_every_model_on_every_data_set(tmp_path):
    entries = matrix(suite(tmp_path))
    assert [(entry.dataset, entry.model) for entry in entries] == [
        ("pets", "runs/first"), ("pets", "runs/second"),
        ("food", "runs/first"), ("food", "runs/second"),
    ]  # fmt: skip
    assert entries[1].folder == tmp_path / "pets" / "runs-second"
    with pytest.raises(ArgumentError, match=r"--models a/b and a-b would both lie in .*: rename"):
        matrix(suite(tmp_path, models=["a/b", "a-b"]))


def test_what_is_done_is_read_from_the_folder(tmp_path):
    entry, other, *_ = matrix(suite(tmp_path))
    assert entry.missing() == ["knn", "prototypes"]
    entry.folder.mkdir(parents=True)
    write_yaml(entry.folder / "transfer.yaml", vars(entry.arguments))
    done = [
        {"mode": mode, "shots": shots, "trial": 0, "accuracy": accuracy}
        for mode, shots, accuracy in (("knn", None, 0.5), ("knn", 5, 0.4), ("full", None, 0.9))
    ]
    lines = [json.dumps(row) + "\n" for row in done]
    (entry.folder / ROWS).write_text("".join(lines) + '{"mode": "prototypes", "sh')  # cut short
    assert entry.rows() == {"knn": done[0]}
    assert entry.missing() == ["prototypes"]
    assert other.rows() == {}
    changed, *_ = matrix(suite(tmp_path, arguments={"neighbors": 3}))
    with pytest.raises(ArgumentError, match="--neighbors was 20, is 3"):
        changed.rows()


def test_the_suite_of_the_paper(tmp_path):
    file = str(ROOT / "scripts" / "transfer" / "paper.yaml")
    suite = parse_arguments(TransferSuiteArguments, ["--config", file])
    entries = matrix(suite)  # every one of them valid arguments
    assert len(entries) == 8 * 5
    assert "cross_entropy" in suite.models[0]
    release = yaml.safe_load((ROOT / "scripts" / "releases" / "paper.yaml").read_text())
    for model in suite.models:
        folder, name = model.rsplit("/", 1)
        assert folder == release["output_dir"]
        objective, seed = name.removeprefix("imagenet1k-resnet50-").split("-")
        assert objective in release["objectives"]
        assert seed == "seed42"  # of ImageNet the release has no other
    food = next(entry.arguments for entry in entries if entry.dataset == "food")
    assert (food.dataset_name, food.test_split) == ("ethz/food101", "validation")
    by_precision = {e.dataset for e in entries if e.metric == "mean_average_precision"}
    assert by_precision == {"voc2007"} == {e.dataset for e in entries if e.arguments.several_labels}
    assert {entry.arguments.compare for entry in entries} == {"linear_probe"}
