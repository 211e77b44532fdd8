"""What a release asks of the Hub beside publishing: who is logged in, what is there, one page of all models."""

from collections.abc import Sequence

from huggingface_hub import HfApi, errors

from hf_protosphere.hub.arguments import PublishArguments
from hf_protosphere.hub.publish import changed_files, hub_errors, patiently, publishable_files
from hf_protosphere.runs.finished_run import FinishedRun


def is_published(arguments: PublishArguments) -> bool:
    """Whether `publish` with these arguments would find everything in its place, tag included.

    Raises:
        PublishError: the Hub cannot be asked.
    """
    run = FinishedRun.read(arguments.folder)
    with run.reading():
        files = publishable_files(run, arguments)
    repo_id, revision = arguments.repo_id, arguments.revision or "main"
    with hub_errors(repo_id, repo_id):
        try:
            return not patiently(changed_files, HfApi(), repo_id, files, revision)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            return False


def account() -> str:
    """The name of whoever is logged in; a `PublishError` where nobody is."""
    with hub_errors("nothing can be published", "the Hub"):
        return str(patiently(HfApi().whoami)["name"])


def publish_collection(
    title: str, repo_ids: Sequence[str], *, namespace: str, description: str | None, private: bool
) -> str:
    """The address of a page of these models, in this order; those that it has already stay where they are.

    Raises:
        PublishError: the Hub cannot be reached or refuses. It can be called again.
    """
    api = HfApi()
    with hub_errors(f"the collection {title!r} is not complete", "the collection"):
        collection = patiently(
            api.create_collection, title, namespace=namespace, description=description,
            private=private, exists_ok=True,
        )  # fmt: skip
        there = {item.item_id for item in collection.items if item.item_type == "model"}
        for repo_id in [name for name in repo_ids if name not in there]:
            patiently(api.add_collection_item, collection.slug, repo_id, "model", exists_ok=True)
    return collection.url
