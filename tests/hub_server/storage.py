"""Repositories as git keeps them: immutable commits over files that are named by their content.

    objects/<hash>                    a file, by git's SHA-1 or, an LFS file, by its SHA-256
    repositories/<kind>/<user>/<name>/
        commits/<hash>                a commit: its parent and all of its files
        repository                    private or not, and where the references point

Everything is written beside its place and moved there, the reference last: what is cut off leaves
the repository as it was.
"""

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO
from uuid import uuid4

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .errors import EntryNotFound, HubError, RevisionNotFound

KINDS = ("models", "datasets", "spaces")
MAIN = "refs/heads/main"
LARGE = "7z arrow bin bz2 ckpt gz h5 npy npz onnx parquet pickle pkl pt pth safetensors tar zip zst"
GITATTRIBUTES = "".join(f"*.{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE.split())


def lfs_patterns(gitattributes: str) -> list[str]:
    return [line.split()[0] for line in gitattributes.splitlines() if "filter=lfs" in line]


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


@dataclass(frozen=True)
class File:
    """A file within a commit; `sha256` is that of the content of an LFS file, else None."""

    size: int
    git_sha1: str
    sha256: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> "File":
        return cls(len(content), git_hash(content))

    @classmethod
    def lfs(cls, sha256: str, size: int) -> "File":
        return cls(size, git_hash(cls.pointer(sha256, size)), sha256)

    @staticmethod
    def pointer(sha256: str, size: int) -> bytes:
        """What git itself keeps of an LFS file."""
        version = "https://git-lfs.github.com/spec/v1"
        return f"version {version}\noid sha256:{sha256}\nsize {size}\n".encode()

    @property
    def hash(self) -> str:
        """What the client compares with its own file, and its cache is named by."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Commit:
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, content: bytes) -> "Commit":
        fields = json.loads(content)
        fields["files"] = {path: File(**file) for path, file in fields["files"].items()}
        return cls(**fields)


class Objects:
    """The contents of files, by hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, hash: str) -> Path:
        return self.folder / hash

    def read(self, file: File) -> bytes:
        return self.path(file.hash).read_bytes()

    @contextmanager
    def receive(self, sha256: str) -> Iterator[IO[bytes]]:
        """A file to write an upload to; kept if its content has this hash, else refused."""
        unfinished = self.path(f"{uuid4().hex}.unfinished")  # the same may come twice at once
        try:
            with unfinished.open("wb") as file:
                yield file
            found = hashlib.sha256(unfinished.read_bytes()).hexdigest()
            if found != sha256:
                raise HubError(400, f"The content has SHA-256 {found}, not {sha256}.")
            os.replace(unfinished, self.path(sha256))
        finally:
            unfinished.unlink(missing_ok=True)


class Repository:
    """Commits, and `references` by full name (`refs/heads/main`, `refs/tags/v1`, `refs/pr/1`)."""

    def __init__(
        self,
        folder: Path,
        objects: Objects,
        private: bool,
        created: str,
        references: dict[str, str],
    ) -> None:
        self.folder = folder
        self.objects = objects
        self.private = private
        self.created = created
        self.references = references
        self.kind, self.owner, self.name = folder.parts[-3:]

    @classmethod
    def load(cls, folder: Path, objects: Objects) -> "Repository":
        return cls(folder, objects, **json.loads((folder / "repository").read_bytes()))

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.name}"

    def save(self) -> None:
        names = ("private", "created", "references")
        state = {name: getattr(self, name) for name in names}
        write_whole(self.folder / "repository", json.dumps(state, indent=1).encode())

    def resolve(self, revision: str) -> str:
        """The hash of the commit that a branch, a tag, a full reference or a hash stands for."""
        for reference in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if reference in self.references:
                return self.references[reference]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = list((self.folder / "commits").glob(f"{revision}*"))
            if len(found) == 1:
                return found[0].name
        raise RevisionNotFound(revision)

    def commit(self, revision: str) -> Commit:
        return Commit.decode((self.folder / "commits" / self.resolve(revision)).read_bytes())

    def history(self, revision: str) -> Iterator[tuple[str, Commit]]:
        """Commits with their hashes, the newest first."""
        parent: str | None = self.resolve(revision)
        while parent is not None:
            commit = self.commit(parent)
            yield parent, commit
            parent = commit.parent

    def read(self, path: str, revision: str) -> str | None:
        file = self.commit(revision).files.get(path)
        return None if file is None else self.objects.read(file).decode(errors="replace")

    def add_commit(
        self, revision: str, header: dict, operations: list, author: str, pull_request: bool = False
    ) -> tuple[str, str]:
        """Commit to a branch, or open a pull request; nothing changes when an operation fails.

        Returns the reference and its commit: the one from before if no file has changed.
        """
        is_full = revision.startswith(("refs/heads/", "refs/pr/"))
        reference = revision if is_full else f"refs/heads/{revision}"
        if reference not in self.references:
            raise RevisionNotFound(revision)
        base, parent = self.references[reference], header.get("parentCommit")
        if pull_request:
            base = self.resolve(parent) if parent else base
            requests = [name for name in self.references if name.startswith("refs/pr/")]
            reference = f"refs/pr/{len(requests) + 1}"
        elif parent and not base.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")

        before = self.commit(base).files
        files, contents = dict(before), {}
        for kind, value in operations:
            self._apply(kind, value, files, contents)
        if files != before:
            for hash, content in contents.items():
                write_whole(self.objects.path(hash), content)
            message = header.get("description", "")
            base = self.write(Commit(base, header["summary"], message, author, now(), files))
        self.references[reference] = base
        self.save()
        return reference, base

    def _apply(self, kind: str, value: dict, files: dict, contents: dict[str, bytes]) -> None:
        path = value["path"]
        if kind == "file":
            content = base64.b64decode(value["content"])
            files[path] = File.regular(content)
            contents[files[path].hash] = content
        elif kind == "lfsFile":
            content = self.objects.path(value["oid"])
            if not content.exists():
                raise HubError(400, f"The content of the LFS file {path} has not been uploaded.")
            files[path] = File.lfs(value["oid"], content.stat().st_size)
        elif kind == "deletedFile":
            if files.pop(path, None) is None:
                raise EntryNotFound("A file with this name doesn't exist")
        elif kind == "deletedFolder":
            inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise EntryNotFound("A folder with this name doesn't exist")
            for name in inside:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation: {kind}")

    def write(self, commit: Commit) -> str:
        content = commit.encode()
        hash = hashlib.sha1(content).hexdigest()
        write_whole(self.folder / "commits" / hash, content)
        return hash


class Storage:
    """All repositories in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repositories"
        self.objects = Objects(folder / "objects")

    def find(self, kind: str, id: str) -> Repository | None:
        folder = self.folder / kind / id
        exists = id.count("/") == 1 and (folder / "repository").exists()
        return Repository.load(folder, self.objects) if exists else None

    def list(self, kind: str) -> list[Repository]:
        folders = sorted((self.folder / kind).glob("*/*/repository"))
        return [Repository.load(folder.parent, self.objects) for folder in folders]

    def create(self, kind: str, id: str, private: bool) -> Repository:
        try:
            validate_repo_id(id)
        except HFValidationError as error:
            raise HubError(400, str(error)) from error
        repository = Repository(self.folder / kind / id, self.objects, private, now(), {})
        content = GITATTRIBUTES.encode()
        file = File.regular(content)
        write_whole(self.objects.path(file.hash), content)
        commit = Commit(None, "initial commit", "", "system", now(), {".gitattributes": file})
        repository.references[MAIN] = repository.write(commit)
        repository.save()
        return repository

    def delete(self, repository: Repository) -> None:
        shutil.rmtree(repository.folder)
