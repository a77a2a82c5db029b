"""A connection: requests in, their faults and routes found, answers out."""

from __future__ import annotations

import json
import re
import socket
import traceback
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.hub.call import Answer, Call
from tests.hub.faults import Cut, Fault, flipped
from tests.hub.records import Refused
from tests.hub.routes import ROUTES
from tests.hub.state import TOKENS, Hub, Request
from tests.hub.store import BLOCK, blocks


class Handler(BaseHTTPRequestHandler):
    """Reads a request, finds its fault and its route, writes the answer."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass  # `hub.requests` has it

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (Cut, ConnectionError):
            self.close_connection = True
            hang_up(self.connection)

    def respond(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        request = Request(self.command, self.path, authorized=bool(token))
        self.hub.requests.append(request)
        fault = self.hub.faults.take(self.command, self.path)
        chunks = self.body(request, fault)
        try:
            if fault:
                fault.end.wait(fault.delay)
            if fault and fault.status:
                # A gateway that has no server behind it answers with a page, the Hub with JSON.
                page = b"<html>planted fault</html>" if fault.status >= 500 else None
                answer = Answer(page or {"error": "planted fault"}, fault.status, fault.headers)
            else:
                answer = self.route(token, chunks, fault is not None and fault.corrupt)
            for _ in chunks:  # what the route left unread
                pass
            self.send(answer, fault, request)
        except (Cut, ConnectionError):
            raise
        except Exception:
            self.hub.errors.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
            raise Cut from None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def route(self, token: str, chunks: Iterator[bytes], corrupt: bool) -> Answer:
        path, _, query = self.path.partition("?")
        method, role = "GET" if self.command == "HEAD" else self.command, TOKENS.get(token)
        try:
            if token and role is None:
                raise Refused(401, "Invalid credentials in Authorization header")
            for wanted, pattern, function in ROUTES:
                if wanted == method and (match := re.fullmatch(pattern, path)):
                    names = match.groupdict() | {"url": path}
                    asked = parse_qs(query)
                    return function(
                        Call(self.hub, names, asked, self.headers, chunks, role, corrupt)
                    )
            raise Refused(404, f"no such page: {self.command} {path}")
        except Refused as refusal:
            message = str(refusal).encode("ascii", "replace").decode()
            headers = {"X-Error-Message": message, "X-Error-Code": refusal.code}
            if not refusal.code:
                del headers["X-Error-Code"]
            return Answer({"error": str(refusal)}, refusal.status, headers)

    def body(self, request: Request, fault: Fault | None) -> Iterator[bytes]:
        """The request's body as it comes, of known length or chunked."""
        cut = fault.cut("request", self.command) if fault else None
        for size in self.sizes():
            if cut is not None and request.received + size > cut:
                self.rfile.read(cut - request.received)
                request.received = cut
                raise Cut
            block = self.rfile.read(size)
            request.received += len(block)
            if len(block) < size:
                raise Cut  # the client went away
            yield block
        if cut is not None:
            raise Cut

    def sizes(self) -> Iterator[int]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield size
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left > 0:
                yield min(BLOCK, left)
                left -= BLOCK

    def send(self, answer: Answer, fault: Fault | None, request: Request) -> None:
        cut = fault.cut("answer", self.command) if fault else None
        if cut == 0:
            raise Cut
        status, headers = answer.status, dict(answer.headers)
        chunks: Iterable[bytes]
        if isinstance(answer.body, Path):
            size = answer.body.stat().st_size
            start, stop = 0, size
            wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if wanted and any(wanted.groups()):
                first, last = wanted.groups()
                start = int(first) if first else max(0, size - int(last))
                stop = min(size, int(last) + 1) if first and last else size
                status = 206 if start < stop else 416
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
                if status == 416:
                    headers["Content-Range"], stop = f"bytes */{size}", start
            headers["Accept-Ranges"] = "bytes"
            length, chunks = stop - start, blocks(answer.body, start, stop)
        else:
            data = answer.body
            if not isinstance(data, bytes):
                data = b"" if data is None else json.dumps(data, default=str).encode()
                headers.setdefault("Content-Type", "application/json")
            length, chunks = len(data), [data]
        if fault and fault.corrupt and isinstance(answer.body, Path):
            chunks = flipped(chunks)
        request.status = status
        self.send_response(status)
        self.send_header("X-Request-Id", uuid.uuid4().hex)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = 0
        for chunk in chunks:
            if cut is not None and sent + len(chunk) >= cut:
                self.wfile.write(chunk[: cut - sent])
                raise Cut
            self.wfile.write(chunk)
            sent += len(chunk)


def hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the client was quicker
        connection.shutdown(socket.SHUT_RDWR)
