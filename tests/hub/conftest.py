"""A small release, real clients to publish it, and what lies on both sides."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub

REPO = "org/pictures"
CARD = """---
license: apache-2.0
configs:
- config_name: sd
  data_files:
  - {split: train, path: "data/sd-train-*.parquet"}
  - {split: test, path: "data/sd-test-*.parquet"}
- config_name: mj
  data_files:
  - {split: test, path: "data/mj-test-*.parquet"}
---
# Pictures
"""
PARTS: dict[str, Any] = {"multipart_from": 100_000, "part_size": 60_000}
SHARDS = {"sd-train-0": 16, "sd-train-1": 16, "sd-test-0": 8, "mj-test-0": 4}


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card, a small text file, an empty one, and 550 KB of pictures in four shards."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, Value
    from PIL import Image as Picture

    folder = tmp_path_factory.mktemp("release")
    (folder / "README.md").write_text(CARD)
    (folder / "manifest.json").write_text('{"rows": 44}')
    (folder / "empty.txt").touch()
    (folder / "data").mkdir()
    random = np.random.default_rng(0)
    schema = Features({"image": Image(), "text": Value("string")}).arrow_schema
    for name, rows in SHARDS.items():
        images = []
        for row in range(rows):
            png = io.BytesIO()
            Picture.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(png, "PNG")
            images.append({"bytes": png.getvalue(), "path": f"{name}-{row}.png"})
        texts = [f"{name} {row}" for row in range(rows)]
        table = pa.table({"image": images, "text": texts}, schema=schema)
        pq.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=4)
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Turn this process's huggingface_hub online, in LFS mode; the seconds it would have waited."""
    from huggingface_hub import close_session, constants
    from huggingface_hub.utils import _http
    from huggingface_hub.utils.tqdm import disable_progress_bars

    waits: list[float] = []
    clock = types.SimpleNamespace(sleep=waits.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_URL_HOSTS", {"127.0.0.1"})  # as HF_ENDPOINT would have it
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    disable_progress_bars()
    close_session()
    return waits


def client(hub: Hub, token: str | bool | None = None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.token if token is None else token)


def publish(api: Any, folder: Path, **more: Any) -> Any:
    api.create_repo(REPO, repo_type="dataset", exist_ok=True)
    return api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=folder, **more)


def local(folder: Path) -> dict[str, tuple[int, str]]:
    """{path: (bytes, sha256)}, as `hub.files` has them."""
    paths = [p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts]
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}
    return {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()}


def remote(hub: Hub, revision: str = "main") -> dict[str, tuple[int, str]]:
    files = hub.files(REPO, revision)
    del files[".gitattributes"]
    return files


def script(hub: Hub, code: str, *arguments: object, **more: str) -> Any:
    """Run a client script in a process of its own; what it prints last is JSON."""
    code = "import json, sys\nfrom huggingface_hub import HfApi\napi = HfApi()\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=hub.environment(**more), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


UPLOAD = """
api.create_repo("org/pictures", repo_type="dataset", exist_ok=True)
made = api.upload_folder(repo_id="org/pictures", repo_type="dataset", folder_path=sys.argv[1])
print(json.dumps(made.oid))
"""


def start_upload(hub: Hub, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    code = "import json, sys\nfrom huggingface_hub import HfApi\napi = HfApi()\n" + UPLOAD
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], env=environment, stderr=subprocess.DEVNULL
    )


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.01)
