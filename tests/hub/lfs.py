"""Routes: which files are large, and uploads of those by LFS."""

from __future__ import annotations

import base64
import hashlib
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.hub.call import Answer, Call, must_be_signed
from tests.hub.faults import flipped
from tests.hub.records import Commit, Refused
from tests.hub.store import blocks


def patterns(call: Call, commit: Commit, name: str) -> str:
    file = commit.files.get(name)
    return call.store.content(file.sha256).read_text() if file else ""


def fits(path: str, pattern: str) -> bool:
    """A line of .gitattributes or .gitignore, without the rarer forms of its language."""
    pattern = pattern.strip("/")
    if "/" in pattern:
        return fnmatchcase(path, pattern)
    return any(fnmatchcase(part, pattern) for part in path.split("/"))


def preupload(call: Call) -> Answer:
    wish = call.json()
    repo = call.repo(write=True)
    commit = call.commit(repo)
    attributes = patterns(call, commit, ".gitattributes").splitlines()
    large = [line.split()[0] for line in attributes if "filter=lfs" in line]
    ignore = wish.get("gitIgnore", patterns(call, commit, ".gitignore")).splitlines()
    ignore = [line for line in ignore if line.strip() and not line.startswith("#")]
    said = []
    for file in wish["files"]:
        path, old = file["path"], commit.files.get(file["path"])
        lfs = (
            file["size"] >= call.hub.lfs_from
            or any(fits(path, pattern) for pattern in large)
            or b"\0" in base64.b64decode(file.get("sample", ""))  # our choice of what is binary
        )
        entry = {"path": path, "uploadMode": "lfs" if lfs else "regular"}
        entry["shouldIgnore"] = any(fits(path, pattern) for pattern in ignore)
        if old:
            entry["oid"] = old.sha256 if old.lfs else old.oid
        said.append(entry)
    return Answer({"files": said, "commitOid": commit.id})


def lfs_batch(call: Call) -> Answer:
    wish = call.json()
    repo = call.repo(write=True)
    objects, transfer = [], "basic"
    for asked in wish["objects"]:
        sha256, size = asked["oid"], asked["size"]
        said: dict[str, Any] = {"oid": sha256, "size": size}
        path = call.store.object(sha256)
        if not path.exists():
            upload: dict[str, Any] = {"href": call.hub.signed(f"/objects/{sha256}")}
            if "multipart" in wish["transfers"] and size >= call.hub.multipart_from:
                transfer = "multipart"
                count = -(-size // call.hub.part_size)
                parts = {
                    str(n): call.hub.signed(f"/parts/{sha256}/{n}") for n in range(1, count + 1)
                }
                complete = f"/complete/{sha256}"
                upload["href"] = call.hub.signed(complete).replace(
                    call.hub.storage, call.hub.endpoint
                )
                upload["header"] = {"chunk_size": str(call.hub.part_size), **parts}
            verify = {"href": f"{call.url(repo)}.git/info/lfs/objects/verify"}
            said |= {"authenticated": True, "actions": {"upload": upload, "verify": verify}}
        objects.append(said)
    return Answer({"transfer": transfer, "objects": objects})


def put_object(call: Call) -> Answer:
    must_be_signed(call)
    sha256 = call.names["sha"]
    if call.corrupt:
        call.store.write(call.store.object(sha256), flipped(call.chunks))
    else:
        call.store.write(call.store.object(sha256), call.chunks, expected=sha256)
    call.store.count_upload(sha256)
    return Answer(headers={"ETag": f'"{sha256}"'})


def put_part(call: Call) -> Answer:
    must_be_signed(call)
    call.store.object(call.names["sha"])  # checks the name
    path = call.store.folder / "parts" / call.names["sha"] / call.names["num"]
    chunks = flipped(call.chunks) if call.corrupt else call.chunks
    return Answer(headers={"ETag": f'"{call.store.write(path, chunks)}"'})


def complete(call: Call) -> Answer:
    must_be_signed(call)
    wish, sha256 = call.json(), call.names["sha"]
    folder = call.store.folder / "parts" / sha256
    parts = [folder / str(part["partNumber"]) for part in wish["parts"]]
    for path, part in zip(parts, wish["parts"], strict=True):
        if not path.exists() or f'"{digest(path)}"' != part["etag"]:
            raise Refused(400, f"part {path.name} is not the one that was sent")
    chunks = (block for path in parts for block in blocks(path))
    call.store.write(call.store.object(sha256), chunks, expected=sha256)
    call.store.count_upload(sha256)
    shutil.rmtree(folder)
    return Answer({})


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lfs_verify(call: Call) -> Answer:
    wish = call.json()
    call.repo(write=True)
    path = call.store.object(wish["oid"])
    if not path.exists() or path.stat().st_size != wish["size"]:
        raise Refused(404, f"{wish['oid']} is not here with {wish['size']} bytes")
    return Answer({})
