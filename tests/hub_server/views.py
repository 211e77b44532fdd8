"""The Hub's answers about a repository, as JSON."""

import json
from pathlib import PurePosixPath

from . import cards
from .storage import Commit, File, Repository, git_hash


def information(repository: Repository, revision: str, files_metadata: bool = False) -> dict:
    """What `model_info`, `dataset_info` and `space_info` show of a revision."""
    hash = repository.resolve(revision)
    commit = repository.commit(hash)
    readme = repository.read("README.md", hash) or ""
    card = cards.metadata(readme)
    answer = {
        "id": repository.id,
        "author": repository.owner,
        "sha": hash,
        "createdAt": repository.created,
        "lastModified": commit.date,
        "private": repository.private,
        **{"gated": False, "disabled": False, "downloads": 0, "likes": 0},
        "tags": cards.tags(card, readme),
        "cardData": card,
        "siblings": [
            {"rfilename": path, **(_sibling(file) if files_metadata else {})}
            for path, file in sorted(commit.files.items())
        ],
    }
    shown = ("library_name", "pipeline_tag", "model-index", "sdk")
    answer |= {key: card[key] for key in shown if key in card}
    if repository.kind == "models" and "config.json" in commit.files:
        config = json.loads(repository.read("config.json", hash))
        answer["config"] = {key: config[key] for key in ("architectures", "model_type") if key in config}
    return answer


def tree(commit: Commit, folder: str = "", recursive: bool = False) -> list[dict]:
    """Files and folders below a folder: those in it, or with `recursive` all."""
    inside = f"{folder}/" if folder else ""
    names = commit.files.keys() | _folders(commit)
    return [
        entry(commit, path)
        for path in sorted(names)
        if path.startswith(inside) and (recursive or "/" not in path[len(inside) :])
    ]


def entries(commit: Commit, paths: list[str]) -> list[dict]:
    """Those of the paths that exist."""
    names = commit.files.keys() | _folders(commit)
    return [entry(commit, path) for path in paths if path in names]


def entry(commit: Commit, path: str) -> dict:
    file = commit.files.get(path)
    if file is None:
        below = {name: file.hash for name, file in commit.files.items()}
        below = {name: below[name] for name in sorted(below) if name.startswith(f"{path}/")}
        tree_hash = git_hash(json.dumps(below).encode())
        return {"type": "directory", "path": path, "oid": tree_hash, "size": 0}
    answer = {"type": "file", "path": path, "oid": file.git_sha1, "size": file.size}
    return answer | ({"lfs": _lfs(file, "oid")} if file.sha256 else {})


def references(repository: Repository, pull_requests: bool) -> dict:
    def named(prefix: str) -> list[dict]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": hash}
            for ref, hash in repository.references.items()
            if ref.startswith(prefix)
        ]

    answer = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": []}
    return answer | ({"pullRequests": named("refs/pr/")} if pull_requests else {})


def history(repository: Repository, revision: str) -> list[dict]:
    return [
        {
            **{"id": hash, "title": commit.title, "message": commit.message},
            **{"authors": [{"user": commit.author}], "date": commit.date},
        }
        for hash, commit in repository.history(revision)
    ]


def _folders(commit: Commit) -> set[str]:
    return {str(parent) for path in commit.files for parent in PurePosixPath(path).parents if parent.name}


def _sibling(file: File) -> dict:
    answer = {"blobId": file.git_sha1, "size": file.size}
    return answer | ({"lfs": _lfs(file, "sha256")} if file.sha256 else {})


def _lfs(file: File, name: str) -> dict:
    size = len(File.pointer(file.sha256, file.size))
    return {name: file.sha256, "size": file.size, "pointerSize": size}
