"""From a finished run to a repository that anyone can load: nothing is mocked but the address."""

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from datasets import ClassLabel, Features, load_dataset
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from hf_protosphere.cli import main
from hf_protosphere.errors import ArgumentError, PublishError
from hf_protosphere.hub import publish as publishing
from hf_protosphere.hub.arguments import PublishArguments
from hf_protosphere.hub.publish import publish
from hf_protosphere.training.arguments import TrainArguments
from hf_protosphere.training.train import train

REPOSITORY = "user/digits"


@pytest.fixture(scope="module")
def finished(digits_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home_of_planted_user") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_planted_token")
        train(
            TrainArguments(
                dataset_name=str(digits_folder), output_dir=str(folder), backbone="test_resnet",
                epochs=4, batch_size=16, optimizer="adamw", augmentation="crop", num_workers=0,
                horizontal_flip=False, report_to="none", run_name="planted_run",
            )
        )  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(publishing, "RETRY_AFTER", (0, 0))


def arguments(folder, **options):
    defaults = {"folder": str(folder), "repo_id": REPOSITORY, "license": "apache-2.0"}
    return PublishArguments(**defaults | options)


def commits(hub):
    return [commit.title for commit in HfApi().list_repo_commits(REPOSITORY)]


def test_one_commit_with_everything_then_a_tag(hub, finished, capsys):
    main(f"publish {finished} --repo_id {REPOSITORY} --revision v1.0 --license mit".split())
    assert f"{hub.url}/{REPOSITORY}/tree/v1.0" in capsys.readouterr().out
    assert commits(hub) == ["Publish by hf_protosphere", "initial commit"]
    names = set(HfApi().list_repo_files(REPOSITORY, revision="v1.0"))
    assert names - {".gitattributes"} == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
        "configuration_protosphere.py", "modeling_protosphere.py",
        "pipeline_protosphere.py", "objectives.py", "losses.py", "contrast.py",
        "prototypes.py", "backbones.py", "checking.py", "editable_classes.py", "rgb.py",
        "metrics.json", "metrics.jsonl", "curves.png",
        "neural_collapse.png", "sphere.png", "cosines.png", "margins.png",
        "training_arguments.yaml", "snapshot.safetensors",
    }  # fmt: skip
    card = ModelCard.load(REPOSITORY)
    assert card.data.license == "mit"
    metrics = json.loads(Path(hf_hub_download(REPOSITORY, "metrics.json")).read_text())
    accuracy = next(r for r in card.data.eval_results if r.metric_type == "accuracy")
    assert accuracy.metric_value == pytest.approx(metrics["validation"]["accuracy"], rel=1e-5)
    recipe = yaml.safe_load(Path(hf_hub_download(REPOSITORY, "training_arguments.yaml")).read_text())
    assert recipe["dataset_name"] == "digits0"
    assert TrainArguments(**recipe).epochs == 4


def test_nothing_tells_of_this_machine(hub, finished, digits_folder):
    publish(arguments(finished))
    snapshot = snapshot_download(REPOSITORY)
    planted = [b"hf_planted", b"planted_user", b"planted_run", str(finished.parent).encode(),
               str(digits_folder.parent).encode(), b"/tmp/", b"hf_write"]  # fmt: skip
    files = [path for path in Path(snapshot).rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in planted if secret in content], path.name


def test_again_without_a_change_makes_no_commit(hub, finished, caplog):
    publish(arguments(finished))
    with caplog.at_level(logging.WARNING):
        publish(arguments(finished, revision="v1"))
    assert "has these files already: no commit" in caplog.text
    assert len(commits(hub)) == 2
    publish(arguments(finished, revision="v1"))  # the same under the same tag
    with pytest.raises(ArgumentError, match=r"--revision v1 .* exists with another READ"):
        publish(arguments(finished, revision="v1", license="mit"))
    assert len(commits(hub)) == 2


def test_loading_by_name_and_revision(hub, finished, digits_folder):
    publish(arguments(finished, revision="v1"))
    local = AutoModelForImageClassification.from_pretrained(finished).eval()
    model = AutoModelForImageClassification.from_pretrained(REPOSITORY, revision="v1").eval()
    file = next((digits_folder / "test").rglob("*.png"))
    processor = AutoImageProcessor.from_pretrained(REPOSITORY, revision="v1")
    inputs = processor(Image.open(file).convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        expected, output = local(**inputs), model(**inputs)
        embeddings = AutoModel.from_pretrained(REPOSITORY).eval()(**inputs).embeddings
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(embeddings, expected.embeddings)
    answer = pipeline("image-classification", model=REPOSITORY, revision="v1")(str(file))
    assert answer[0]["score"] == pytest.approx(expected.logits.softmax(-1).max().item(), abs=1e-6)
    half = AutoModelForImageClassification.from_pretrained(REPOSITORY, dtype=torch.bfloat16, device_map="cpu")
    assert next(half.parameters()).dtype == torch.bfloat16


def test_embeddings_by_the_feature_extraction_pipeline(hub, finished, digits_folder):
    publish(arguments(finished))
    file = next((digits_folder / "test").rglob("*.png"))
    extract = pipeline("image-feature-extraction", model=REPOSITORY)
    embedding = torch.tensor(extract(str(file), return_tensors=False)).flatten()
    assert embedding.norm().item() == pytest.approx(1, abs=1e-5)


def test_a_stranger_loads_it_and_then_without_the_network(hub, finished, digits_folder, python, tmp_path):
    publish(arguments(finished, revision="v1"))
    script = """
import sys
sys.modules["hf_protosphere"] = None
from transformers import AutoConfig, AutoModel, pipeline
options = {"revision": "v1", "trust_remote_code": True}
assert AutoConfig.from_pretrained("user/digits", **options).objective == "ntce"
AutoModel.from_pretrained("user/digits", **options)
print(pipeline("image-classification", model="user/digits", **options)(sys.argv[1])[0]["label"])
"""
    file = next((digits_folder / "test").rglob("*.png"))
    online = python("-c", script, file, cwd=tmp_path, hub=hub)
    assert online.returncode == 0, online.stderr[-2000:]
    requests = len(hub.requests)
    offline = "import huggingface_hub\nhuggingface_hub.constants.HF_HUB_OFFLINE = True"
    offline = python("-c", offline + script, file, cwd=tmp_path, hub=hub)
    assert offline.returncode == 0, offline.stderr[-2000:]
    assert offline.stdout == online.stdout
    assert len(hub.requests) == requests


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 401}, r"token.*\(401\)"),
        ({"status": 403}, r"the token may not write to user/digits \(403\)"),
        ({"status": 409}, r"somebody else changed it at the same time \(409\)"),
        ({"status": 500}, "500"),
        ({"cut": "before"}, r"(?i)disconnected|closed|reset|connection"),
    ],
)
def test_a_refused_commit_leaves_everything_as_it_was(hub, finished, fault, message):
    publish(arguments(finished))
    before = HfApi().model_info(REPOSITORY).sha
    files = sorted(path.name for path in finished.iterdir())
    hub.fail("POST", r"/commit/", times=3, **fault)
    with pytest.raises(PublishError, match=message) as failed:
        publish(arguments(finished, revision="v2", license="mit", commit_message="Better digits"))
    again = f"protosphere publish {finished} --repo_id user/digits --license mit --revision v2 "
    again += "--commit_message 'Better digits'"
    assert f"{finished} is complete" in str(failed.value)
    assert again in str(failed.value)
    assert HfApi().model_info(REPOSITORY).sha == before
    assert not HfApi().list_repo_refs(REPOSITORY).tags
    assert sorted(path.name for path in finished.iterdir()) == files


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("POST", r"/commit/", {"status": 503}),
        ("POST", r"/commit/", {"cut": "after"}),  # made, but the answer is lost
        ("POST", r"/preupload/", {"status": 500}),
        ("PUT", r".*", {"cut": "upload"}),
        ("POST", r"/tag/", {"status": 502}),
    ],
)
def test_what_passes_is_tried_again(hub, finished, method, path, fault):
    hub.fail(method, path, times=1, **fault)
    publish(arguments(finished, revision="v1"))
    assert len(commits(hub)) == 2
    (tag,) = HfApi().list_repo_refs(REPOSITORY).tags
    assert tag.target_commit == HfApi().model_info(REPOSITORY).sha


def test_a_pull_request_leaves_main_as_it_was(hub, finished):
    address = publish(arguments(finished, create_pr=True))
    assert "/discussions/1" in address
    assert "model.safetensors" not in HfApi().list_repo_files(REPOSITORY)
    assert "model.safetensors" in HfApi().list_repo_files(REPOSITORY, revision="refs/pr/1")


def test_a_private_repository(hub, finished):
    publish(arguments(finished, private=True))
    assert HfApi().model_info(REPOSITORY).private


def test_what_cannot_be_published_is_said_before_anything_is_sent(hub, tmp_path):
    with pytest.raises(ArgumentError, match="there is no such folder"):
        publish(arguments(tmp_path / "none"))
    assert hub.count("POST", r".*") == 0


def test_training_goes_on_from_the_hub_on_data_from_the_hub(hub, finished, digits_folder, tmp_path):
    publish(arguments(finished))
    digits = load_dataset(str(digits_folder))
    names = ["digit_2", "digit_0", "digit_1"]  # in another order: matched by name
    features = digits["train"].features | {"label": ClassLabel(names=names)}
    table = [names.index(name) for name in digits["train"].features["label"].names]
    reordered = digits.map(lambda row: {"label": table[row["label"]]}, features=Features(features))
    reordered.push_to_hub("user/digits-data")
    run = tmp_path / "run"
    command = (
        f"train --dataset_name user/digits-data --resume_from {REPOSITORY} --output_dir {run} "
        "--epochs 1 --learning_rate 1e-30 --weight_decay 1e-30 --batch_size 16 --num_workers 0 "
        "--optimizer adamw --no_horizontal_flip --report_to none --no_pictures"
    )
    main(command.split())
    before, after = (json.loads((f / "results.json").read_text()) for f in (finished, run))
    assert after["test"]["accuracy"] == pytest.approx(before["test"]["accuracy"], abs=0.1)
    model = AutoModelForImageClassification.from_pretrained(run)
    assert list(model.config.id2label.values()) == ["digit_0", "digit_1", "digit_2"]
    assert after["provenance"]["dataset"] == "user/digits-data"
    assert after["provenance"]["base_model"] == REPOSITORY
    with pytest.raises(SystemExit, match="2"):
        main([*command.split(), "--overwrite", "--backbone", "resnet10t"])


def test_offline(finished, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match=r"(?i)offline"):
        publish(arguments(finished))
