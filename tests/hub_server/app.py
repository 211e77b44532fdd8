"""The Hub's HTTP API, as far as huggingface_hub, datasets and transformers use it."""

import base64
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import cards, views
from .call import Call, Token
from .collections import Collections
from .errors import EntryNotFound, HubError, RevisionNotFound
from .storage import KINDS, MAIN, Repository, Storage, lfs_patterns

LFS_FROM = 10_000_000  # bytes
Answer = dict | list | Response


def create_app(folder: Path, tokens: dict[str, Token]) -> ASGIApp:
    handlers = {HubError: answer_error, ClientDisconnect: answer_nobody}
    app = Starlette(routes=Hub(folder, tokens).routes(), exception_handlers=handlers)

    async def by_path_as_sent(scope, receive, send):
        # An encoded slash stays within its part of the path: revision/refs%2Fpr%2F1.
        await app({**scope, "path": scope["raw_path"].decode()}, receive, send)

    return by_path_as_sent


async def answer_error(request: Request, error: HubError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def answer_nobody(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)


class Hub:
    def __init__(self, folder: Path, tokens: dict[str, Token]) -> None:
        self.storage = Storage(folder)
        self.collections = Collections(folder / "collections.json")
        self.tokens = tokens

    def routes(self) -> list[Route]:
        repository = "/api/{kind}/{owner}/{name}"
        table = [
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("POST", "/api/repos/create", self.create_repository),
            ("DELETE", "/api/repos/delete", self.delete_repository),
            ("POST", "/api/collections", self.create_collection),
            ("GET", "/api/collections/{owner}/{name}", self.get_collection),
            ("POST", "/api/collections/{owner}/{name}/items", self.add_to_collection),
            ("POST", "/lfs/{sha256}/verify", self.verify_upload),
            ("GET", "/api/{kind}", self.list_repositories),
            ("GET", repository, self.information),
            ("GET", repository + "/revision/{revision}", self.information),
            ("GET", repository + "/tree/{revision}", self.tree),
            ("GET", repository + "/tree/{revision}/{path:path}", self.tree),
            ("POST", repository + "/paths-info/{revision}", self.paths_info),
            ("GET", repository + "/refs", self.references),
            ("GET", repository + "/commits/{revision}", self.history),
            ("GET", repository + "/auth-check", self.may_read),
            ("GET", repository + "/auth-check/write", self.may_write),
            ("PUT", repository + "/settings", self.change_settings),
            ("POST", repository + "/preupload/{revision}", self.preupload),
            ("POST", repository + "/commit/{revision}", self.commit),
            ("POST", repository + "/branch/{branch}", self.create_branch),
            ("DELETE", repository + "/branch/{branch}", self.delete_branch),
            ("POST", repository + "/tag/{revision}", self.create_tag),
            ("DELETE", repository + "/tag/{tag}", self.delete_tag),
        ]
        for prefix in ("/{owner}/{name}", "/{kind}/{owner}/{name}"):
            table += [
                ("GET", prefix + "/resolve/{revision}/{path:path}", self.resolve),
                ("POST", prefix + ".git/info/lfs/objects/batch", self.lfs_batch),
            ]
        table += [("GET", "/{anything:path}", self.elsewhere)]
        routes = [Route(path, self.endpoint(ask), methods=[verb]) for verb, path, ask in table]
        return [Route("/lfs/{sha256}", self.upload, methods=["PUT"]), *routes]

    def endpoint(self, handler: Callable[[Call], Answer]) -> Callable:
        async def answer(request: Request) -> Response:
            body = await request.body()
            # From here to the answer nothing else runs: what is read, then written, is still so.
            found = handler(Call(request, body, self.storage, self.tokens))
            return found if isinstance(found, Response) else JSONResponse(found)

        return answer

    def whoami(self, call: Call) -> Answer:
        token = call.user()
        access = {"displayName": token.role, "role": token.role}
        auth = {"type": "access_token", "accessToken": access}
        user = {"type": "user", "name": token.user, "fullname": token.user}
        return {**user, "isPro": False, "orgs": [], "auth": auth}

    def elsewhere(self, call: Call) -> Answer:
        # Mostly the repository of nobody, such as "/api/models/bert-base-uncased".
        raise call.not_found()

    # Repositories

    def create_repository(self, call: Call) -> Answer:
        wanted = call.json()
        owner = wanted.get("organization") or call.user().user
        call.writer(owner)
        kind, id = f"{wanted.get('type') or 'model'}s", f"{owner}/{wanted['name']}"
        if kind not in KINDS:
            raise HubError(400, f"No such type of repository: {wanted['type']}")
        address = call.address(kind, id)
        if self.storage.find(kind, id) is not None:
            raise HubError(409, f"You already created this {kind[:-1]} repo", url=address)
        self.storage.create(kind, id, private=wanted.get("visibility") == "private")
        return {"url": address, "name": id}

    def delete_repository(self, call: Call) -> Answer:
        wanted = call.json()
        owner = wanted.get("organization") or call.user().user
        repository = call.find(f"{wanted.get('type') or 'model'}s", f"{owner}/{wanted['name']}")
        call.writer(owner)
        self.storage.delete(repository)
        return {}

    def change_settings(self, call: Call) -> Answer:
        repository, settings = call.writable(), call.json()
        if "visibility" in settings:
            repository.private = settings["visibility"] == "private"
            repository.save()
        return settings

    def list_repositories(self, call: Call) -> Answer:
        kind, query = call.part("kind"), call.query
        if kind not in KINDS:
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        found = [
            views.information(repository, MAIN)
            for repository in self.storage.list(kind)
            if call.may_read(repository)
            and query.get("author", repository.owner) == repository.owner
            and query.get("search", "").lower() in repository.id.lower()
        ]
        wanted = set(query.getlist("filter"))
        found = [answer for answer in found if wanted <= set(answer["tags"])]
        found.sort(key=lambda answer: answer["lastModified"], reverse=True)
        return found[: int(query.get("limit", len(found)))]

    def may_read(self, call: Call) -> Answer:
        call.readable()
        return {}

    def may_write(self, call: Call) -> Answer:
        call.writable()
        return {}

    # Reading

    def information(self, call: Call) -> Answer:
        return views.information(call.readable(), call.part("revision", MAIN), files_metadata=call.is_set("blobs"))

    def tree(self, call: Call) -> Answer:
        commit, folder = call.readable().commit(call.part("revision")), call.part("path", "")
        found = views.tree(commit, folder, call.is_set("recursive"))
        if folder and not found:
            raise EntryNotFound(f"{folder} does not exist")
        return found

    def paths_info(self, call: Call) -> Answer:
        commit = call.readable().commit(call.part("revision"))
        return views.entries(commit, call.form().get("paths", []))

    def references(self, call: Call) -> Answer:
        return views.references(call.readable(), pull_requests=call.is_set("include_prs"))

    def history(self, call: Call) -> Answer:
        return views.history(call.readable(), call.part("revision"))

    def resolve(self, call: Call) -> Answer:
        repository, path = call.readable(), call.part("path")
        hash = repository.resolve(call.part("revision"))
        headers = {"X-Repo-Commit": hash}
        file = repository.commit(hash).files.get(path)
        if file is None:
            error = EntryNotFound()
            return JSONResponse(error.body, error.status, error.headers | headers)
        headers["ETag"] = f'"{file.hash}"'
        if file.sha256:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        name = {"filename": path.rpartition("/")[2], "content_disposition_type": "inline"}
        return FileResponse(repository.objects.path(file.hash), headers=headers, **name)

    # Writing

    def validate_yaml(self, call: Call) -> Answer:
        errors, warnings = cards.check(call.json()["content"])
        answer = {
            "errors": [{"message": message} for message in errors],
            "warnings": [{"message": message} for message in warnings],
        }
        return JSONResponse(answer, 400 if errors else 200)

    def preupload(self, call: Call) -> Answer:
        """Of each file: whether it goes the LFS way, and its hash in the repository."""
        repository, revision = call.readable(), call.part("revision")
        call.writer(None if call.is_set("create_pr") else repository.owner)
        files = repository.commit(revision).files
        patterns = lfs_patterns(repository.read(".gitattributes", revision) or "")
        answer = []
        for wanted in call.json()["files"]:
            path = wanted["path"]
            lfs = (
                wanted["size"] > LFS_FROM
                or any(fnmatch(path, pattern) for pattern in patterns)
                or b"\0" in base64.b64decode(wanted["sample"])
            )
            mode = {"uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            hash = files[path].hash if path in files else None
            answer.append({"path": path, "oid": hash, **mode})
        return {"files": answer}

    def lfs_batch(self, call: Call) -> Answer:
        call.readable()
        call.writer()
        objects = call.json()["objects"]
        for wanted in objects:
            if not self.storage.objects.path(wanted["oid"]).exists():
                address = f"{call.base_url}lfs/{wanted['oid']}"
                actions = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
                wanted["actions"] = actions
        return {"transfer": "basic", "objects": objects}

    async def upload(self, request: Request) -> Response:
        # Like a signed address: the client sends no token, and the content must have the hash.
        with self.storage.objects.receive(request.path_params["sha256"]) as file:
            async for chunk in request.stream():
                file.write(chunk)
        return Response()

    def verify_upload(self, call: Call) -> Answer:
        call.writer()
        content, size = self.storage.objects.path(call.part("sha256")), call.json()["size"]
        if not content.exists() or content.stat().st_size != size:
            raise HubError(400, f"{call.part('sha256')} is not here with {size} bytes")
        return {}

    def commit(self, call: Call) -> Answer:
        repository, pull_request = call.readable(), call.is_set("create_pr")
        author = call.writer(None if pull_request else repository.owner).user
        header, *lines = call.json_lines()
        operations = [(line["key"], line["value"]) for line in lines]
        for kind, value in operations:
            if (kind, value["path"]) == ("file", "README.md"):
                errors, _ = cards.check(base64.b64decode(value["content"]).decode())
                if errors:
                    raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        reference, hash = repository.add_commit(
            call.part("revision"), header["value"], operations, author, pull_request
        )
        address = call.address(repository.kind, repository.id)
        answer = {"success": True, "commitOid": hash, "commitUrl": f"{address}/commit/{hash}"}
        if pull_request:
            number = reference.removeprefix("refs/pr/")
            answer["pullRequestUrl"] = f"{address}/discussions/{number}"
        return answer

    def create_branch(self, call: Call) -> Answer:
        name, start = call.part("branch"), call.json().get("startingPoint", MAIN)
        if name.startswith("refs/"):
            raise HubError(400, f"Invalid name of a branch: {name}")
        return self._add_reference(call.writable(), f"refs/heads/{name}", start)

    def delete_branch(self, call: Call) -> Answer:
        if call.part("branch") == "main":
            raise HubError(403, "main cannot be deleted")
        return self._remove_reference(call.writable(), f"refs/heads/{call.part('branch')}")

    def create_tag(self, call: Call) -> Answer:
        reference = f"refs/tags/{call.json()['tag']}"
        return self._add_reference(call.writable(), reference, call.part("revision"))

    def delete_tag(self, call: Call) -> Answer:
        return self._remove_reference(call.writable(), f"refs/tags/{call.part('tag')}")

    def _add_reference(self, repository: Repository, reference: str, revision: str) -> Answer:
        if reference in repository.references:
            raise HubError(409, f"{reference} exists already")
        repository.references[reference] = repository.resolve(revision)
        repository.save()
        return {}

    def _remove_reference(self, repository: Repository, reference: str) -> Answer:
        if repository.references.pop(reference, None) is None:
            raise RevisionNotFound(reference)
        repository.save()
        return {}

    # Collections

    def create_collection(self, call: Call) -> Answer:
        wanted = call.json()
        owner = call.writer(wanted["namespace"]).user
        title, description = wanted["title"], wanted.get("description")
        return self.collections.create(owner, title, wanted["private"], description)

    def get_collection(self, call: Call) -> Answer:
        slug = f"{call.part('owner')}/{call.part('name')}"
        return self.collections.get(slug, call.token and call.token.user)

    def add_to_collection(self, call: Call) -> Answer:
        user = call.writer(call.part("owner")).user
        slug = self.collections.get(f"{user}/{call.part('name')}", user)["slug"]
        item, note = call.json()["item"], call.json().get("note")
        if f"{item['type']}s" in KINDS:
            call.find(f"{item['type']}s", item["id"])
        return self.collections.add(slug, item["id"], item["type"], note)
