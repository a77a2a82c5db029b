"""An OpenAI-compatible images endpoint on this machine: a real tiny pipeline, and ways to fail."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from pipeline.demo import MODELS
from tests.hub.handler import hang_up

KEY = "sk-TestKey0000111122223333"
MODEL = "tiny-sd"
Draw = Callable[[dict[str, Any]], Image.Image]


@dataclass
class Fault:
    """What goes wrong for the next `times` requests for an image whose prompt contains `when`.

    status, headers, body: the answer instead. size: of the image, instead of what was asked for.
    change: what an answer becomes. cut: bytes of the answer after which the connection ends; delay:
    seconds before the answer. drip: seconds between the bytes of an answer that never ends.
    """

    when: str = ""
    times: int = 1 << 30
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | dict[str, Any] | None = None
    size: tuple[int, int] | None = None
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    cut: int | None = None
    delay: float = 0
    drip: float = 0


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    at: float
    key: str
    host: str
    fields: dict[str, Any]


@dataclass
class Server:
    """What the endpoint knows; tests plant faults here and look at what was asked."""

    draw: Draw
    key: str | None = KEY
    models: tuple[str, ...] = (MODEL,)
    container: str = "PNG"
    by_url: bool = False
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_once: int = 0
    most_at_once: int = 0
    delay: float = 0

    @property
    def prompts(self) -> list[str]:
        """Of the images that were asked for, in order."""
        return [one.fields["prompt"] for one in self.asked if one.method == "POST"]

    def fault(self, prompt: str) -> Fault | None:
        with self.lock:
            for one in self.faults:
                if one.when in prompt and one.times > 0:
                    one.times -= 1
                    return one
        return None


class _Handler(BaseHTTPRequestHandler):
    server_: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: `asked` has it."""

    def _note(self, fields: dict[str, Any]) -> bool:
        """Note a request; whether its key is right."""
        key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        host = self.headers.get("Host") or ""
        asked = Asked(self.command, self.path, time.monotonic(), key, host, fields)
        self.server_.asked.append(asked)
        return self.server_.key in (None, key)

    def _send(self, status: int, body: Any, fault: Fault | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (fault.headers if fault else {}).items():
            self.send_header(name, value)
        self.send_header("X-Request-Id", f"req-{len(self.server_.asked)}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault and fault.cut is not None:
            self.wfile.write(data[: fault.cut])
            self.wfile.flush()
            hang_up(self.connection)
            self.close_connection = True
            return
        self.wfile.write(data)

    def do_GET(self) -> None:
        known = self._note({})
        if self.path in self.server_.files:
            return self._send(200, self.server_.files[self.path])
        if not known:
            return self._send(401, {"error": {"message": "wrong key", "code": "invalid_api_key"}})
        if self.path != "/v1/models":
            return self._send(404, {"detail": "Not Found"})
        listed = [{"id": name, "object": "model"} for name in self.server_.models]
        return self._send(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self._note(fields)
        with self.server_.lock:
            self.server_.at_once += 1
            self.server_.most_at_once = max(self.server_.most_at_once, self.server_.at_once)
        try:
            self._answer(fields, known)
        except ConnectionError:
            self.close_connection = True
        finally:
            with self.server_.lock:
                self.server_.at_once -= 1

    def _answer(self, fields: dict[str, Any], known: bool) -> None:
        server = self.server_
        if not known:
            return self._send(401, {"error": {"message": "wrong key", "code": "invalid_api_key"}})
        if self.path != "/v1/images/generations":
            return self._send(404, {"detail": "Not Found"})
        if fields["model"] not in server.models:
            said = f"The model `{fields['model']}` does not exist"
            return self._send(404, {"error": {"message": said, "code": "model_not_found"}})
        time.sleep(server.delay)
        fault = server.fault(fields["prompt"])
        if fault:
            time.sleep(fault.delay)
            if fault.drip:
                with suppress(OSError):
                    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"-" * 10_000:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(fault.drip)
                self.close_connection = True
                return None
            if fault.body is not None or fault.status != 200:
                return self._send(fault.status, fault.body or b"", fault)
            if fault.size:
                fields = {**fields, "size": "{}x{}".format(*fault.size)}
        image = server.draw(fields)
        out = io.BytesIO()
        image.save(out, server.container)
        one: dict[str, Any] = {"revised_prompt": f"{fields['prompt']}, in oil"}
        if server.by_url:
            path = f"/files/{len(server.files)}"
            server.files[path] = out.getvalue()
            one["url"] = server.url.removesuffix("/v1") + path
        else:
            one["b64_json"] = base64.b64encode(out.getvalue()).decode()
        answer = {"created": 1_790_000_000, "data": [one], "usage": {"output_tokens": 7}}
        if fault and fault.change:
            answer = fault.change(answer)
        return self._send(200, answer, fault)


def tiny() -> Draw:
    """The embedded tiny model; a request without a seed gets any."""
    import diffusers
    import torch

    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(
        MODELS / "sd", dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    lock = threading.Lock()

    def draw(fields: dict[str, Any]) -> Image.Image:
        width, height = map(int, fields["size"].split("x"))
        with lock:
            generator = torch.Generator("cpu")
            if "seed" in fields:
                generator.manual_seed(fields["seed"])
            else:
                generator.seed()
            made = pipe(
                fields["prompt"],
                width=width,
                height=height,
                num_inference_steps=fields.get("num_inference_steps", 2),
                guidance_scale=3.0,
                generator=generator,
            )
        image: Image.Image = made.images[0]
        return image

    return draw


@contextmanager
def serving(draw: Draw, port: int = 0, **options: Any) -> Iterator[Server]:
    """An endpoint that runs while its test does."""
    server = Server(draw, **options)
    handler = type("Handler", (_Handler,), {"server_": server})
    http = ThreadingHTTPServer(("127.0.0.1", port), handler, bind_and_activate=False)
    http.allow_reuse_address, http.daemon_threads, http.block_on_close = True, True, False
    http.request_queue_size = 128
    http.server_bind()
    http.server_activate()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
