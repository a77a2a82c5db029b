"""Whatever cannot be read, written or reached ends in one line: no verb shows a traceback."""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline import outside
from pipeline.cli import app
from pipeline.manifest import MANIFEST
from pipeline.store import Store
from tests.conftest import ROOT
from tests.training.release import write_release

DRAWN = ROOT / "pipeline/tiny/pictures/mj52"
SPLITS = {"train": {"count": 1, "width": 64, "height": 64}}
HUB_SOURCE = {
    "title": "t", "licence": "l", "kind": "diffusers", "pipeline": "sd", "model": "org/none",
    "revision": "main", "scheduler": "ddim", "steps": 1, "guidance_scale": 1.0, "splits": SPLITS,
}  # fmt: skip
IMPORTED = {"title": "t", "licence": "l", "kind": "import", "model": "m", "splits": SPLITS}


def specification(source: dict[str, Any]) -> dict[str, Any]:
    return {"name": "n", "title": "t", "licence": "l", "sources": {"a": source}}


def prompts(**source: Any) -> dict[str, Any]:
    return {"prompts": {"sources": [source]}}


def imported(folder: Path, **source: Any) -> dict[str, Any]:
    (folder / "imported.yaml").write_text(yaml.safe_dump(specification(IMPORTED)))
    return {
        "plan": {"dataset": str(folder / "imported.yaml")},
        "sources": {"a": {"kind": "import", **source}},
    }


def generated(at: Path, **source: Any) -> dict[str, Any]:
    """A plan of a model that is on the Hub, if no folder is given."""
    (at / "hub.yaml").write_text(yaml.safe_dump(specification(HUB_SOURCE)))
    (at / "captions.txt").write_text("one red boat on a lake\n")
    return {
        **prompts(kind="text", path=str(at / "captions.txt")),
        "plan": {"dataset": str(at / "hub.yaml")},
        "sources": {"a": source},
        "images": {},
    }


def reading(**pictures: Any) -> dict[str, Any]:
    return {"characteristics": {"pictures": [pictures], "lossless": []}}


def benchmark(**more: Any) -> dict[str, Any]:
    place = {"place": str(DRAWN), "limit": 1}
    return {"benchmark": {"pictures": place, "codecs": ["jpeg"], "anchor": "jpeg", **more}}


def with_texts(at: Path) -> dict[str, Any]:
    """A folder with one image, and its caption."""
    (at / "texts.csv").write_text("file,text\nimage.png,a boat\n")
    return {"pictures": {"place": str(at), "captions": str(at / "texts.csv")}}


def training(at: Path, **more: Any) -> dict[str, Any]:
    release = write_release(at / "made", {("a", "train"): [np.zeros((64, 64, 3), np.uint8)]})
    data = {"place": str(release)}
    more = {"crop": 64, "batch": 1, "validation_pictures": 0, **more}
    return {"train": {"steps": 1, "lambdas": [0.01], "data": data, **more}}


BLIND = "catc-small-no-text"
CLIP = ROOT / "pipeline/tiny/weights/clip"
SETTINGS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "run": lambda it, folder: {**prompts(kind="text", path=str(folder / "t.txt")), "run": it},
    **{
        f"captions of kind {kind}": lambda it, folder, kind=kind, more=more: prompts(  # type: ignore[misc]
            kind=kind, path=it, **more
        )
        for kind, more in {
            "cc12m": {}, "coco": {}, "text": {}, "csv": {"column": "c"}, "jsonl": {"column": "c"},
            "parquet": {"column": "c"}, "grammar": {"count": 1},
        }.items()
    },
    "captions of the Hub": lambda it, folder: prompts(kind="hub", dataset=it, column="c"),
    "photos": lambda it, folder: prompts(kind="blip", photos=it, folder=str(folder)),
    "BLIP": lambda it, folder: prompts(kind="blip", photos=str(DRAWN), folder=it),
    "blocklist": lambda it, folder: {
        "prompts": {
            "sources": [{"kind": "text", "path": str(folder / "t.txt")}],
            "filters": {"blocklist": it},
        }
    },
    "specification": lambda it, folder: {"plan": {"dataset": it}},
    "manifest": lambda it, folder: {"plan": {"dataset": it, "manifest": it}},
    "images of an import": lambda it, folder: imported(folder, path=it),
    "captions of an import": lambda it, folder: imported(folder, path=str(DRAWN), captions=it),
    "original": lambda it, folder: {
        **imported(folder),
        "sources": {"a": {"kind": "pku", "path": it, "subfolder": "MJ"}},
    },
    "model": lambda it, folder: generated(folder, folder=it),
    "VAE": lambda it, folder: generated(folder, folder=str(CLIP.parent / "sd"), vae=it),
    "images to analyse": lambda it, folder: reading(place=it),
    "captions of a folder": lambda it, folder: reading(place=str(DRAWN), captions=it),
    "scorer": lambda it, folder: {
        "alignments": {
            "pictures": [{"place": str(DRAWN), "limit": 1}],
            "models": {"clip": {"kind": "open_clip", "folder": it}},
        }
    },
    "images to measure": lambda it, folder: benchmark(pictures={"place": it}),
    "codec to measure": lambda it, folder: benchmark(
        codecs=[{"codec": "learned", "models": [it]}], anchor="learned"
    ),
    "text encoder of a codec": lambda it, folder: benchmark(
        codecs=[{"codec": "learned", "text": it}], anchor="learned", **with_texts(folder)
    ),
    "program": lambda it, folder: benchmark(
        codecs=["hevc"], anchor="hevc", programs={"ffmpeg": it}
    ),
    "LPIPS": lambda it, folder: benchmark(lpips=it),
    "CLIP of the benchmark": lambda it, folder: benchmark(clip={"folder": it}),
    "images to train on": lambda it, folder: training(folder, network=BLIND, data={"place": it}),
    "first weights": lambda it, folder: training(folder, network=BLIND, init=it),
    "text encoder to train with": lambda it, folder: training(folder, text_folder=it),
    "foreign prompts": lambda it, folder: training(folder, network=BLIND, foreign_prompts=it),
}  # fmt: skip
"""Each setting that names a location, in the shortest workflow that reads it."""


def written(folder: Path, sections: dict[str, Any]) -> list[str]:
    """Arguments of `aigi run` for a workflow of these sections."""
    data = {"run": str(folder / "run"), **sections}
    (folder / "workflow.yaml").write_text(yaml.safe_dump(data))
    (folder / "t.txt").write_text("one red boat on a lake\n")
    return ["run", str(folder / "workflow.yaml")]


def workflow(name: str) -> Callable[[str, Path], list[str]]:
    """Arguments of `aigi run` for the workflow of a setting."""
    return lambda it, folder: written(folder, SETTINGS[name](it, folder))


def files(folder: Path) -> None:
    """What verbs need beside the location that is wrong."""
    shutil.copy(next(DRAWN.rglob("*.png")), folder / "image.png")
    for name in ("one.csv", "two.csv"):
        (folder / name).write_text("image_id,decision\na,keep\n")


VERBS: dict[str, Callable[[str, Path], list[str]]] = {
    "run WORKFLOW": lambda it, folder: ["run", it],
    "run --dry-run": lambda it, folder: [*workflow("images to analyse")(it, folder), "--dry-run"],
    "demo --out": lambda it, folder: ["demo", "--out", it],
    "status": lambda it, folder: ["status", it],
    "report": lambda it, folder: ["report", it, "-o", str(folder / "r.html")],
    "review": lambda it, folder: ["review", it, "-o", str(folder / "r.html")],
    "merge-reviews": lambda it, folder: ["merge-reviews", str(folder / "one.csv"), it],
    "merge-reviews --out": lambda it, folder: [
        "merge-reviews", str(folder / "one.csv"), str(folder / "two.csv"), "-o", it,
    ],
    "verify": lambda it, folder: ["verify", it],
    "diff": lambda it, folder: ["diff", it, it],
    "publish": lambda it, folder: ["publish", it, "--to", str(folder / "published")],
    "sweep": lambda it, folder: ["sweep", it],
    "encode": lambda it, folder: ["encode", it, "-o", str(folder / "x.aigi")],
    "encode --out": lambda it, folder: [
        "encode", str(folder / "image.png"), "-m", "mean-scale-small", "-o", it,
    ],
    "encode --model": lambda it, folder: [
        "encode", str(folder / "image.png"), "-m", it, "-o", str(folder / "x.aigi"),
    ],
    "encode --text": lambda it, folder: [
        "encode", str(folder / "image.png"), "--text", it, "-o", str(folder / "x.aigi"),
    ],
    "decode": lambda it, folder: ["decode", it, "-o", str(folder / "x.png")],
    "watermark robustness": lambda it, folder: ["watermark", "robustness", it],
    "watermark --logo": lambda it, folder: [
        "watermark", "detect", str(folder / "image.png"), "--logo", it,
    ],
    **{f"run: {name}": workflow(name) for name in SETTINGS},
}  # fmt: skip
"""Each argument that names a location; all other arguments are right."""
OUTPUTS = {"merge-reviews --out", "encode --out", "demo --out", "run: run"}


def aigi(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def check(done: Result, it: str) -> None:
    """One error, which names the location."""
    said = done.output
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(f"a traceback: {done.exception!r}") from done.exception
    assert done.exit_code == 1, said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert it.removeprefix("hf://").rstrip("/") in said, said


FAULTS: dict[str, Callable[[Path], str]] = {
    "missing": lambda folder: str(folder / "nowhere.yaml"),
    "folder": lambda folder: str(folder / "empty.png"),
    "below a file": lambda folder: str(folder / "image.png" / "x.csv"),
    "closed port": lambda folder: "http://127.0.0.1:1/x.csv",
    "no such protocol": lambda folder: "nosuch://host/x.yaml",
    "ftp": lambda folder: "ftp://127.0.0.1:1/x.yaml",
    "offline": lambda folder: "hf://datasets/org/none/x.yaml",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    (tmp_path / "empty.png").mkdir()
    return tmp_path


def some(names: Iterable[str], others: Iterable[str], every: int) -> list[Any]:
    """All pairs; one in so many is quick to prove, and has every name and every other."""
    return [
        pytest.param(name, other, marks=[] if (i + j) % every == 0 else pytest.mark.slow)
        for i, name in enumerate(names)
        for j, other in enumerate(others)
    ]


@pytest.mark.parametrize(("verb", "fault"), some(VERBS, FAULTS, 7))
def test_a_location_that_is_wrong(verb: str, fault: str, folder: Path) -> None:
    if fault in ("missing", "folder") and verb in OUTPUTS:
        pytest.skip("it is made")
    it = FAULTS[fault](folder)
    check(aigi(*VERBS[verb](it, folder)), it)


def without_root() -> Callable[[], None]:
    """Let rights of files count for this thread, though it is root's; returns what undoes it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, low and high halves
    if libc.capget(header, sets):
        pytest.skip("capabilities cannot be read here")
    before = sets[0]

    def effective(bits: int) -> None:
        sets[0] = bits
        assert libc.capset(header, sets) == 0

    effective(before & ~0b110)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    return lambda: effective(before)


@pytest.fixture
def closed(folder: Path) -> Iterator[Path]:
    """A folder of somebody else, for whom alone it is open."""
    found = folder / "closed"
    (found / "inside.png").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(found, 65_534, 65_534)
        found.chmod(0o700)
        undo = without_root()
    else:
        found.chmod(0)
        undo = lambda: found.chmod(0o700)  # noqa: E731
    yield found
    undo()


@pytest.mark.parametrize("verb", VERBS)
def test_a_location_without_permission(verb: str, closed: Path, folder: Path) -> None:
    # Of some locations, the folder is listed first.
    check(aigi(*VERBS[verb](str(closed / "inside.png"), folder)), str(closed))


@pytest.fixture
def silent() -> Iterator[str]:
    """Host and port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for connection in held:
            connection.close()


DOORS: dict[str, Callable[[str, Path], list[str]]] = {
    "a store": lambda it, folder: ["status", it],
    "a release": lambda it, folder: ["verify", it],
    "YAML": lambda it, folder: ["run", it],
    "a target": lambda it, folder: ["publish", str(folder / "made"), "--to", it, "--dry-run"],
    "a run that is made": lambda it, folder: VERBS["run: run"](it, folder),
    "lines": lambda it, folder: VERBS["run: captions of kind text"](it, folder),
    "an archive": lambda it, folder: VERBS["run: images to analyse"](it + ".zip", folder),
    "a folder": lambda it, folder: VERBS["run: images of an import"](it, folder),
    "a table": lambda it, folder: VERBS["run: captions of a folder"](it + ".csv", folder),
    "decisions": lambda it, folder: ["merge-reviews", str(folder / "one.csv"), it],
}
"""What opens locations, each once."""


def released(folder: Path) -> None:
    """A release that can be published."""
    write_release(folder / "made", {("a", "train"): [np.zeros((8, 8, 3), np.uint8)]})
    path = folder / "made" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest |= {
        "name": "made",
        "version": "1.0.0",
        "documents": [],
        "plan": {"shards": 0, "rows": 0, "sha256": "0" * 64, "rounds": []},
        "aigi": {"version": "1", "commit": None},
        **{name: {} for name in ("specification", "workflow", "wanted", "tables", "versions")},
        **{name: [] for name in ("schema", "captions")},
    }
    for record in manifest["files"]:
        record |= {"rows": 1, "bytes": (folder / "made" / record["path"]).stat().st_size}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(("protocol", "door"), some(["http", "ftp", "s3"], DOORS, 6))
def test_a_server_that_says_nothing(
    door: str,
    protocol: str,
    folder: Path,
    silent: str,
    s3: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIGI_TIMEOUT", "0.05")
    s3(silent)
    released(folder)
    it = "s3://bucket/x" if protocol == "s3" else f"{protocol}://{silent}/x"
    done = aigi(*DOORS[door](it, folder))
    check(done, it)
    assert "no answer" in done.output or "timed out" in done.output or "imeout" in done.output


@pytest.mark.parametrize("door", DOORS)
def test_an_s3_that_is_not_there(door: str, folder: Path, s3: Callable[[str], None]) -> None:
    s3("127.0.0.1:1")
    released(folder)
    done = aigi(*DOORS[door]("s3://bucket/x", folder))
    check(done, "s3://bucket/x")
    assert "Could not connect" in done.output


@pytest.mark.parametrize("door", DOORS)
def test_a_bucket_that_is_not_there(
    door: str, folder: Path, moto: str, s3: Callable[[str], None]
) -> None:
    s3(moto)
    released(folder)
    check(aigi(*DOORS[door]("s3://wrong/x", folder)), "s3://wrong/x")
    import s3fs

    assert not s3fs.S3FileSystem().ls(""), "no bucket was made"


def test_an_upload_that_was_never_ended_is_aborted(
    moto: str, s3: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3(moto)
    store = Store("s3://uploads/run")
    store.fs.mkdir("uploads")
    for key in ("run/images/a.parquet", "running/b.parquet"):
        store.fs.call_s3("create_multipart_upload", Bucket="uploads", Key=key)
    with monkeypatch.context() as young:
        young.setattr(outside, "ABANDONED", timedelta(days=100_000))
        store.sweep()

    def keys() -> list[str]:
        found = store.fs.call_s3("list_multipart_uploads", Bucket="uploads").get("Uploads", ())
        return [upload["Key"] for upload in found]

    assert len(keys()) == 2
    store.sweep()
    assert keys() == ["running/b.parquet"]
    store.fs.rm("uploads", recursive=True)


def test_a_file_over_http_may_take_long(silent: str) -> None:
    """Only silence is limited, not the time of a whole file; aiohttp's own limit is 5 minutes."""
    fs, _ = outside.file_system(f"http://{silent}/x")
    limit = fs.client_kwargs["timeout"]
    assert (limit.total, limit.sock_read) == (None, outside.silence())


def test_what_cannot_be_listed_is_no_empty_folder(closed: Path) -> None:
    with pytest.raises(outside.Unreachable, match=r"closed: permission denied"):
        Store(str(closed.parent)).shards("closed")
    with pytest.raises(outside.Unreachable, match=r"127.0.0.1:1/x/t: cannot be reached"):
        Store("http://127.0.0.1:1/x").shards("t")
    with pytest.raises(outside.Unreachable, match=r"127.0.0.1:1/x/t: cannot be reached"):
        Store("http://127.0.0.1:1/x").fs.exists("http://127.0.0.1:1/x/t")


def test_a_hub_that_is_not_there() -> None:
    """In a process of its own: the client reads its address once."""
    there = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "verify", "hf://datasets/org/none@v1"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **there},
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"error: hf://datasets/org/none@v1/.*Connection refused.*\n", done.stderr)


@pytest.fixture
def silent_hub(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that accepts connections and says nothing; its clients may ask it."""
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setenv("AIGI_TIMEOUT", "0.05")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{silent}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    HfFileSystem.clear_instance_cache()


HUBS: dict[str, Callable[[Path], list[str]]] = {
    "a release": lambda folder: ["verify", "hf://datasets/org/none@v1"],
    "a model": lambda folder: written(folder, generated(folder)),
    "a target": lambda folder: [
        "publish",
        str(folder / "made"),
        "--to",
        "hf://datasets/org/none",
        "--dry-run",
    ],
}


@pytest.mark.parametrize("door", HUBS)
def test_a_hub_that_says_nothing(door: str, folder: Path, silent_hub: None) -> None:
    released(folder)
    done = aigi(*HUBS[door](folder))
    check(done, "org/none")
    assert "timed out" in done.output


@pytest.fixture
def expired() -> Iterator[str]:
    """Host and port of a server that knows its files, but no longer the signatures of requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            late = "later" in self.path  # the signature expires between two requests
            self.send_response(200 if late else 403)
            self.send_header("Content-Length", "9000000" if late else "0")
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["now", "later"])
@pytest.mark.parametrize("door", ["a store", "YAML", "lines", "an archive"])
def test_a_signature_that_has_expired(door: str, name: str, folder: Path, expired: str) -> None:
    place = f"http://{expired}/{name}"
    done = aigi(*DOORS[door](f"{place}?X-Amz-Signature=0123456789abcdef", folder))
    check(done, place)
    assert "access denied (HTTP status 403). If its signature has expired" in done.output
    assert "0123456789abcdef" not in done.output


def test_a_time_limit_that_is_none() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "status", "s3://x/y"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "AIGI_TIMEOUT": "soon"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: AIGI_TIMEOUT: soon: expected seconds above 0, for example 15\n"


def test_a_run_on_a_read_only_disk(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Status and report work, and nothing is tried to be written; a run says why it cannot."""
    path, run = finished
    only = f"mount --bind {run} {run} && mount -o remount,ro,bind {run} || exit 99\n"
    command = f"{sys.executable} -m pipeline.cli"
    script = (
        f"{only}{command} status {run} && {command} report {run} -o {tmp_path}/report.html\n"
        f"{command} run {path} || echo exit $?"
    )
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no `unshare` here")
    if done.returncode == 99 or "unshare:" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    assert "release" in done.stdout and (tmp_path / "report.html").stat().st_size
    assert "exit 1" in done.stdout, done.stdout + done.stderr
    assert done.stderr == (
        f"error: {run}/.lock: the file system is read-only. Use another place, or mount it to be "
        "written.\n"
    )
