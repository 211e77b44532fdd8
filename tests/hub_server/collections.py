"""Collections: pages of models, data sets, Spaces and papers."""

import json
import re
from pathlib import Path
from uuid import uuid4

from .errors import HubError
from .storage import now, write_whole


class Collections:
    """All collections, in one JSON file, by slug and in the form that the Hub answers with."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.all: dict[str, dict] = json.loads(file.read_bytes()) if file.exists() else {}

    def create(self, owner: str, title: str, private: bool, description: str | None) -> dict:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        for slug, collection in self.all.items():
            if collection["owner"] == owner and collection["title"] == title:
                raise HubError(409, "This collection already exists", slug=slug)
        slug = f"{owner}/{name}-{uuid4().hex[:24]}"
        self.all[slug] = {
            **{"slug": slug, "title": title, "owner": owner, "items": [], "private": private},
            **{"description": description, "position": 0, "theme": "orange", "upvotes": 0},
        }
        return self._save(slug)

    def get(self, slug: str, user: str | None) -> dict:
        collection = self.all.get(slug)
        if collection is None or (collection["private"] and collection["owner"] != user):
            raise HubError(404, "Collection not found")
        return collection

    def add(self, slug: str, id: str, type: str, note: str | None) -> dict:
        items = self.all[slug]["items"]
        if any((item["id"], item["type"]) == (id, type) for item in items):
            raise HubError(409, "This item is already in the collection")
        note_shown = None if note is None else {"html": note, "text": note}
        identity = {"_id": uuid4().hex[:24], "id": id, "type": type}
        items.append({**identity, "position": len(items), "note": note_shown})
        return self._save(slug)

    def _save(self, slug: str) -> dict:
        self.all[slug]["lastUpdated"] = now()
        write_whole(self.file, json.dumps(self.all, indent=1).encode())
        return self.all[slug]
