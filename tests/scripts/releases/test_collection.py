"""What a release asks of the Hub: whether a run is there, and one page of all models."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from hf_protosphere.errors import PublishError
from hf_protosphere.hub.publish import publishable_files
from hf_protosphere.runs.finished_run import FinishedRun
from scripts.releases import collection
from scripts.releases.collection import is_published, publish_collection
from tests.hub.test_publish import FINISHED, arguments, hub_with, refused, stored


def test_whether_a_run_is_published_is_asked_of_the_hub(monkeypatch):
    files = publishable_files(FinishedRun.read(FINISHED), arguments())
    contents = {k: v if isinstance(v, bytes) else v.read_bytes() for k, v in files.items()}
    api = hub_with(*(stored(name, content) for name, content in contents.items()))
    monkeypatch.setattr(collection, "HfApi", lambda: api)
    assert is_published(arguments())
    assert not is_published(arguments(license="mit"))  # another card

    def answer(error):
        def list_repo_tree(*_, **__):
            raise error

        api.list_repo_tree = list_repo_tree

    answer(refused(404, RepositoryNotFoundError))
    assert not is_published(arguments())
    answer(refused(403))
    with pytest.raises(PublishError, match=r"user/blobs: the token may not write to user/blobs"):
        is_published(arguments())


def test_a_collection_gets_what_it_has_not(monkeypatch):
    added = []
    page = SimpleNamespace(
        slug="user/page-1", url="https://hub/page",
        items=[SimpleNamespace(item_id=name, item_type=kind) for name, kind in (
            ("user/b", "model"), ("user/a", "dataset"))],
    )  # fmt: skip
    api = SimpleNamespace(
        create_collection=lambda title, **options: page,
        add_collection_item=lambda slug, name, kind, exists_ok: added.append((slug, name, kind)),
    )
    monkeypatch.setattr(collection, "HfApi", lambda: api)
    options = {"namespace": "user", "description": None, "private": False}
    names = ["user/c", "user/b", "user/a"]
    assert publish_collection("Page", names, **options) == "https://hub/page"
    assert added == [(page.slug, "user/c", "model"), (page.slug, "user/a", "model")]
