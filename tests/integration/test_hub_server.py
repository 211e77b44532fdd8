"""The Hub of the tests, asked by the real clients: huggingface_hub, datasets, transformers."""

import base64
import hashlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import CommitOperationAdd, ModelCard, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, httpx
from PIL import Image
from transformers import AutoImageProcessor

from hf_protosphere import ProtoSphereConfig, ProtoSphereForImageClassification
from tests.hub_server import HubServer
from tests.hub_server.clients import use

CARD = "---\nlicense: mit\nlibrary_name: transformers\ntags: [collapse]\n---\n# A model\n"
WEIGHTS = bytes(range(256)) * 4_000  # a megabyte
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "pictures").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"model_type": "protosphere"}')
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "pictures" / "curves.svg").write_text("<svg/>")
    return folder


@pytest.fixture
def published(hub, folder):
    """user/model with the folder's files, tagged v1."""
    hub.api().create_repo("user/model")
    hub.api().upload_folder(repo_id="user/model", folder_path=folder)
    hub.api().create_tag("user/model", tag="v1")
    hub.requests.clear()
    return "user/model"


def read(path):
    return Path(path).read_bytes()


def commit_lines(hub, repo_id, *operations):
    """Send a commit as the client would, without what it looks at before."""
    lines = [("header", {"summary": "a commit"}), *operations]
    content = "".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in lines)
    return get_session().post(
        f"{hub.url}/api/models/{repo_id}/commit/main",
        content=content,
        headers={"Authorization": f"Bearer {hub.token}"},
    )


def file_line(path, content):
    encoded = base64.b64encode(content.encode()).decode()
    return "file", {"path": path, "content": encoded, "encoding": "base64"}


# Publishing


def test_a_folder_goes_up_and_comes_down(hub, folder):
    api = hub.api()
    url = api.create_repo("model", repo_type="model")
    assert (url, url.repo_id) == (f"{hub.url}/user/model", "user/model")
    commit = api.upload_folder(repo_id="user/model", folder_path=folder, commit_message="first")
    assert hub.count("PUT", f"/lfs/{SHA256}") == 1  # the weights, and nothing else, by LFS
    assert hub.count("PUT", "/lfs/") == 1

    info = api.model_info("user/model", files_metadata=True)
    assert (info.sha, info.private, info.author) == (commit.oid, False, "user")
    assert (info.library_name, info.card_data.license) == ("transformers", "mit")
    assert set(info.tags) == {"transformers", "collapse", "license:mit"}
    assert info.config == {"model_type": "protosphere"}
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes.pop(".gitattributes") > 0
    local = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert sizes == {name: path.stat().st_size for name, path in local.items()}
    weights = next(s for s in info.siblings if s.rfilename == "model.safetensors")
    assert (weights.lfs.sha256, weights.lfs.size) == (SHA256, len(WEIGHTS))

    for name, path in local.items():
        assert read(api.hf_hub_download("user/model", name)) == path.read_bytes()


def test_hashes_are_those_of_git(hub, published, folder):
    info = hub.api().model_info(published, files_metadata=True)
    oid = {sibling.rfilename: sibling.blob_id for sibling in info.siblings}
    command = ["git", "hash-object", "--no-filters", str(folder / "README.md")]
    assert oid["README.md"] == subprocess.check_output(command, text=True).strip()
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    pointer += f"oid sha256:{SHA256}\nsize {len(WEIGHTS)}\n"
    command = ["git", "hash-object", "--stdin"]
    expected = subprocess.check_output(command, input=pointer, text=True).strip()
    assert oid["model.safetensors"] == expected


def test_what_has_not_changed_makes_no_commit(hub, published, folder):
    api = hub.api()
    before = api.list_repo_commits(published)
    again = api.upload_folder(repo_id=published, folder_path=folder)
    assert again.oid == before[0].commit_id
    assert api.list_repo_commits(published) == before
    assert hub.count("PUT", "/lfs/") == 0

    # Nor when the client does not look before it sends.
    weights = ("lfsFile", {"path": "model.safetensors", "oid": SHA256})
    answer = commit_lines(hub, published, file_line("README.md", CARD), weights)
    assert answer.json()["commitOid"] == before[0].commit_id


def test_a_commit_is_whole_or_not_at_all(hub, published):
    api = hub.api()
    before = api.list_repo_commits(published)
    missing = ("lfsFile", {"path": "new.bin", "oid": "0" * 64})
    answer = commit_lines(hub, published, file_line("new.txt", "hi"), missing)
    assert answer.status_code == 400
    assert "new.bin has not been uploaded" in answer.json()["error"]
    assert api.list_repo_commits(published) == before
    assert not api.file_exists(published, "new.txt")


def test_an_upload_must_have_its_hash(hub, published):
    url = f"{hub.url}/lfs/{'1' * 64}"
    answer = get_session().put(url, content=WEIGHTS)
    assert answer.status_code == 400
    assert SHA256 in answer.headers["X-Error-Message"]
    assert not (hub.folder / "objects" / ("1" * 64)).exists()
    assert not list(hub.folder.rglob("*.unfinished"))


def test_a_stale_parent_is_refused(hub, published):
    api, file = hub.api(), b"text"
    first = api.model_info(published).sha
    options = {"repo_id": published, "path_in_repo": "a.txt", "parent_commit": first}
    second = api.upload_file(path_or_fileobj=file, **options).oid
    with pytest.raises(HfHubHTTPError, match=r"A commit has happened since") as error:
        api.upload_file(path_or_fileobj=b"other text", **options)
    assert error.value.response.status_code == 412
    assert api.model_info(published).sha == second


def test_files_and_folders_are_deleted(hub, published):
    api = hub.api()
    api.delete_folder("pictures", published)
    api.delete_file("config.json", published)
    assert set(api.list_repo_files(published)) == {*(".gitattributes", "README.md", "model.safetensors")}
    assert "config.json" in api.list_repo_files(published, revision="v1")
    with pytest.raises(EntryNotFoundError, match=r"A file with this name doesn't exist"):
        api.delete_file("config.json", published)


def test_uploads_at_the_same_time_all_arrive(hub, published):
    api = hub.api()
    same = [CommitOperationAdd(f"{i}.bin", WEIGHTS[::-1]) for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        list(
            pool.map(
                lambda add: api.create_commit(published, [add], commit_message=add.path_in_repo),
                same,
            )
        )
    assert {f"{i}.bin" for i in range(6)} <= set(api.list_repo_files(published))
    assert len(api.list_repo_commits(published)) == 8


# Revisions


def test_tags_and_branches(hub, published):
    api = hub.api()
    first = api.model_info(published).sha
    api.create_branch(published, branch="try/this", revision="v1")
    second = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=published, revision="try/this").oid
    refs = api.list_repo_refs(published)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": first, "try/this": second}
    assert [(t.name, t.ref, t.target_commit) for t in refs.tags] == [("v1", "refs/tags/v1", first)]
    assert api.model_info(published, revision="v1").sha == first
    assert api.model_info(published, revision=second[:8]).sha == second
    assert api.file_exists(published, "x.txt", revision="try/this")
    assert not api.file_exists(published, "x.txt")

    with pytest.raises(HfHubHTTPError, match=r"exists already"):
        api.create_tag(published, tag="v1")
    api.create_tag(published, tag="v1", exist_ok=True)
    api.create_branch(published, branch="main", exist_ok=True)
    api.delete_tag(published, tag="v1")
    api.delete_branch(published, branch="try/this")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(published, revision="v1")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(published, tag="v1")
    with pytest.raises(HfHubHTTPError, match=r"main cannot be deleted"):
        api.delete_branch(published, branch="main")


def test_a_pinned_revision_stays_as_it_is(hub, published):
    api = hub.api()
    new = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=published)
    old = api.hf_hub_download(published, "config.json", revision="v1")
    assert read(old) == b'{"model_type": "protosphere"}'
    assert read(api.hf_hub_download(published, "config.json", revision=new.oid)) == b"{}"
    assert [c.title for c in api.list_repo_commits(published, revision="v1")] == [
        *("Upload folder using huggingface_hub", "initial commit")
    ]


def test_a_pull_request_is_a_revision_of_its_own(hub, published):
    api, other = hub.api(), hub.api(hub.other_token)
    pull_request = other.upload_file(
        path_or_fileobj=b"better", path_in_repo="b.txt", repo_id=published, create_pr=True
    )
    assert pull_request.pr_revision == "refs/pr/1"
    assert not api.file_exists(published, "b.txt")
    assert api.file_exists(published, "b.txt", revision="refs/pr/1")
    api.upload_file(path_or_fileobj=b"c", path_in_repo="c.txt", repo_id=published, revision="refs/pr/1")
    refs = api.list_repo_refs(published, include_pull_requests=True).pull_requests
    assert [ref.ref for ref in refs] == ["refs/pr/1"]
    assert read(api.hf_hub_download(published, "c.txt", revision="refs/pr/1")) == b"c"


def test_what_is_missing_is_said_as_the_hub_says_it(hub, published):
    api = hub.api()
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/none")
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("bert-base-uncased", "config.json")
    with pytest.raises(RevisionNotFoundError, match=r"Invalid rev id: v9"):
        api.hf_hub_download(published, "config.json", revision="v9")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(published, "none.json")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(published, "none"))
    assert [f.path for f in api.get_paths_info(published, ["pictures", "none"])] == ["pictures"]
    assert [f.path for f in api.list_repo_tree(published, "pictures")] == ["pictures/curves.svg"]
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("user/model")
    assert error.value.response.status_code == 409


# Downloads


def test_a_snapshot_and_afterwards_no_network(hub, published, folder, monkeypatch):
    by_tag = hub.api().snapshot_download(published, revision="v1")
    assert read(f"{by_tag}/model.safetensors") == WEIGHTS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert hub.api().snapshot_download(published, revision="v1") == by_tag
    weights = hub.api().hf_hub_download(published, "model.safetensors", revision="v1")
    assert weights == f"{by_tag}/model.safetensors"
    with pytest.raises(LocalEntryNotFoundError):
        hub.api().hf_hub_download(published, "config.json", revision="v2")
    assert hub.requests == []


def test_parts_of_a_file(hub, published):
    url = f"{hub.url}/{published}/resolve/v1/model.safetensors"

    def part(range):
        return get_session().get(url, headers={"Range": f"bytes={range}"})

    answer = part("1000-1999")
    assert (answer.status_code, answer.content) == (206, WEIGHTS[1000:2000])
    assert answer.headers["Content-Range"] == f"bytes 1000-1999/{len(WEIGHTS)}"
    assert part("1023000-").content == WEIGHTS[1023000:]
    assert part("-5").content == WEIGHTS[-5:]
    assert part(f"{len(WEIGHTS)}-").status_code == 416
    head = get_session().head(url).headers
    assert head["ETag"] == head["X-Linked-Etag"] == f'"{SHA256}"'
    assert int(head["X-Linked-Size"]) == int(head["Content-Length"]) == len(WEIGHTS)
    assert head["X-Repo-Commit"] == hub.api().model_info(published).sha


# Tokens


def test_private_repositories(hub, folder):
    api = hub.api()
    api.create_repo("user/secret", private=True)
    api.upload_folder(repo_id="user/secret", folder_path=folder)
    assert api.model_info("user/secret").private
    assert hub.api(hub.read_token).file_exists("user/secret", "config.json")
    for token, status in ((False, 401), (hub.other_token, 404)):
        stranger = hub.api(token)
        for ask in (
            lambda api: api.model_info("user/secret"),
            lambda api: api.hf_hub_download("user/secret", "README.md"),
            lambda api: api.snapshot_download("user/secret"),
            lambda api: api.auth_check("user/secret"),
        ):
            with pytest.raises(RepositoryNotFoundError) as error:
                ask(stranger)
            assert error.value.response.status_code == status
        assert list(stranger.list_models()) == []
    assert [model.id for model in api.list_models(author="user")] == ["user/secret"]
    api.update_repo_settings("user/secret", private=False)
    assert hub.api(False).model_info("user/secret").private is False


def test_who_may_write(hub, published):
    def upload(token):
        hub.api(token).upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=published)

    for token, message in (
        (hub.read_token, r"has the role read, not write"),
        (hub.other_token, r"other has no rights in the namespace user"),
        ("hf_unknown", r"Invalid credentials in Authorization header"),
        (False, r"Invalid username or password"),
    ):
        with pytest.raises(HfHubHTTPError, match=message):
            upload(token)
        with pytest.raises(HfHubHTTPError, match=message):
            hub.api(token).create_repo("user/new")
    with pytest.raises(HfHubHTTPError, match=r"no rights"):
        hub.api(hub.other_token).delete_repo(published)
    hub.api().auth_check(published, write=True)
    with pytest.raises(HfHubHTTPError):
        hub.api(hub.read_token).auth_check(published, write=True)
    assert hub.api().whoami()["name"] == hub.api(hub.read_token).whoami()["name"] == "user"
    with pytest.raises(HfHubHTTPError, match=r"Invalid user token"):
        hub.api("hf_unknown").whoami()
    hub.api().delete_repo(published)
    with pytest.raises(RepositoryNotFoundError):
        hub.api().model_info(published)


# Cards, lists, collections


def test_a_card_is_checked(hub):
    hub.api().create_repo("user/model")
    ModelCard(CARD).push_to_hub("user/model")
    assert ModelCard.load("user/model").data.tags == ["collapse"]
    for yaml, message in (
        ("license: [mit", r"Invalid YAML"),
        ("tags: {a: b}", r"\"tags\" must be a string or a list of strings"),
        ("model-index: x", r"\"model-index\" must be an array"),
        ("model-index: [{name: x, results: [{task: {type: y}}]}]", r"dataset.type\" is required"),
    ):
        readme = f"---\n{yaml}\n---\n"
        with pytest.raises(ValueError, match=message):
            hub.api().upload_file(path_or_fileobj=readme.encode(), path_in_repo="README.md", repo_id="user/model")
        answer = commit_lines(hub, "user/model", file_line("README.md", readme))
        assert answer.status_code == 400
    with pytest.raises(ValueError, match=r"license.* must be a string"):
        ModelCard("---\nlicense: {a: b}\n---\n").push_to_hub("user/model")


def test_lists(hub, published):
    api = hub.api()
    api.create_repo("user/digits", repo_type="dataset")
    hub.api(hub.other_token).create_repo("other/Model-2")
    api.create_repo("user/app", repo_type="space", space_sdk="static")
    assert {model.id for model in api.list_models()} == {"user/model", "other/Model-2"}
    assert [model.id for model in api.list_models(search="model-")] == ["other/Model-2"]
    assert [model.id for model in api.list_models(filter="collapse")] == ["user/model"]
    assert [data.id for data in api.list_datasets(author="user")] == ["user/digits"]
    assert list(api.list_datasets(author="other")) == []
    assert [space.id for space in api.list_spaces()] == ["user/app"]


def test_collections(hub, published):
    api = hub.api()
    collection = api.create_collection("Neural collapse", description="Models")
    assert collection.slug.startswith("user/neural-collapse-")
    assert api.create_collection("Neural collapse", exists_ok=True).slug == collection.slug
    with pytest.raises(HfHubHTTPError):
        api.create_collection("Neural collapse")
    api.add_collection_item(collection.slug, published, "model", note="the first")
    api.add_collection_item(collection.slug, published, "model", exists_ok=True)
    api.add_collection_item(collection.slug, "2605.20302", "paper")
    with pytest.raises(HfHubHTTPError, match=r"already in the collection"):
        api.add_collection_item(collection.slug, published, "model")
    with pytest.raises(RepositoryNotFoundError):
        api.add_collection_item(collection.slug, "user/none", "model")
    with pytest.raises(HfHubHTTPError, match=r"no rights"):
        hub.api(hub.other_token).add_collection_item(collection.slug, published, "model")
    items = api.get_collection(collection.slug).items
    assert [(item.item_id, item.item_type, item.note) for item in items] == [
        *((published, "model", "the first"), ("2605.20302", "paper", None))
    ]


# Faults


def test_a_status_and_a_delay(hub, published):
    hub.fail("GET", "/api/models/user/model$", status=500, times=2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as error:
            hub.api().model_info(published)
        assert error.value.response.status_code == 500
    hub.api().model_info(published)

    hub.fail("HEAD", r"config\.json", delay=0.3)
    start = time.monotonic()
    hub.api().hf_hub_download(published, "config.json")
    assert time.monotonic() - start > 0.3
    hub.fail("GET", "/api/models", delay=30)
    with pytest.raises(httpx.ReadTimeout):
        hub.api().model_info(published, timeout=0.1)
    assert [(request.method, request.status) for request in hub.requests] == [
        *(("GET", 500), ("GET", 500), ("GET", 200)),
        *(("HEAD", 200), ("GET", 200), ("GET", None)),
    ]


def test_a_connection_cut_before_the_answer(hub, published):
    hub.fail("POST", "/tag/", cut="before")
    with pytest.raises(httpx.HTTPError):
        hub.api().create_tag(published, tag="v2")
    assert [tag.name for tag in hub.api().list_repo_refs(published).tags] == ["v1"]

    hub.fail("POST", "/tag/", cut="after")
    with pytest.raises(httpx.HTTPError):
        hub.api().create_tag(published, tag="v2")
    assert [tag.name for tag in hub.api().list_repo_refs(published).tags] == ["v1", "v2"]


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, published):
    api, file = hub.api(), {"path_in_repo": "a.txt", "repo_id": published}
    hub.fail("POST", "/commit/", cut="after")
    with pytest.raises(httpx.HTTPError):
        api.upload_file(path_or_fileobj=b"a", **file)
    commits = api.list_repo_commits(published)
    assert api.upload_file(path_or_fileobj=b"a", **file).oid == commits[0].commit_id
    assert len(commits) == 3


def test_an_upload_cut_half_way_is_sent_again(hub):
    hub.api().create_repo("user/model")
    hub.fail("PUT", "/lfs/", cut="upload")
    hub.api().upload_file(path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors", repo_id="user/model")
    assert hub.count("PUT", "/lfs/") == 2
    assert hub.api().file_exists("user/model", "model.safetensors")
    assert not list(hub.folder.rglob("*.unfinished"))


def test_a_download_cut_half_way_is_resumed(hub, published, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64 * 1024)
    hub.fail("GET", "model.safetensors", cut="download")
    path = hub.api().hf_hub_download(published, "model.safetensors")
    assert read(path) == WEIGHTS
    requests = [r.status for r in hub.requests if r.method == "GET"]
    assert requests == [200, 206]


def test_a_fault_is_one_of_those_there_are(hub):
    with pytest.raises(ValueError, match=r"cut is one of \('before', .*\), not 'later'"):
        hub.fail("GET", "/", cut="later")
    with pytest.raises(ValueError, match=r"a status, a delay or a cut"):
        hub.fail("GET", "/")


# The whole


def test_everything_survives_a_restart(tmp_path, folder, monkeypatch):
    with HubServer(tmp_path / "hub") as first:
        use(first.variables, monkeypatch)
        first.api().create_repo("user/model", private=True)
        api = first.api()
        api.create_commit(
            "user/model",
            [CommitOperationAdd("config.json", folder / "config.json")],
            commit_message="a file",
        )
        api.create_tag("user/model", tag="v1")
        slug = api.create_collection("Models").slug
    with HubServer(tmp_path / "hub") as second:
        use(second.variables, monkeypatch)
        api = second.api()
        assert api.model_info("user/model", revision="v1").private
        assert api.list_repo_commits("user/model")[0].title == "a file"
        assert api.get_collection(slug).title == "Models"


def test_a_data_set_by_its_name(hub, digits_folder):
    digits = load_dataset("imagefolder", data_dir=str(digits_folder))
    digits.push_to_hub("user/digits", private=True)
    loaded = load_dataset("user/digits")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 120, "test": 45}
    assert loaded["test"].features["label"].names == ["digit_0", "digit_1", "digit_2"]
    assert loaded["test"][0]["image"].tobytes() == digits["test"][0]["image"].tobytes()
    assert hub.api().dataset_info("user/digits").card_data["dataset_info"]["features"]


@pytest.mark.slow  # processes that import everything anew
def test_a_model_by_its_name_in_a_fresh_process(hub, python, tmp_path):
    config = ProtoSphereConfig(backbone="test_resnet", image_size=32, num_labels=3)
    model = ProtoSphereForImageClassification(config).eval()
    model.push_to_hub("user/protosphere", private=True)
    assert AutoImageProcessor.from_pretrained("user/protosphere").crop_size["height"] == 32
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="user/saved")
    assert AutoImageProcessor.from_pretrained("user/saved").crop_size["height"] == 32
    hub.api().create_tag("user/protosphere", tag="v1")
    hub.api().delete_file("config.json", "user/protosphere")  # v1 has it
    Image.new("RGB", (32, 32), "orange").save(tmp_path / "image.png")
    code = f"""
import json, sys
sys.modules["hf_protosphere"] = None
import torch
from transformers import AutoModelForImageClassification, pipeline
options = {{"revision": "v1", "trust_remote_code": True}}
model = AutoModelForImageClassification.from_pretrained("user/protosphere", **options).eval()
with torch.no_grad():
    logits = model(torch.ones(1, 3, 32, 32)).logits
classify = pipeline("image-classification", model="user/protosphere", **options)
print(json.dumps([logits.tolist(), classify({str(tmp_path / "image.png")!r})]))
"""
    result = python("-c", code, cwd=tmp_path, hub=hub)
    assert result.returncode == 0, result.stderr
    logits, scores = json.loads(result.stdout.splitlines()[-1])
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 32, 32)).logits
    assert torch.allclose(torch.tensor(logits), expected, atol=1e-5)
    assert {score["label"] for score in scores} == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert not [request for request in hub.requests if request.status == 401]


def test_by_hand(tmp_path):
    """What `make hub` prints can be pasted into a shell."""
    command = [sys.executable, "-m", "tests.hub_server", "--port", "0", "--folder", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        lines = []
        while not lines or not lines[-1].startswith("unset"):
            lines.append(server.stdout.readline().decode())
        code = "import huggingface_hub; print(huggingface_hub.create_repo('model').repo_id)"
        script = "".join(lines) + f"{sys.executable} -c {json.dumps(code)}\n"
        try:
            assert subprocess.check_output(script, shell=True, text=True) == "user/model\n"
        finally:
            server.terminate()
