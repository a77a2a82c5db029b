"""Route: a commit."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any
from urllib.parse import unquote

from tests.hub.call import Answer, Call
from tests.hub.faults import flipped
from tests.hub.records import File, Refused
from tests.hub.revisions import open_pull
from tests.hub.store import blocks


def make_commit(call: Call) -> Answer:
    lines = [json.loads(line) for line in b"".join(call.chunks).splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    with call.store.lock:
        repo = call.repo(write=True)
        parent = call.commit(repo)
        revision = unquote(call.names["rev"]).removeprefix("refs/heads/")
        if "parentCommit" in header and not parent.id.startswith(header["parentCommit"]):
            if not call.flag("create_pr"):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            parent = call.store.resolve(repo, header["parentCommit"])
        files = dict(parent.files)
        for line in lines:
            apply(call, files, line["key"], line["value"])
        made = call.store.commit(repo, parent.id, header["summary"], header["description"], files)
        pull = next((p for p in repo.pulls if f"refs/pr/{p['num']}" == revision), None)
        if call.flag("create_pr"):
            pull = open_pull(repo, header["summary"], parent.id, made.id)
        elif pull:
            pull["head"] = made.id
        elif revision in repo.branches:
            repo.branches[revision] = made.id
        else:
            raise Refused(404, f"{revision} is no branch", "RevisionNotFound")
        call.store.save(repo)
    said = {
        "success": True,
        "commitOid": made.id,
        "commitUrl": f"{call.url(repo)}/commit/{made.id}",
    }
    if pull and call.flag("create_pr"):
        said["pullRequestUrl"] = f"{call.url(repo)}/discussions/{pull['num']}"
    return Answer(said)


def apply(call: Call, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """One line of a commit, done to its tree."""
    path = value.get("path", "")
    if key != "header" and (not path or {"", "..", "."} & set(path.rstrip("/").split("/"))):
        raise Refused(400, f"not a path of a repository: {path!r}")
    if key == "file":
        files[path] = call.store.add(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        files[path] = call.store.add_large(value["oid"])
        if call.corrupt:
            other = call.store.folder / "tmp" / uuid.uuid4().hex
            sha256 = call.store.write(other, flipped(blocks(call.store.content(value["oid"]))))
            other.replace(call.store.object(sha256))
            files[path] = call.store.add_large(sha256)
    elif key == "deletedFile":
        if path not in files:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        del files[path]
    elif key == "deletedFolder":
        gone = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not gone:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]
    elif key != "header":
        raise Refused(400, f"this hub knows no {key!r} in a commit")
