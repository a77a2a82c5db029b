"""Routes: who is asking, repositories and their cards."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from tests.hub.call import Answer, Call
from tests.hub.listings import described
from tests.hub.records import Refused
from tests.hub.state import FOREIGN, USER


def whoami(call: Call) -> Answer:
    if call.role is None:
        raise Refused(401, "Invalid username or password.")
    access = {"displayName": "test", "role": call.role}
    auth = {"type": "access_token", "accessToken": access}
    return Answer({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": auth})


def create_repo(call: Call) -> Answer:
    wish = call.json()
    call.must_write()
    namespace = wish.get("organization") or USER
    if namespace == FOREIGN:
        raise Refused(403, f"You have no right to create a repository under {FOREIGN!r}")
    private = wish.get("visibility") == "private" or bool(wish.get("private"))
    kind, id = f"{wish.get('type') or 'model'}s", f"{namespace}/{wish['name']}"
    if kind not in ("models", "datasets"):
        raise Refused(400, f"this hub has no {kind}")
    with call.store.lock:
        known = call.store.find(kind, id)
        repo = known or call.store.create(kind, id, private)
    said = {"url": call.url(repo), "name": repo.id, "id": repo.id, "private": repo.private}
    if known:
        # exist_ok makes the client read the url of this answer too.
        return Answer(said | {"error": "You already created this repository"}, 409)
    return Answer(said)


def delete_repo(call: Call) -> Answer:
    wish = call.json()
    namespace = wish.get("organization") or USER
    call.names |= {
        "kind": f"{wish.get('type') or 'model'}s", "repo": f"{namespace}/{wish['name']}"
    }  # fmt: skip
    with call.store.lock:
        call.store.delete(call.repo(write=True))
    return Answer({})


def settings(call: Call) -> Answer:
    wish = call.json()
    with call.store.lock:
        repo = call.repo(write=True)
        repo.private = wish.get("visibility", "private" if repo.private else "public") == "private"
        call.store.save(repo)
    return Answer({"private": repo.private})


def info(call: Call) -> Answer:
    repo = call.repo()
    commit = call.commit(repo)
    siblings = []
    for path, file in sorted(commit.files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if call.flag("blobs"):
            entry = described(call, path, file)
            sibling |= {"size": file.size, "blobId": entry["oid"]}
            if file.lfs:
                sibling["lfs"] = {**entry["lfs"], "sha256": entry["lfs"]["oid"]}
        siblings.append(sibling)
    card = commit.files.get("README.md")
    metadata, _ = (
        front_matter(call.store.content(card.sha256).read_text(errors="replace"))
        if card
        else ({}, "")
    )
    return Answer(
        {
            "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.id,
            "createdAt": repo.created,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            # Our choice: the Hub derives more tags than those the card names.
            "tags": list(metadata.get("tags") or []),
            "cardData": metadata,
            "siblings": siblings,
        }
    )


def no_such_repo(call: Call) -> Answer:
    raise Refused(404 if call.role else 401, "Repository not found", "RepoNotFound")


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The YAML mapping on top of a card, and what is wrong with it."""
    import yaml

    match = re.match(r"---\r?\n(.*?\n)?---\s*(\n|$)", text, re.DOTALL)
    if not match:
        return {}, ""
    try:
        data = yaml.safe_load(match[1] or "")
    except yaml.YAMLError as error:
        return {}, str(error)
    if data is not None and not isinstance(data, dict):
        return {}, "the metadata is not a mapping"
    return data or {}, ""


def validate_yaml(call: Call) -> Answer:
    """Our choice of checks: it parses, and what `datasets` reads of it has the right form."""
    metadata, error = front_matter(call.json()["content"])
    errors = [error] if error else []
    configs = metadata.get("configs", [])
    if not isinstance(configs, list) or not all(isinstance(c, dict) for c in configs):
        errors.append('"configs" must be an array of objects')
    elif not all(isinstance(c.get("config_name"), str) for c in configs):
        errors.append('"configs[].config_name" must be a string')
    for key, kinds in {"license": (str, list), "pretty_name": str, "tags": list}.items():
        if key in metadata and not isinstance(metadata[key], kinds):  # type: ignore[arg-type]
            errors.append(f'"{key}" has the wrong type')
    warnings = [] if metadata or errors else ["empty or missing yaml metadata in repo card"]
    said = {"errors": errors, "warnings": warnings}
    listed = {name: [{"message": m} for m in messages] for name, messages in said.items()}
    return Answer(listed, 400 if errors else 200)
