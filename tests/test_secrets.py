"""A whole run whose captions come by signed links in; no signature or password out, anywhere."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.pixels import png_bytes
from tests.conftest import WorkflowMaker, aigi

USER, PASSWORD = "someone", "Pass0000word"
FIRST, SECOND, STALE = "SIGNED0001aaaa", "SIGNED0002bbbb", "SIGNED0003cccc"
SECRETS = (PASSWORD, FIRST, SECOND, STALE, f"{USER}:", "X-Amz-Signature=S")
TEXTS = [f"a tin robot and {number} tulips in a quiet garden" for number in range(4)]
FILES = {
    "/captions.txt": "\n".join(TEXTS) + "\n",
    "/table.csv": "file,text\n" + "".join(f"{n}.png,{text}\n" for n, text in enumerate(TEXTS)),
}


class Signed(BaseHTTPRequestHandler):
    """A store that gives its files to those who have a valid signature and the password."""

    def _answer(self, body: bool) -> None:
        link = urlsplit(self.path)
        given = parse_qs(link.query).get("X-Amz-Signature", [""])[0]
        user = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        data = FILES.get(link.path, "").encode()
        status = 200 if given in (FIRST, SECOND) and self.headers["Authorization"] == user else 403
        if status == 403:
            data = b"denied"
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def log_message(self, *_: object) -> None:
        """No log: pytest shows what failed."""


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Signed)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


IMPORT = """
name: signed
title: Signed
licence: CC0-1.0
sources:
  mj: {title: MJ, licence: CC0-1.0, kind: import, model: mj, splits: {train: {}}}
"""


def no_secret(text: str | bytes, where: object) -> None:
    data = text.encode() if isinstance(text, str) else text
    for secret in SECRETS:
        assert secret.encode() not in data, f"{secret} in {where}: {text[:2000]!r}"


def test_a_run_by_signed_links_has_no_secret_and_is_resumed_with_others(
    served: str, tmp_path: Path, make_workflow: WorkflowMaker
) -> None:
    pictures = tmp_path / "images"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(len(TEXTS)):
        rgb = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (pictures / f"{number}.png").write_bytes(png_bytes(rgb))
    (tmp_path / "signed.yaml").write_text(IMPORT)

    def run(signature: str) -> subprocess.CompletedProcess[str]:
        def link(name: str) -> str:
            who = f"{USER}:{PASSWORD}@{served}"
            return f"http://{who}/{name}?X-Amz-Expires=60&X-Amz-Signature={signature}"

        here = {"place": str(pictures), "captions": link("table.csv"), "name": "here"}
        path = make_workflow(
            split={"validation": 0.0, "test": 0.0},
            prompts={"sources": [{"kind": "text", "path": link("captions.txt")}]},
            plan={"dataset": "signed.yaml"},
            sources={
                "mj": {"kind": "import", "path": str(pictures), "captions": link("table.csv"),
                       "fit": "keep"}
            },
            release={"version": "1.0.0", "record": str(tmp_path / "record")},
            characteristics={"pictures": [here]},
            benchmark={"pictures": here, "strips": None, "anchor": "jpeg",
                       "codecs": [{"codec": "jpeg", "qualities": [50]}]},
        )  # fmt: skip
        done = aigi("run", str(path))
        no_secret(done.stdout + done.stderr, "what the run prints")
        return done

    first = run(FIRST)
    assert first.returncode == 0, first.stderr
    again = run(SECOND)
    assert again.returncode == 0, again.stderr
    made = [line for line in again.stderr.splitlines() if "already made" in line]
    tables = {line.split(":")[0] for line in made}
    assert {"prompts", "plan", "images", "release", "manifest", "measurements"} <= tables
    assert "remade" not in again.stderr

    refused = run(STALE)
    assert refused.returncode == 1
    assert f"http://***@{served}/" in refused.stderr  # which link it was is still said

    report = aigi("report", str(tmp_path / "run"), "--out", str(tmp_path / "run/report.html"))
    assert report.returncode == 0, report.stderr
    published = aigi("publish", str(tmp_path / "run"), "--to", str(tmp_path / "run/published"))
    assert published.returncode == 0, published.stderr
    no_secret(report.stdout + published.stdout + published.stderr, "what the others print")
    files = [file for folder in ("run", "record") for file in (tmp_path / folder).rglob("*")]
    assert len([file for file in files if file.is_file()]) > 20
    for file in files:
        if file.is_file():
            no_secret(file.read_bytes(), file)
        if file.suffix == ".parquet":  # compressed, so that bytes alone would tell nothing
            no_secret(str(pq.read_table(file).to_pylist()), file)

    recorded = json.loads((tmp_path / "run/_workflow.json").read_text())
    assert recorded["prompts"]["sources"][0]["path"] == f"http://{served}/captions.txt"
    (prompts,) = pq.read_table(tmp_path / "run/prompts").slice(0, 1).to_pylist()
    assert prompts["source_ref"].startswith("captions.txt:")
    manifest = json.loads((tmp_path / "run/release/manifest.json").read_text())
    assert [one["file"] for one in manifest["captions"]] == ["captions.txt"]
    assert manifest["workflow"]["sources"]["mj"]["captions"] == "table.csv"
