"""Transfer in every mode, with all or few images, in one table, and resumed where it stopped."""

import json
import shutil
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, load_dataset
from timm.models import save_for_hf
from transformers import AutoImageProcessor

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from hf_protosphere.data.transforms import build_image_processor
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.evaluation.arguments import EvaluateArguments
from hf_protosphere.evaluation.evaluate import evaluate
from hf_protosphere.runs.finished_run import FinishedRun
from hf_protosphere.runs.metrics_log import read_metrics
from hf_protosphere.training import setup
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.transfer import finetune as transfer_module
from hf_protosphere.transfer import frozen
from hf_protosphere.transfer.arguments import MODES, FinetuneArguments
from hf_protosphere.transfer.finetune import finetune
from scripts.transfer.arguments import TransferSuiteArguments
from scripts.transfer.transfer_suite import transfer_suite


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint that knows two of the three digits, and another class."""
    torch.manual_seed(0)
    names = {0: "digit_2", 1: "okapi", 2: "digit_0"}
    config = ProtoSphereConfig(
        backbone="test_resnet", image_size=32, id2label=names, objective="ntce", softmax_temperature=0.2
    )
    folder = tmp_path_factory.mktemp("source")
    ProtoSphereForImageClassification(config).save_pretrained(folder)
    build_image_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture
def run(source, digits_folder, tmp_path):
    def finetuned(**options):
        defaults = {
            "model": str(source), "dataset_name": str(digits_folder), "epochs": 1,
            "batch_size": 16, "num_workers": 0, "report_to": ["none"], "pictures": False,
            "output_dir": str(tmp_path / "out"), "mode": "full",
        }  # fmt: skip
        if "compare" in options:
            del defaults["mode"]
        if options.get("compare") == "all":
            options["neighbors"] = 5
        return finetune(FinetuneArguments(**defaults | options))

    return finetuned


@pytest.mark.parametrize(("batch_size", "rate"), [(64, 0.025), (4096, 0.4)])
def test_the_rate_of_a_head_rises_with_the_batch_so_far(source, digits_folder, tmp_path, batch_size, rate):
    asked = FinetuneArguments(
        model=str(source), dataset_name=str(digits_folder), mode="head", batch_size=batch_size,
        output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    images = SimpleNamespace(num_train=10**5)
    with ExitStack() as held:
        transfer = transfer_module.Transfer(asked, images, held)
        assert transfer.training("head").learning_rate == pytest.approx(rate)


def test_every_mode_in_one_table(run, digits_folder, tmp_path, capsys, monkeypatch):
    loaded, load = [], setup.load_data
    monkeypatch.setattr(setup, "load_data", lambda *a, **k: loaded.append(a) or load(*a, **k))
    result = run(compare="all")
    table = capsys.readouterr().out
    assert [row["mode"] for row in result["rows"]] == list(MODES)
    assert len(loaded) == 1  # for all of them
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written == result
    for row in result["rows"]:
        assert row["num_images"] == 45
        assert row["seconds"] > 0
        assert f"\n{row['mode']} " in table
        # What is said of a mode is what its checkpoint does.
        folder = tmp_path / "out" / row["mode"]
        if row["mode"] == "knn":
            assert not folder.exists()
            continue
        report = evaluate(
            EvaluateArguments(model=str(folder), dataset_name=str(digits_folder), num_workers=0, json=True)
        )
        assert report["accuracy"] == pytest.approx(row["accuracy"], abs=1e-6)
        for name, value in row["neural_collapse"].items():
            if isinstance(value, float):
                assert report["neural_collapse"][name] == pytest.approx(value, rel=0.02, abs=1e-4)
    trained = {row["mode"]: row["trainable_parameters"] for row in result["rows"]}
    assert trained["full"] == trained["layerwise"] > trained["lora"] > trained["head"] == 96 * 97 + 3 * 96
    assert trained["prototypes"] == trained["knn"] == 0
    config = ProtoSphereConfig.from_pretrained(tmp_path / "out" / "full")
    assert (config.objective, config.softmax_temperature) == ("ntce", 0.2)
    assert config.id2label == {0: "digit_0", 1: "digit_1", 2: "digit_2"}
    assert FinishedRun.read(tmp_path / "out" / "full").arguments.finetune_from is not None


def test_few_shots_with_confidence_resumed_without_doing_it_again(run, tmp_path, monkeypatch):
    options = {"compare": "full,prototypes", "trials": 2, "min_steps": 3}
    first = run(shots="2,1", **options)
    assert [(r["mode"], r["shots"], r["trial"]) for r in first["rows"]] == [
        (mode, shots, trial) for mode in ("full", "prototypes") for shots in (2, 1) for trial in (0, 1)
    ]
    folder = tmp_path / "out"
    assert (folder / "shots.png").exists()
    assert not any((folder / "trials").iterdir())  # measured, not kept
    summary = first["summary"][0]
    values = [row["accuracy"] for row in first["rows"][:2]]
    assert summary["accuracy"] == pytest.approx(sum(values) / 2)
    assert summary["accuracy_interval"] == pytest.approx(12.706 * abs(values[0] - values[1]) / 2, abs=1e-3)

    # A row that was cut short by a kill is done again; the others are not, and more may be asked.
    lines = (folder / "rows.jsonl").read_text().split("\n")
    (folder / "rows.jsonl").write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:20])
    monkeypatch.setattr(transfer_module, "train", None)
    again = run(shots="2,1", resume=True, **options)
    assert again["rows"] == first["rows"] or again["rows"][:-1] == first["rows"][:-1]
    assert again["rows"][-1]["accuracy"] == first["rows"][-1]["accuracy"]

    with pytest.raises(ArgumentError, match=r"--resume goes on with .* --min_steps was 3, is 4"):
        run(shots="2,1", resume=True, **{**options, "min_steps": 4})
    with pytest.raises(ArgumentError, match="is not empty"):
        run(shots="2,1", **options)


def test_the_images_of_the_shots_are_those_of_training(run, digits_folder, monkeypatch):
    seen = []

    def fake_train(arguments, images, last):
        seen.append((arguments, images))
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer_module, "train", fake_train)
    with pytest.raises(KeyboardInterrupt):
        run(shots="4", trials=1, seed=5, min_steps=30)
    ((training, images),) = seen
    assert isinstance(training, TrainArguments)
    assert "validation" not in images.splits  # loaded once, for all rows, with all training images
    assert (training.images_per_class, training.seed, training.batch_size) == (4, 5, 12)
    assert training.epochs == training.evaluate_every == 30
    assert training.validation_fraction == 0


def test_one_mode_leaves_its_model_where_it_was_asked_for(run, tmp_path):
    run(mode="prototypes")
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.prototypes == "class_means"
    result = run(mode="head", output_dir=str(tmp_path / "head"))
    assert FinishedRun.read(tmp_path / "head").results["test"]["accuracy"] == pytest.approx(
        result["rows"][0]["accuracy"]
    )


def test_a_backbone_that_is_no_protosphere(run, source, tmp_path):
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit"), tmp_path / "vit", safe_serialization=True)
    result = run(model=str(tmp_path / "vit"), mode="knn", image_size=32)
    assert result["rows"][0]["num_images"] == 45


def test_class_means_of_a_backbone_are_those_of_its_features(run, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "POWERS", ())  # not whitened
    save_for_hf(timm.create_model("test_resnet"), tmp_path / "timm", safe_serialization=True)
    run(model=str(tmp_path / "timm"), mode="prototypes", image_size=32)
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.projection == "none"


def test_fair_probes_are_trained_on_eight_versions_of_each_image(run, monkeypatch):
    fitted, fit = [], transfer_module.fit_probe
    monkeypatch.setattr(transfer_module, "fit_probe", lambda *a, **k: fitted.append(a) or fit(*a, **k))
    options = {"compare": "linear_probe,normalized_linear_probe", "shots": "4", "trials": 2}
    rows = run(**options, probe_augmentation=True)["rows"]
    assert [split.versions.shape[:2] for _, split, _ in fitted] == 4 * [(8, 12)]
    assert [row["trainable_parameters"] for row in rows] == [291, 291, 288, 288]
    assert rows[0]["feature_seconds"] == rows[2]["feature_seconds"] > 0


@pytest.mark.parametrize("mode", ["head", "prototypes"])
def test_a_transformer_at_another_image_size(run, tmp_path, mode):
    config = ProtoSphereConfig(backbone="test_vit", backbone_kwargs={"patch_size": 8}, image_size=32, num_labels=2)
    ProtoSphereForImageClassification(config).save_pretrained(tmp_path / "vit")
    run(model=str(tmp_path / "vit"), mode=mode, image_size=48)
    model = ProtoSphereForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.image_size == 48
    assert model.protosphere.backbone.pos_embed.shape[1] == 36 + 1
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").crop_size["height"] == 48
    if mode == "head":
        assert FinishedRun.read(tmp_path / "out").arguments.image_size == 48


def test_dry_run_plans_and_leaves_nothing(run, tmp_path, capsys):
    assert run(compare="head,knn", dry_run=True) == {}
    plan = capsys.readouterr().out
    assert "9,600 of them trained" in plan
    assert "nothing to plan" in plan
    assert not (tmp_path / "out").exists()


def test_the_linear_heads_options_go_to_a_cross_entropy_checkpoint(run, source, tmp_path):
    with pytest.raises(ArgumentError, match=r"--mixup 0\.2 is for --objective cross_entropy"):
        run(mixup=0.2)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_a_folder_of_timm_ends_with_model_and_results_and_resumes(run, tmp_path):
    save_for_hf(timm.create_model("test_resnet"), tmp_path / "timm", safe_serialization=True)
    options = {"model": f"local-dir:{tmp_path / 'timm'}", "image_size": 32}
    for resume in (False, True):
        result = run(**options, resume=resume)
        (tmp_path / "out" / "comparison.json").unlink()
    finished = FinishedRun.read(tmp_path / "out")
    assert finished.provenance["base_model"] is None
    assert finished.provenance["from_pretrained_weights"] is True
    assert finished.results["test"]["accuracy"] == result["rows"][0]["accuracy"]
    assert ProtoSphereForImageClassification.from_pretrained(tmp_path / "out")
    (start,) = [r for r in read_metrics(tmp_path / "out" / "metrics.jsonl") if r["epoch"] == 0]
    assert start["validation_class_means_accuracy"] > 0.5


def test_a_picture_that_fails_costs_no_table(run, tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer_module, "plot_shots", fails)
    result = run(mode="prototypes", shots="1,2", trials=1)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == result
    assert "drawing failed; the results are kept" in caplog.text


def test_few_shots_in_odd_batches_are_mixed(run):
    options = {"objective": "cross_entropy", "mixup": 0.2, "shots": "1", "trials": 1}
    (row,) = run(**options, min_steps=1)["rows"]  # three images
    assert row["num_images"] == 45


@pytest.fixture
def of_several_labels(digits_folder, tmp_path):
    """Digits as they are, even or not, and some of none: lists of classes."""
    names = ["zero", "one", "two", "even"]
    kind = Features({"image": Image(), "classes": List(ClassLabel(names=names))})
    (tmp_path / "several").mkdir()
    for split in ("train", "test"):
        digits = load_dataset(str(digits_folder), split=split)
        lists = [[d] + [3] * (d % 2 == 0) for d in digits["label"]]
        lists[0] = [] if split == "train" else [0, 1, 2]  # a combination that is not trained on
        rows = {"image": digits["image"], "classes": lists}
        rows = Dataset.from_dict(rows, features=kind)
        rows.to_parquet(tmp_path / "several" / f"{split}-00000-of-00001.parquet")
    return {"dataset_name": str(tmp_path / "several"), "label_column": "classes"}


def test_several_labels_an_image_by_mean_average_precision(run, of_several_labels, capsys):
    options = {**of_several_labels, "mode": "linear_probe", "several_labels": True}
    (row,) = run(**options)["rows"]
    assert row["num_images"] == 45
    assert 0.8 < row["mean_average_precision"] < 1
    assert "mean average precision" in capsys.readouterr().out
    assert row["trainable_parameters"] == 4 * 97
    with pytest.raises(ArgumentError, match="--several_labels is for --mode linear_probe"):
        run(**options | {"mode": "knn"})
    with pytest.raises(DataError, match="of type List"):
        run(**of_several_labels, mode="linear_probe", overwrite=True)
    with pytest.raises(DataError, match="those of the train split are no lists, but ClassLabel"):
        run(mode="linear_probe", several_labels=True, overwrite=True)


def test_a_suite_with_several_labels(source, of_several_labels, tmp_path):
    several = {**of_several_labels, "metric": "mean_average_precision", "num_workers": 0}
    results = transfer_suite(
        TransferSuiteArguments(
            models=[str(source)], datasets={"voc": several}, output_dir=str(tmp_path / "suite"),
            arguments={"validation_fraction": 0.0},
        )
    )  # fmt: skip
    (row,) = results["rows"]
    assert (row["metric"], row["num_images"]) == ("mean_average_precision", 45)
    assert "mAP" in (tmp_path / "suite" / "table.md").read_text()
