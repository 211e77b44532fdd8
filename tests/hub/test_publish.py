"""What is sent, tried again and said; the whole journey is integration/test_publish.py."""

import hashlib
import json
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import httpx

from hf_protosphere.cli import main
from hf_protosphere.hub import publish as publishing
from hf_protosphere.hub.arguments import PublishArguments
from hf_protosphere.hub.publish import (
    PRIVATE_ARGUMENTS,
    changed_files,
    command,
    publishable_files,
)
from hf_protosphere.runs.finished_run import FinishedRun
from tests import FIXTURES

FINISHED = FIXTURES / "version_0_1_0" / "finished"


def refused(status, error=HfHubHTTPError):
    request = httpx.Request("POST", "https://huggingface.co/api")
    return error(f"{status} of the Hub\nmore", response=httpx.Response(status, request=request))


def arguments(**options):
    return PublishArguments(**{"folder": str(FINISHED), "repo_id": "user/blobs"} | options)


def stored(path, content, *, as_lfs=False):
    """What the Hub lists of a file: of git its own hash, of LFS that of the content."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lfs = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
    return RepoFile(path=path, size=len(content), oid=blob, lfs=lfs if as_lfs else None)


def hub_with(*entries):
    return SimpleNamespace(list_repo_tree=lambda repo_id, recursive, revision: entries)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited, without waiting."""
    seconds = []
    monkeypatch.setattr(publishing.time, "sleep", seconds.append)
    return seconds


def test_what_is_published_of_a_run():
    files = publishable_files(FinishedRun.read(FINISHED), arguments())
    model = {path.name for path in FINISHED.iterdir()} - {"arguments.yaml", "environment.json", "results.json"}
    assert files.keys() == model | {"README.md", "metrics.json", "training_arguments.yaml"}
    assert files["model.safetensors"] == FINISHED / "model.safetensors"  # not in memory
    results = json.loads((FINISHED / "results.json").read_text())
    assert json.loads(files["metrics.json"]) == results
    written = yaml.safe_load((FINISHED / "arguments.yaml").read_text())
    public = yaml.safe_load(files["training_arguments.yaml"])
    assert public == {k: v for k, v in written.items() if k not in PRIVATE_ARGUMENTS}


@pytest.mark.parametrize("there", [True, False])
def test_of_a_path_the_last_part_is_published(tmp_path, there):
    folder = tmp_path / "planted_user" / "vit"
    if there:
        folder.mkdir(parents=True)
    run = FinishedRun.read(FINISHED)
    values = vars(run.arguments) | {"backbone": str(folder), "dataset_name": f"{folder}/pets/"}
    files = publishable_files(replace(run, arguments=SimpleNamespace(**values)), arguments())
    public = yaml.safe_load(files["training_arguments.yaml"])
    assert (public["backbone"], public["dataset_name"]) == ("vit", "pets")
    assert b"planted_user" not in files["training_arguments.yaml"]


def test_files_that_the_hub_holds_already_are_told_by_their_hashes(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    files = {"model.safetensors": weights, "README.md": b"words", "new.json": b"{}"}
    there = [
        RepoFolder(path="new.json", oid="0"),  # of the same name, but a folder
        stored("model.safetensors", b"weights", as_lfs=True),
        stored("README.md", b"words"),
        stored("old.json", b"{}"),
    ]
    assert changed_files(hub_with(*there), "user/x", files, "main") == ["new.json"]
    there[1] = stored("model.safetensors", b"WEIGHTS", as_lfs=True)  # of the same size
    there[2] = stored("README.md", b"other words")
    assert changed_files(hub_with(*there), "user/x", files, "main") == list(files)


@pytest.mark.parametrize("error", [refused(503), refused(429), httpx.ConnectError("no route")])
def test_what_may_pass_is_tried_again_after_a_while(waits, error):
    answers = [error, error, "done"]

    def action():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert publishing.patiently(action) == "done"
    assert waits == [1, 5]
    answers += [error] * 5
    with pytest.raises(type(error)):
        publishing.patiently(action)
    assert waits == [1, 5, 1, 5, 20]
    assert len(answers) == 1  # four tries


@pytest.mark.parametrize("error", [refused(403), refused(404), LocalTokenNotFoundError("none")])
def test_what_will_not_pass_is_tried_once(waits, error):
    def action():
        waits.append("tried")
        raise error

    with pytest.raises(type(error)):
        publishing.patiently(action)
    assert waits == ["tried"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (refused(401), "the Hub does not know the token (401). Log in by `hf auth login`."),
        # To strangers the Hub says of a private repository that there is none, and asks for a token.
        (refused(401, RepositoryNotFoundError), "the Hub wants a token (401). Log in by"),
        (LocalTokenNotFoundError("none"), "the Hub wants a token (401). Log in by"),
        (refused(403), "the token may not write to user/blobs (403)."),
        (refused(409), "somebody else changed it at the same time (409)."),
        (refused(412), "somebody else changed it at the same time (412)."),
        (refused(500), "500 of the Hub"),
        (OfflineModeIsEnabled("no network"), "HF_HUB_OFFLINE is set."),
        (OSError("\nthe disk is gone\nsomewhere"), "the disk is gone"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(error, reason):
    assert publishing._reason(error, "user/blobs").startswith(reason)
    assert "\n" not in publishing._reason(error, "user/blobs")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"private": True, "revision": "v2", "license": "mit", "commit_message": "it's done"},
        {"compare_with": ["runs/a b", "runs/c"], "create_pr": True},
        {"folder": "my runs/one", "notes": __file__},
    ],
)
def test_the_command_to_try_again_has_the_same_arguments(options, monkeypatch):
    seen = []
    monkeypatch.setattr(publishing, "publish", seen.append)
    program, *words = shlex.split(command(arguments(**options)))
    main(words)
    assert program == "protosphere"
    assert seen == [arguments(**options)]
