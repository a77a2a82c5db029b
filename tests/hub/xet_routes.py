"""Routes: uploads and downloads by Xet."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from tests.hub.call import Answer, Call, must_be_signed
from tests.hub.faults import flipped
from tests.hub.records import Refused
from tests.hub.xet import read_shard


def xet_token(call: Call) -> Answer:
    write = call.names["what"] == "write"
    call.repo(write=write)
    if not call.hub.xet:
        raise Refused(404, "this hub has no Xet store")
    token = call.hub.token if write else call.hub.read_token
    url, expires = call.hub.storage, int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token}
    headers["X-Xet-Token-Expiration"] = str(expires)
    return Answer({"casUrl": url, "accessToken": token, "exp": expires}, headers=headers)


def put_xorb(call: Call) -> Answer:
    call.must_write()
    path = call.store.folder / "xorbs" / call.names["sha"]
    known = path.exists()
    place = call.store.folder / "tmp" / uuid.uuid4().hex if known else path
    call.store.write(place, flipped(call.chunks) if call.corrupt else call.chunks)
    call.store.count_upload(path.name)
    return Answer({"was_inserted": not known})


def put_shard(call: Call) -> Answer:
    call.must_write()
    data = b"".join(call.chunks)
    temporary = call.store.folder / "tmp" / uuid.uuid4().hex
    name = call.store.write(temporary, [data])
    for file in read_shard(temporary).files.values():
        for term in file.terms:
            if not (call.store.folder / "xorbs" / term.xorb).exists():
                raise Refused(400, f"xorb {term.xorb} was never uploaded")
    temporary.replace(call.store.folder / "shards" / name)
    if call.names["url"].startswith("/v2"):
        return Answer(b'{"type": "result"}\n', headers={"Content-Type": "application/x-ndjson"})
    return Answer({"result": 1})


def known_chunk(call: Call) -> Answer:
    """A shard of the xorbs that hold this chunk, so that the client need not send them again."""
    for path in (call.store.folder / "shards").iterdir():
        found = [raw for raw, chunks in read_shard(path).xorbs if call.names["sha"] in chunks]
        if found:
            end = b"\xff" * 32 + bytes(16)
            header = path.read_bytes()[:40] + (200).to_bytes(8, "little")
            body = header + end + b"".join(found) + end
            # Version, the two sections, three empty lookup tables behind them (the client counts
            # chunks by where they start), a key of zeros, two times, 72 bytes unused, this place.
            footer = [1, 48, 96, *[len(body), 0] * 3, *[0] * 4, int(time.time())]
            footer += [int(time.time()) + 3600, *[0] * 9, len(body)]
            return Answer(body + b"".join(n.to_bytes(8, "little") for n in footer))
    raise Refused(404, "no such chunk")


def reconstruction(call: Call) -> Answer:
    """How to put a file, or the terms that a range of it touches, together."""
    file = call.store.xet_file(call.names["sha"])
    if call.role is None or file is None:
        raise Refused(401 if call.role is None else 404, "no such file")
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", call.headers.get("Range", ""))
    start, stop = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, file.size)
    if start >= file.size:
        raise Refused(416, "past the end of the file")
    terms: list[dict[str, Any]] = []
    fetch: dict[str, list[dict[str, Any]]] = {}
    at = skipped = 0
    for term in file.terms:
        if at < stop and at + term.size > start:
            skipped = start - at if not terms else skipped
            chunks = {"start": term.start, "end": term.stop}
            terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": chunks})
            offsets = call.store.xorb(term.xorb).offsets
            span = {"start": offsets[term.start], "end": offsets[term.stop] - 1}
            url = call.hub.signed(f"/xorbs/{term.xorb}")
            fetch.setdefault(term.xorb, []).append({"range": chunks, "url": url, "url_range": span})
        at += term.size
    return Answer({"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch})


def get_xorb(call: Call) -> Answer:
    must_be_signed(call)
    return Answer(call.store.folder / "xorbs" / call.names["sha"])
