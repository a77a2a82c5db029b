"""What stands on the client: datasets, fsspec, the model mixin; and its environment."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.hub import serve
from tests.hub.conftest import REPO, script

LOAD = """
import hashlib, pathlib
import fsspec
from datasets import load_dataset
from huggingface_hub import HfFileSystem

name = "org/pictures"
api.create_repo(name, repo_type="dataset", private=True)
api.upload_folder(repo_id=name, repo_type="dataset", folder_path=sys.argv[1])
api.create_tag(name, tag="v1", repo_type="dataset")
api.delete_file("data/mj-test-0.parquet", name, repo_type="dataset")

train = load_dataset(name, "sd", split="train", revision="v1")
assert train.num_rows == 32 and train[20]["text"] == "sd-train-1 4", train[20]
assert train[20]["image"].size == (64, 64)
assert load_dataset(name, "mj", split="test", revision="v1").num_rows == 4
rows = list(load_dataset(name, "sd", split="test", revision="v1", streaming=True))
assert [row["text"] for row in rows] == [f"sd-test-0 {n}" for n in range(8)]
assert rows[3]["image"].size == (64, 64)

files = HfFileSystem()
assert len(files.ls(f"datasets/{name}@v1/data", detail=False)) == 4
assert len(files.ls(f"datasets/{name}/data", detail=False)) == 3
with fsspec.open(f"hf://datasets/{name}@v1/data/mj-test-0.parquet", "rb") as file:
    assert file.read(4) == b"PAR1"
    file.seek(-4, 2)
    assert file.read() == b"PAR1"
with fsspec.open(f"hf://datasets/{name}/notes/new.txt", "w") as file:
    file.write("by fsspec")

rows = train.select(range(6))
rows.push_to_hub("org/pushed", config_name="sd", split="train", private=True)
rows.push_to_hub("org/pushed", config_name="mj", split="test")
back = load_dataset("org/pushed", "sd", split="train")
assert back.num_rows == 6 and back[2]["text"] == rows[2]["text"]
assert back[2]["image"].tobytes() == rows[2]["image"].tobytes()
"""
MODEL = """
import torch
from huggingface_hub import PyTorchModelHubMixin

class Codec(torch.nn.Module, PyTorchModelHubMixin, library_name="aigi", tags=["codec"]):
    def __init__(self, channels=3):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, 2 * channels, 3)

codec = Codec(channels=5)
codec.push_to_hub("org/codec", private=True)
other = Codec.from_pretrained("org/codec")
assert other.layer.weight.shape == (10, 5, 3, 3)
assert torch.equal(other.layer.weight, codec.layer.weight)
api.create_branch("org/codec", branch="next")
codec.push_to_hub("org/codec", branch="next", commit_message="same again")
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_the_libraries_on_top(release: Path, tmp_path: Path, xet: bool) -> None:
    model = "" if xet else MODEL  # torch takes seconds to load
    with serve(tmp_path / "hub", xet=xet) as hub:
        script(hub, f"{LOAD}{model}\nprint(json.dumps(None))", release, OMP_NUM_THREADS="1")
        assert hub.read(REPO, "notes/new.txt") == b"by fsspec"
        pushed = hub.read("org/pushed", "README.md").decode()
        assert "config_name: mj" in pushed and "config_name: sd" in pushed
        streamed = [r for r in hub.requests if r.status == 206 and "/objects/" in r.path]
        assert streamed and not any(r.authorized for r in streamed)
        assert all(hub.repository(r).private for r in (REPO, "org/pushed"))
        assert bool([r for r in hub.requests if "/v1/reconstructions/" in r.path]) == xet
        if model:
            files = hub.files("org/codec", repo_type="model")
            assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
            assert json.loads(hub.read("org/codec", "config.json", repo_type="model")) == {
                "channels": 5
            }
            assert hub.repository("org/codec", "model").private


def test_the_environment_is_turned_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "of this machine's user")
    with serve(tmp_path) as hub, serve(tmp_path / "other", xet=True) as other:
        one, two = hub.environment(), other.environment(HF_TOKEN="mine")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", one["HF_ENDPOINT"])
        assert (one["HF_HUB_OFFLINE"], one["HF_HUB_DISABLE_XET"]) == ("0", "1")
        assert "HUGGING_FACE_HUB_TOKEN" not in one and "HF_HUB_DISABLE_XET" not in two
        assert (one["HF_TOKEN"], two["HF_TOKEN"]) == (hub.token, "mine")
        assert one["HF_HOME"] != hub.environment()["HF_HOME"] and Path(one["HF_HOME"]).is_dir()
        assert one["PATH"] == os.environ["PATH"]
    assert not Path(one["HF_HOME"]).exists()
