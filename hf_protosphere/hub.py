"""Publish a finished run: one commit with everything, then a tag. Training is never called."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx

from .arguments import PublishArguments
from .card import PICTURES, write_card
from .checkpoints import MODEL_FILES
from .errors import ArgumentError, PublishError
from .modeling_protosphere import ProtoSphereForImageClassification
from .runs import FinishedRun

logger = logging.getLogger(__name__)
T = TypeVar("T")

# About this machine and this way of running, not about the model.
PRIVATE_ARGUMENTS = (
    "output_dir", "overwrite", "resume", "dry_run", "report_to", "project", "run_name",
    "num_workers", "resume_from",
)  # fmt: skip
RETRY_AFTER = (1, 5, 20)  # seconds
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


def publish(arguments: PublishArguments) -> str:
    """Publish the folder of a finished run, as `protosphere publish` does.

    What did not change makes no commit. What is temporary is tried again, and the whole can be
    called again at any time.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        ArgumentError: a folder that is not a finished run, a model that does not fit its
            configuration, a tag that exists with other files.
        PublishError: the Hub cannot be reached or refuses; the folder is complete, the repository
            as it was.
    """
    run = FinishedRun.read(arguments.folder)
    try:
        ProtoSphereForImageClassification.from_pretrained(run.folder)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{run.folder} holds no whole model: {error}") from error
    notes = Path(arguments.notes).read_text() if arguments.notes else None
    written = write_card(
        run.folder,
        repo_id=arguments.repo_id,
        license=arguments.license,
        notes=notes,
        benchmark_task=arguments.benchmark_task,
    )
    files = publishable_files(run)
    files |= {str(path.relative_to(run.folder)): path.read_bytes() for path in written}
    try:
        address = _patiently(lambda: _upload(HfApi(), arguments, files))
    except (HfHubHTTPError, httpx.HTTPError, LocalTokenNotFoundError, OSError) as error:
        raise PublishError(
            f"{arguments.repo_id} was not published: {_reason(error, arguments)}\n"
            f"{run.folder} is complete. To try again:\n  {command(arguments)}"
        ) from error
    print(f"{address}")
    return address


def publishable_files(run: FinishedRun) -> dict[str, bytes | Path]:
    """{path in the repository: content}, all but the card. Nothing in them tells of this machine.

    The model with its configuration, image processor and code; metrics.json, the final evaluations;
    metrics.jsonl, a line for each measurement during training; training_arguments.yaml, for
    `protosphere train --config`; and the pictures.
    """
    files: dict[str, bytes | Path] = {}
    for pattern in (*MODEL_FILES, *PICTURES, "metrics.jsonl"):
        files |= {path.name: path for path in sorted(run.folder.glob(pattern))}
    files["metrics.json"] = (json.dumps(run.results, indent=2) + "\n").encode()
    public = {
        name: value
        for name, value in dataclasses.asdict(run.arguments).items()
        if name not in PRIVATE_ARGUMENTS
    }
    public["dataset_name"] = run.dataset_name
    public["backbone"] = Path(run.arguments.backbone).name if _is_path(run) else public["backbone"]
    text = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
    files["training_arguments.yaml"] = text.encode()
    return files


def _is_path(run: FinishedRun) -> bool:
    return Path(run.arguments.backbone).expanduser().exists()


def _upload(api: HfApi, arguments: PublishArguments, files: dict[str, bytes | Path]) -> str:
    """May be called again after any failure."""
    repo_id, tag = arguments.repo_id, arguments.revision
    api.create_repo(repo_id, private=arguments.private, exist_ok=True)
    address = f"{api.endpoint}/{repo_id}"
    tags = {ref.name for ref in api.list_repo_refs(repo_id).tags}
    if tag in tags:
        if changed := changed_files(api, repo_id, files, tag):
            raise ArgumentError(
                f"--revision {tag} of {repo_id} exists already, with another {changed[0]}: give "
                "the new files another one, or delete that tag."
            )
        logger.info("%s has these files under %s already.", repo_id, tag)
        return f"{address}/tree/{tag}"
    if changed_files(api, repo_id, files, "main"):
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in sorted(files.items())],
            commit_message=arguments.commit_message,
            create_pr=arguments.create_pr,
        )
        if arguments.create_pr:
            return str(commit.pr_url)
    else:
        logger.warning("%s has these files already: no commit.", repo_id)
    if tag is not None:
        api.create_tag(repo_id, tag=tag)
        return f"{address}/tree/{tag}"
    return address


def changed_files(
    api: HfApi, repo_id: str, files: dict[str, bytes | Path], revision: str
) -> list[str]:
    """The names of those files that the repository does not hold as they are."""
    there = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in api.list_repo_tree(repo_id, recursive=True, revision=revision)
        if isinstance(entry, RepoFile)
    }
    changed = []
    for name, content in files.items():
        data = content.read_bytes() if isinstance(content, Path) else content
        as_lfs = hashlib.sha256(data).hexdigest()
        as_blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if there.get(name) not in (as_lfs, as_blob):
            changed.append(name)
    return changed


def _patiently(action: Callable[[], T]) -> T:
    """The action's result, tried again after what may pass."""
    for seconds in RETRY_AFTER:
        try:
            return action()
        except (HfHubHTTPError, httpx.HTTPError) as error:
            if not _may_pass(error):
                raise
            logger.warning("%s; trying again in %d s.", _first_line(error), seconds)
            time.sleep(seconds)
    return action()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in TRANSIENT
    return isinstance(error, httpx.TransportError)


def _reason(error: Exception, arguments: PublishArguments) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub does not know the token (401). Log in by `hf auth login`."
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub wants a token (401). Log in by `hf auth login`, or set HF_TOKEN."
    if status == 403:
        return f"the token may not write to {arguments.repo_id} (403)."
    if status in (409, 412):
        return f"somebody else changed it at the same time ({status})."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set."
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def command(arguments: PublishArguments) -> str:
    """The command line with these arguments."""
    words = ["protosphere", "publish", arguments.folder]
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if field.name != "folder" and value != field.default:
            words += [f"--{field.name}"] if value is True else [f"--{field.name}", str(value)]
    return shlex.join(words)
