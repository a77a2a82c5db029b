"""Routes: listings and downloads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.hub.call import Answer, Call, must_be_signed
from tests.hub.records import Commit, File, Refused, Repository
from tests.hub.state import USER


def described(call: Call, path: str, file: File) -> dict[str, Any]:
    """A file in a listing."""

    def wrong(digits: str) -> str:
        return ("0" if digits[0] != "0" else "1") + digits[1:] if call.corrupt else digits

    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": file.size,
        "oid": wrong(file.oid),
    }
    if file.lfs:
        entry["lfs"] = {"oid": wrong(file.sha256), "size": file.size, "pointerSize": 134}
    if file.xet and call.hub.xet:
        entry["xetHash"] = file.xet
    return entry


def described_folder(files: dict[str, File], path: str) -> dict[str, Any]:
    inside = [f"{p}{f.oid}" for p, f in sorted(files.items()) if p.startswith(path + "/")]
    oid = hashlib.sha1("".join(inside).encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def folders(files: Iterable[str]) -> set[str]:
    return {path[:i] for path in files for i, letter in enumerate(path) if letter == "/"}


def with_last_commits(
    call: Call, repo: Repository, commit: Commit, entries: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Add to each file, if the caller wants it, the commit that last changed it."""
    history = list(call.store.history(repo, commit)) if call.flag("expand") else []
    for entry in entries if history else []:
        path, last = entry["path"], history[0]
        for older in history:
            if older.files.get(path) != commit.files.get(path):
                break
            last = older
        entry["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
    return entries


def tree(call: Call) -> Answer:
    repo = call.repo()
    commit = call.commit(repo)
    top = unquote(call.names["path"] or "").strip("/")
    prefix = f"{top}/" if top else ""
    known = folders(commit.files)
    if top and top not in known:
        raise Refused(
            404, f"{top} does not exist on {unquote(call.names['rev'])!r}", "EntryNotFound"
        )
    entries = [described(call, path, file) for path, file in commit.files.items()]
    entries += [described_folder(commit.files, path) for path in known]
    entries = [e for e in entries if e["path"].startswith(prefix)]
    if not call.flag("recursive"):
        entries = [e for e in entries if "/" not in e["path"].removeprefix(prefix)]
    entries.sort(key=lambda entry: entry["path"])
    return call.page(with_last_commits(call, repo, commit, entries))


def paths_info(call: Call) -> Answer:
    wish = parse_qs(b"".join(call.chunks).decode())
    call.query |= {"expand": wish.get("expand", [""])}
    repo = call.repo()
    commit = call.commit(repo)
    known, entries = folders(commit.files), []
    for path in wish.get("paths", []):
        if path in commit.files:
            entries.append(described(call, path, commit.files[path]))
        elif path in known:
            entries.append(described_folder(commit.files, path))
    return Answer(with_last_commits(call, repo, commit, entries))


def commits(call: Call) -> Answer:
    repo = call.repo()
    said = [
        {
            "id": c.id, "title": c.title, "message": c.message, "date": c.date,
            "authors": [{"user": USER}],
        }
        for c in call.store.history(repo, call.commit(repo))
    ]  # fmt: skip
    return call.page(said)


def resolve(call: Call) -> Answer:
    """A file: small ones at once, large ones by a redirect to the storage."""
    repo = call.repo()
    commit = call.commit(repo)
    headers = {"X-Repo-Commit": commit.id}
    file = commit.files.get(unquote(call.names["path"]))
    if file is None:
        missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Answer({"error": "Entry not found"}, 404, headers | missing)
    headers["ETag"] = f'"{file.oid}"'
    if not file.lfs:
        return Answer(call.store.content(file.sha256), headers=headers)
    headers |= {
        "X-Linked-Size": str(file.size),
        "X-Linked-ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Location": call.hub.signed(f"/objects/{file.sha256}"),
    }
    if file.xet and call.hub.xet:
        route = f"{call.hub.endpoint}/api/{repo.kind}/{repo.id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": file.xet, "Link": f'<{route}>; rel="xet-auth"'}
    return Answer(b"Found. Redirecting", 302, headers)


def get_object(call: Call) -> Answer:
    must_be_signed(call)
    path = call.store.content(call.names["sha"])
    return Answer(
        path, headers={"ETag": f'"{path.name}"', "Content-Type": "application/octet-stream"}
    )
