"""A request that has been read to its end: what it wants, who makes it, and what they may do."""

import json
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

from starlette.requests import Request

from .errors import HubError
from .storage import Repository, Storage


@dataclass(frozen=True)
class Token:
    """Every token belongs to a user; its role is "read" or "write"."""

    user: str
    role: str


class Call:
    def __init__(self, request: Request, body: bytes, storage: Storage, tokens: dict[str, Token]) -> None:
        self.body = body
        self.query = request.query_params
        self.base_url = str(request.base_url)
        self._parts = request.path_params
        self._headers = request.headers
        self._storage = storage
        self.token = self._find_token(tokens)

    def _find_token(self, tokens: dict[str, Token]) -> Token | None:
        header = self._headers.get("Authorization")
        if header is None:
            return None
        token = tokens.get(header.removeprefix("Bearer "))
        if token is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return token

    # What it wants

    def part(self, name: str, default: str | None = None) -> str:
        """A named part of the path."""
        return unquote(self._parts[name] if default is None else self._parts.get(name, default))

    def is_set(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")

    def json(self) -> dict:
        return json.loads(self.body)

    def json_lines(self) -> list[dict]:
        return [json.loads(line) for line in self.body.splitlines()]

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    def address(self, kind: str, id: str) -> str:
        prefix = "" if kind == "models" else f"{kind}/"
        return f"{self.base_url}{prefix}{id}"

    # What they may do

    def user(self) -> Token:
        if self.token is None:
            raise HubError(401, "Invalid username or password.")
        return self.token

    def writer(self, owner: str | None = None) -> Token:
        """The token, if it may write: to what belongs to `owner`, where that is given."""
        token = self.user()
        if token.role != "write":
            raise HubError(403, f"This token of {token.user} has the role {token.role}, not write")
        if owner not in (None, token.user):
            raise HubError(403, f"{token.user} has no rights in the namespace {owner}")
        return token

    def may_read(self, repository: Repository) -> bool:
        return not repository.private or (self.token is not None and self.token.user == repository.owner)

    def find(self, kind: str, id: str) -> Repository:
        repository = self._storage.find(kind, id)
        if repository is None or not self.may_read(repository):
            raise self.not_found()
        return repository

    def readable(self) -> Repository:
        """The repository in the path."""
        return self.find(self.part("kind", "models"), f"{self.part('owner')}/{self.part('name')}")

    def writable(self) -> Repository:
        repository = self.readable()
        self.writer(repository.owner)
        return repository

    def not_found(self) -> HubError:
        """What is private is said not to exist; without a token, not even that is said.

        huggingface_hub takes the Hub's 401 for a missing repository by its address, of https
        only; so here it comes with the code.
        """
        if self.token is None:
            return HubError(401, "Invalid username or password.", "RepoNotFound")
        return HubError(404, "Repository not found", "RepoNotFound")
