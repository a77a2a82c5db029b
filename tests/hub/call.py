"""One call and its answer: what every route needs."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import unquote, urlencode

from tests.hub.records import Commit, Refused, Repository
from tests.hub.state import FOREIGN, Hub
from tests.hub.store import Store


@dataclass
class Answer:
    """What goes back: JSON, text or bytes, or a file that can be read in ranges."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """What a route needs to know of a call."""

    hub: Hub
    names: dict[str, str]
    query: dict[str, list[str]]
    headers: Message
    chunks: Iterator[bytes]
    role: str | None
    corrupt: bool

    @property
    def store(self) -> Store:
        return self.hub.store

    def json(self) -> Any:
        return json.loads(b"".join(self.chunks))

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def must_write(self) -> None:
        if self.role is None:
            raise Refused(401, "Invalid username or password.")
        if self.role != "write":
            raise Refused(403, "Forbidden: this token may only read, pass one with write access")

    def repo(self, write: bool = False) -> Repository:
        """The repository that the path names, if this caller may know of it."""
        kind = self.names["kind"] or "models"
        repo = self.store.find(kind, self.names["repo"])
        if repo is None or (repo.private and self.role is None):
            # The public Hub says 401 to strangers, so that they cannot tell private from missing.
            # Its clients know that by the https of the URL; on http only the code tells them.
            status = 401 if self.role is None else 404
            raise Refused(status, "Repository not found", "RepoNotFound")
        if write:
            self.must_write()
            if repo.id.startswith(f"{FOREIGN}/"):
                raise Refused(403, f"You have no write access to {repo.id}")
        return repo

    def commit(self, repo: Repository) -> Commit:
        return self.store.resolve(
            repo, unquote(self.names["rev"]) if self.names.get("rev") else "main"
        )

    def url(self, repo: Repository) -> str:
        prefix = "" if repo.kind == "models" else f"{repo.kind}/"
        return f"{self.hub.endpoint}/{prefix}{repo.id}"

    def page(self, entries: list[Any]) -> Answer:
        """One page of a listing, with a Link to the next."""
        start = int(self.query.get("cursor", ["0"])[0])
        stop = start + self.hub.page_size
        if stop >= len(entries):
            return Answer(entries[start:])
        query = {**{k: v[0] for k, v in self.query.items()}, "cursor": str(stop)}
        link = f"{self.hub.endpoint}{self.names['url']}?{urlencode(query)}"
        return Answer(entries[start:stop], headers={"Link": f'<{link}>; rel="next"'})


def must_be_signed(call: Call) -> None:
    given = call.query.get("signature", [""])[0]
    if not hmac.compare_digest(given, call.hub.signature(call.names["url"])):
        raise Refused(403, "SignatureDoesNotMatch")
