"""Weights go to a folder or the Hub and come back; cards say what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline import AigiError
from pipeline.learned.card import RatePoint, card
from pipeline.learned.codec import LearnedCodec, load
from pipeline.learned.network import Network
from pipeline.learned.sizes import NETWORKS
from tests.conftest import ROOT
from tests.hub import serve
from tests.learned.conftest import SMALL, pictures, ready, small


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_holds_the_codec(name: str, tmp_path: Path) -> None:
    network = small(name)
    network.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    again = Network.from_pretrained(tmp_path)
    assert again.sizes == network.sizes
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    data = ready(name).encode(pictures(1)[0], "a boat")
    loaded = load(tmp_path, device="cpu")
    assert loaded.encode(pictures(1)[0], "a boat") == data
    # A codec in use is saved as what it was made of.
    loaded.network.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again", device="cpu").weights == loaded.weights
    dtypes = {value.dtype for value in load_file(tmp_path / "again" / "model.safetensors").values()}
    assert dtypes == {torch.float32, torch.int32}


def test_half_precision_on_disk_is_a_codec_of_its_own(tmp_path: Path) -> None:
    small("mean-scale").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_file(half, file)
    codec = load(tmp_path, device="cpu")
    assert codec.weights != ready("mean-scale").weights
    encoded = codec.encode_and_reconstruct(pictures(1)[0])
    assert (load(tmp_path, device="cpu").decode(encoded.data) == encoded.reconstruction).all()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors; weights in pickle"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\4pickle"), "is damaged or"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "expected an object, found a list"),
        (lambda f: (f / "config.json").write_text("{}"), "kind: needed; there are hyperprior"),
        (lambda f: (f / "config.json").write_text('{"kind": "catc", "n": 1e9}'), "name"),
        (lambda f: save_file({"x": torch.zeros(1)}, f / "model.safetensors"), "lack 56 tensors"),
        (lambda f: _change(f, m=14), "of 12 instead of 14"),
        (lambda f: _change(f, revision="main"), "revision"),
        (lambda f: _no_tables(f), "no tables"),
    ],
)
def test_damaged_models_are_refused(tmp_path: Path, harm: object, said: str) -> None:
    small("mean-scale").save_pretrained(tmp_path)
    assert callable(harm)
    harm(tmp_path)
    with pytest.raises(AigiError, match=said):
        load(tmp_path, device="cpu")


def _change(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def _no_tables(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["prior.table"] = torch.zeros_like(weights["prior.table"])
    save_file(weights, folder / "model.safetensors")


PUSH = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from pipeline.learned.card import RatePoint
from pipeline.learned.codec import load
from pipeline.learned.network import Network
from tests.learned.conftest import pictures, small
repo, out = "tester/codec", Path(sys.argv[1])
points = [RatePoint("ours", "Kodak", 24, 0.5, 0.49, 30.0)]
small("catc-small").push_to_hub(repo, model_card_kwargs={"points": points, "model": repo})
first = HfApi().model_info(repo).sha
small("catc-small", seed=1).push_to_hub(repo)
for revision in (first, "main"):
    network = Network.from_pretrained(repo, revision=revision)
    codec = load(repo, revision=revision, device="cpu")
    (out / f"{revision}.aigi").write_bytes(codec.encode(pictures(1)[0], "a boat"))
    assert network.fingerprint() == small("catc-small", seed=revision == "main").fingerprint()
(out / "first").write_text(first)
HfApi().create_repo("tester/pickled")
for name, content in (("pytorch_model.bin", b"pickle"), ("config.json", Path(sys.argv[2]))):
    HfApi().upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="tester/pickled")
for way in (Network.from_pretrained, load):
    try:
        way("tester/pickled")
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_the_hub_keeps_revisions(tmp_path: Path) -> None:
    small("catc-small").save_pretrained(tmp_path / "model")
    with serve(tmp_path / "hub") as hub:
        done = subprocess.run(
            [sys.executable, "-c", PUSH, str(tmp_path), str(tmp_path / "model" / "config.json")],
            env=hub.environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        files = hub.files("tester/codec", repo_type="model")
    assert set(files) >= {"config.json", "model.safetensors", "README.md"}
    first = (tmp_path / "first").read_text()
    (picture,) = pictures(1)
    assert (tmp_path / f"{first}.aigi").read_bytes() == ready("catc-small").encode(
        picture, "a boat"
    )
    other = LearnedCodec(small("catc-small", seed=1), "cpu")
    assert (tmp_path / "main.aigi").read_bytes() == other.encode(picture, "a boat")
    refused = done.stdout.splitlines()
    assert sum("NotFound" in line or "no model.safetensors" in line for line in refused) == 2


def test_the_card_has_what_was_measured() -> None:
    points = [
        RatePoint("JPEG q50 | libjpeg", "Kodak", 24, 0.61, 0.61, 29.5, 0.95),
        RatePoint("catc-small", "Kodak <b>", 24, 0.3, 0.29, 30.25),
    ]
    text = card(NETWORKS["catc-small"], points, data=["org/set"], training="40 epochs", model="a/b")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["datasets"] == ["org/set"]
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    rows = [line for line in body.splitlines() if line.startswith("| ")][2:]
    assert "| 0.3000 | 0.2900 | 30.25 |  |" in rows[1] and "<b>" not in rows[1]
    assert rows[0].count("|") == 7 and "0.9500" in rows[0]
    assert "40 epochs" in body and "--model a/b" in body and "n = 64" in body
    bare = card(NETWORKS["mean-scale"])
    assert "Nothing was measured yet" in bare and "weights are random" in bare
    assert "--prompt" not in bare and "stores none" in bare


def test_offline_a_hub_id_is_an_error_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(
        AigiError, match=r"nothing@v1.*its folder as --model FOLDER, or name one of catc-light"
    ):
        load("nobody/nothing", revision="v1")
