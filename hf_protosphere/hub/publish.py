"""Publish a finished run: one commit with everything, then a tag. Training is never called."""

import json
import logging
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, errors
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ..errors import ArgumentError, PublishError
from ..plots.text import say
from ..runs.finished_run import RELIABILITY, FinishedRun
from ..runs.folders import MODEL_FILES
from ..runs.loading import load_classifier
from ..runs.snapshots import SNAPSHOT
from .arguments import PublishArguments
from .card import PICTURES, render_card, write_card

logger = logging.getLogger(__name__)
T = TypeVar("T")

# About this machine and this way of running, not about the model.
PRIVATE_ARGUMENTS = (
    "output_dir", "overwrite", "resume", "dry_run", "report_to", "project", "run_name",
    "num_workers", "resume_from", "finetune_from", "pictures",
)  # fmt: skip
RETRY_AFTER = (1, 5, 20)  # seconds
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


def publish(arguments: PublishArguments) -> str:
    """Publish the folder of a finished run, as `protosphere publish` does.

    What did not change makes no commit. What is temporary is tried again, and all can be called again at any time.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        ArgumentError: a folder that is not a finished run, a model that does not fit its
            configuration, a tag that exists with other files.
        PublishError: the Hub cannot be reached or refuses; the folder is complete, the repository as it was.
    """
    run = FinishedRun.read(arguments.folder)
    load_classifier(str(run.folder), "folder")
    with run.reading():
        write_card(run.folder, **arguments.card_options)
        files = publishable_files(run, arguments)
    then = f"\n{run.folder} is complete. To try again:\n  {command(arguments)}"
    with hub_errors(f"{arguments.repo_id} was not published", arguments.repo_id, then):
        address = patiently(_upload, HfApi(), arguments, files)
    say(address)
    return address


def publishable_files(run: FinishedRun, arguments: PublishArguments) -> dict[str, bytes | Path]:
    """{path in the repository: content}. Nothing in them tells of this machine.

    The model with its configuration, image processor and code; the card; metrics.json, the final
    evaluations; metrics.jsonl, a line for each measurement during training; calibration.json of
    a calibrated model; training_arguments.yaml, for `protosphere train --config`; and the pictures."""
    files: dict[str, bytes | Path] = {}
    for pattern in (*MODEL_FILES, *PICTURES, SNAPSHOT, "metrics.jsonl"):
        files |= {path.name: path for path in sorted(run.folder.glob(pattern))}
    texts = {"README.md": str(render_card(run.folder, **arguments.card_options))}
    texts["metrics.json"] = json.dumps(run.results, indent=2) + "\n"
    if run.calibration is not None:
        texts["calibration.json"] = json.dumps(run.calibration, indent=2) + "\n"
        files |= {path.name: path for path in run.folder.glob(RELIABILITY)}
    public = {k: v for k, v in vars(run.arguments).items() if k not in PRIVATE_ARGUMENTS}
    public["dataset_name"] = run.dataset_name
    backbone = Path(run.arguments.backbone).expanduser()
    if backbone.is_absolute() or backbone.exists():  # a path, of this machine or another one
        public["backbone"] = backbone.name
    texts["training_arguments.yaml"] = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
    return files | {name: text.encode() for name, text in texts.items()}


def _upload(api: HfApi, arguments: PublishArguments, files: dict[str, bytes | Path]) -> str:
    """May be called again after any failure."""
    repo_id, tag = arguments.repo_id, arguments.revision
    api.create_repo(repo_id, private=arguments.private, exist_ok=True)
    address = f"{api.endpoint}/{repo_id}"
    if tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
        if changed := changed_files(api, repo_id, files, tag):
            raise ArgumentError(f"--revision {tag} of {repo_id} exists with another {changed[0]}: give a new tag.")
        logger.info("%s has these files under %s already.", repo_id, tag)
        return f"{address}/tree/{tag}"
    if changed_files(api, repo_id, files, "main"):
        operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        message, create_pr = arguments.commit_message, arguments.create_pr
        commit = api.create_commit(repo_id, operations, commit_message=message, create_pr=create_pr)
        if create_pr:
            return str(commit.pr_url)
    else:
        logger.warning("%s has these files already: no commit.", repo_id)
    if tag is not None:
        api.create_tag(repo_id, tag=tag)
        return f"{address}/tree/{tag}"
    return address


def changed_files(api: HfApi, repo_id: str, files: dict[str, bytes | Path], revision: str) -> list[str]:
    """The names of those files that the repository does not hold as they are."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    return [name for name, content in files.items() if not _is_same(content, there.get(name))]


def _is_same(content: bytes | Path, entry: RepoFile | None) -> bool:
    """By the hash that the Hub keeps: weights, which it stores as LFS, are read piece by piece."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    if entry is None or size != entry.size:
        return False
    with content.open("rb") if isinstance(content, Path) else BytesIO(content) as file:
        if entry.lfs:
            return sha_fileobj(file).hex() == entry.lfs.sha256
        return git_hash(file.read()) == entry.blob_id


@contextmanager
def hub_errors(what: str, target: str, then: str = "") -> Iterator[None]:
    """What the Hub refuses of a target, or what fails on the way to it, is a `PublishError`."""
    try:
        yield
    except (httpx.HTTPError, OSError) as error:  # those of huggingface_hub are among them
        raise PublishError(f"{what}: {_reason(error, target)}{then}") from error


def patiently(action: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The action's result, tried again after what may pass."""
    for seconds in RETRY_AFTER:
        try:
            return action(*arguments, **options)
        except (errors.HfHubHTTPError, httpx.TransportError) as error:
            if (status := _status(error)) and status not in TRANSIENT:
                raise
            logger.warning("%s; trying again in %d s.", _first_line(error), seconds)
            time.sleep(seconds)
    return action(*arguments, **options)


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def _reason(error: Exception, target: str) -> str:
    status = _status(error)
    if status == 401 and not isinstance(error, errors.RepositoryNotFoundError):
        return "the Hub does not know the token (401). Log in by `hf auth login`."
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return "the Hub wants a token (401). Log in by `hf auth login`, or set HF_TOKEN."
    if status == 403:
        return f"the token may not write to {target} (403)."
    if status in (409, 412):
        return f"somebody else changed it at the same time ({status})."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set."
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def command(arguments: PublishArguments) -> str:
    """The command line with these arguments."""
    words = ["protosphere", "publish", arguments.folder]
    for name, value in arguments.given.items():
        if name != "folder":
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)
