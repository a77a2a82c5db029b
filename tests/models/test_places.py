"""A folder or a Hub id in, the model's files out; what is missing is said with what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.models.hub import Place, check_sha256, loading
from tests.conftest import ROOT
from tests.hub import serve

FILES = ("config.json", "*.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (made / name).write_text(name)
    return made


def place(folder: Path) -> Place:
    return Place.of("quality.safety_checker", str(folder), "org/unused")


def test_a_folder_is_used_as_it_is(folder: Path) -> None:
    assert place(folder).fetch(*FILES, beside=("*.txt",)) == str(folder)
    assert place(folder).file("model.safetensors") == str(folder / "model.safetensors")
    assert str(place(folder)) == str(folder)


def test_what_a_folder_lacks_is_said_with_key_and_remedy(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(AigiError) as lacking:
        place(folder).fetch(*FILES)
    assert str(lacking.value) == (
        f"quality.safety_checker.folder: {folder} has no *.safetensors; weights in pickle files "
        "are not read. Get the model anew, or give a copy of it, its weights saved as "
        "safetensors, as quality.safety_checker.folder."
    )
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()  # a folder is no file
    with pytest.raises(AigiError, match=r"has no config\.json\. Get"):
        place(folder).fetch("config.json")
    shutil.rmtree(folder)
    with pytest.raises(AigiError, match=r"checker\.folder: .*model: no such folder\. Copy"):
        place(folder).fetch("config.json")


def test_hashes_of_a_folder_are_compared(folder: Path) -> None:
    found = place(folder).sha256("model.safetensors", "other.safetensors")
    right = file_sha256(str(folder / "model.safetensors"))
    assert found == {"model.safetensors": right}
    check_sha256("embeddings.sha256", "model.safetensors", right, right)
    with pytest.raises(AigiError) as other:
        check_sha256("embeddings.sha256", "model.safetensors", right, "0" * 64)
    assert str(other.value) == (
        f"embeddings.sha256: model.safetensors has sha256 {right}, expected is {'0' * 64}. Get "
        "the right weights or revision, or correct the expected sha256."
    )


@pytest.mark.parametrize("error", [OSError, KeyError, RuntimeError, SafetensorError])
def test_what_a_library_says_of_its_files_becomes_one_error(error: type[Exception]) -> None:
    with (
        pytest.raises(AigiError, match=rf"^here: /m: the .* loaded: {error.__name__}: .*a b\W* Co"),
        loading("here", "/m"),
    ):
        raise error("a   b")


def test_errors_of_the_pipeline_and_defects_go_through() -> None:
    with pytest.raises(AigiError, match=r"^ours$"), loading("here", "/m"):
        raise AigiError("ours")
    with pytest.raises(AssertionError), loading("here", "/m"):
        raise AssertionError


REVISIONS = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, constants
from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.models.hub import Place

REPO, FILES, folder = "tester/model", ("config.json", "*.safetensors"), sys.argv[1]
api = HfApi()
api.create_repo(REPO)
first = api.upload_folder(repo_id=REPO, folder_path=folder, ignore_patterns=["*.bin"]).oid
(Path(folder) / "config.json").write_text("second")
api.upload_file(repo_id=REPO, path_or_fileobj=b"second", path_in_repo="config.json")
api.create_repo("tester/pickled")
api.upload_file(repo_id="tester/pickled", path_or_fileobj=b"x", path_in_repo="config.json")


def refused(place, *files, way="fetch"):
    try:
        getattr(place, way)(*files)
    except AigiError as error:
        return str(error)
    raise AssertionError("not refused")


def at(revision, repository=REPO):
    return Place.of("captions", None, repository, revision)


stated = at(first).sha256("model.safetensors", "config.json", "none.safetensors")
assert stated == {"model.safetensors": file_sha256(folder + "/model.safetensors"),
                  "config.json": None}, stated
assert not list(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/*")), "no download"

got = Path(at(first).fetch(*FILES))
assert sorted(path.name for path in got.iterdir()) == ["config.json", "model.safetensors"]
assert (got / "config.json").read_text() == "config.json"
assert (Path(at(None).fetch(*FILES, beside=("*.txt",))) / "config.json").read_text() == "second"
assert {path.name for path in Path(at("main").fetch(*FILES)).iterdir()} > {"vocab.txt"}
assert "captions.model: tester/pickled@main has no *.safetensors; weights in pickle" in refused(
    at(None, "tester/pickled"), *FILES)
assert "captions.model: cannot get tester/model@v9, and" in refused(at("v9"), *FILES)
assert "as captions.folder." in refused(at(None, "tester/nothing"), *FILES)

constants.HF_HUB_OFFLINE = True
assert at(first).fetch(*FILES) == str(got)
assert at(first).sha256("model.safetensors", "none") == {
    "model.safetensors": stated["model.safetensors"]}
assert "captions.model: cannot get tester/model@v9" in refused(at("v9"), *FILES)
assert "cannot look up tester/model@v9" in refused(at("v9"), "config.json", way="sha256")
assert "captions.model: cannot get" in refused(at(first), *FILES, "vocab.txt")
"""


def test_a_repository_is_read_at_its_revision_and_from_the_cache(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with serve(tmp_path / "hub") as hub:
        done = subprocess.run(
            [sys.executable, "-c", REVISIONS, str(folder)],
            env=hub.environment(PYTHONPATH=str(ROOT)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr


ENCODER = """
import sys
from huggingface_hub import HfApi
from pipeline.learned.sizes import TextSizes
from pipeline.learned.text import TextEncoder
from pipeline.files import file_sha256
from pipeline.models.clip import Embeddings, find_weights, model_config

api = HfApi()
api.create_repo("tester/clip")
api.upload_folder(repo_id="tester/clip", folder_path=sys.argv[1])
api.upload_file(repo_id="tester/clip", path_or_fileobj=b"x", path_in_repo="big.bin")
here = TextEncoder(TextSizes(tower="tiny", width=96))(["a red boat"])
there = TextEncoder(TextSizes(tower="tester/clip", width=96))(["a red boat"])
assert (here.features == there.features).all()

sha256 = file_sha256(sys.argv[1] + "/open_clip_model.safetensors")
named = Embeddings(model="hf-hub:tester/clip", sha256=sha256)
assert file_sha256(find_weights(named)) == sha256
assert model_config(named)["embed_dim"] == 96
"""


def test_models_of_open_clip_in_the_hub_are_those_of_a_folder(tmp_path: Path) -> None:
    with serve(tmp_path / "hub") as hub:
        done = subprocess.run(
            [sys.executable, "-c", ENCODER, str(ROOT / "pipeline" / "tiny" / "weights" / "clip")],
            env=hub.environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        asked = {request.path.rpartition("/")[2] for request in hub.requests}
    assert done.returncode == 0, done.stderr
    assert "open_clip_model.safetensors" in asked and "big.bin" not in asked
