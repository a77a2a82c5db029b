"""Errors of the Hub are explained by their cause, alike at every door, and without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import AigiError
from pipeline.hub_said import Cause, cause_of, no_such
from pipeline.manifest import open_release
from tests.conftest import ROOT, aigi
from tests.hub import Hub, serve
from tests.release.test_publish import REPO, TO, client

DOORS = """
import json, sys
import pipeline
from pipeline import AigiError
from pipeline.manifest import open_release, read_manifest
from pipeline.release.diff import diff
from pipeline import workflow

def load(at):
    return pipeline.load(f"hf://datasets/{at}", "sd", "test")

def plan(at):
    found = [f"plan.manifest=hf://datasets/{at}/manifest.json", "run=again"]
    return workflow.load("workflows/regenerate.yaml", found)

DOORS = {
    "verify": lambda at: open_release(f"hf://datasets/{at}"),
    "diff": lambda at: list(diff(sys.argv[1], f"hf://datasets/{at}")),
    "load": load,
    "plan.manifest": plan,
}
said = {}
for at in sys.argv[2:]:
    for name, door in DOORS.items():
        try:
            door(at)
            said[f"{at} {name}"] = "no error"
        except AigiError as error:
            said[f"{at} {name}"] = str(error)
        except Exception as error:
            said[f"{at} {name}"] = f"NOT EXPLAINED: {type(error)} {error}"
print(json.dumps(said))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "hub") as hub:
        yield hub


def doors(hub: Hub, release: Path, *places: str, **environment: str) -> dict[str, str]:
    """What each door says of each place, by `PLACE DOOR`."""
    done = subprocess.run(
        [sys.executable, "-c", DOORS, str(release), *places],
        cwd=ROOT, capture_output=True, text=True, env=hub.environment(**environment),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


NOTHING = "no such repository on the Hub, or a private one that this token may not see. Correct"


def test_every_door_says_why_a_dataset_cannot_be_read(hub: Hub, small: tuple[Path, str]) -> None:
    release = small[0]
    client(hub, f'api.create_repo("{REPO}", repo_type="dataset", private=True)')
    places = ("tester/none", f"{REPO}@v9.0.0")
    for key, said in doors(hub, release, *places).items():
        where = key.partition(" ")[0]
        expected = NOTHING if "none" in where else "has no such tag, branch or commit. Correct"
        assert expected in said and where in said and "\n" not in said, (key, said)
    for key, said in doors(hub, release, REPO, HF_TOKEN="").items():
        assert NOTHING in said and "HF_TOKEN" in said, (key, said)
    for key, said in doors(hub, release, REPO, HF_TOKEN="hf_forged_0123456789").items():
        assert "the Hub does not know this token" in said and "forged" not in said, (key, said)
    gated = {"X-Error-Code": "GatedRepo"}
    hub.faults.add("GET|HEAD", "datasets/", times=999, status=403, headers=gated)
    for key, said in doors(hub, release, REPO).items():
        assert "gated: its owner has not given this account access" in said, (key, said)
    hub.faults.clear()
    hub.faults.add("GET|HEAD", "datasets/", times=999, status=403)
    for key, said in doors(hub, release, REPO).items():
        assert "no right to see it" in said and "pull-request" not in said, (key, said)


def test_every_door_says_that_the_hub_cannot_be_reached(hub: Hub, small: tuple[Path, str]) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_ETAG_TIMEOUT": "1"}
    for key, said in doors(hub, small[0], REPO, **nowhere).items():
        assert "the Hub cannot be reached" in said and "HF_ENDPOINT" in said, (key, said)
    for key, said in doors(hub, small[0], REPO, HF_HUB_OFFLINE="1").items():
        assert "HF_HUB_OFFLINE is set" in said, (key, said)


def published(hub: Hub, release: Path, *options: str, **environment: str) -> str:
    """What a publication that fails says."""
    there = hub.environment(**environment)
    done = aigi("publish", str(release), "--to", TO, *options, **there)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and hub.token not in done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return error


def test_who_may_not_write_is_told_of_pull_requests_and_a_full_account_of_storage(
    hub: Hub, small: tuple[Path, str]
) -> None:
    release = small[0]
    client(hub, f'api.create_repo("{REPO}", repo_type="dataset", private=False)')
    hub.faults.add("POST", "/commit/|preupload", times=99, status=403)
    said = published(hub, release)
    assert "no right to write there" in said and "--pull-request" in said, said
    for fault in (
        {"status": 402},
        {"status": 413},
        {"status": 403, "headers": {"X-Error-Message": "Private repository storage limit reached"}},
    ):
        hub.faults.clear()
        hub.faults.add("POST", "/commit/|preupload", times=99, **fault)
        said = published(hub, release)
        assert "no storage is left in this account" in said, said
    hub.faults.clear()
    said = published(hub, release, HF_ENDPOINT="http://127.0.0.1:1")
    assert "the Hub cannot be reached" in said and TO in said
    assert hub.tags(REPO) == {}


def test_a_pull_request_for_what_is_published_says_that_none_was_opened(
    hub: Hub, small: tuple[Path, str]
) -> None:
    there = hub.environment()
    assert aigi("publish", str(small[0]), "--to", TO, **there).returncode == 0
    done = aigi("publish", str(small[0]), "--to", TO, "--pull-request", **there)
    assert done.returncode == 0, done.stderr
    assert f"{TO}: v1.2.3 is already published with this content: no pull request" in done.stderr
    assert hub.repository(REPO).pulls == [] and "next: merge it" not in done.stderr
    client(hub, f'api.delete_tag("{REPO}", tag="v1.2.3", repo_type="dataset")')
    done = aigi("publish", str(small[0]), "--to", TO, "--pull-request", **there)
    assert done.returncode == 0, done.stderr
    assert "main has all of it: no pull request was opened" in done.stderr
    assert hub.repository(REPO).pulls == [] and "next: merge it" not in done.stderr
    assert hub.tags(REPO) == {}, "who proposes does not tag"


def test_a_run_without_a_release_says_why(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for said, workflow in (
        ("has no `release` section", {"run": "x", "release": None}),
        ("it is not finished", {"run": "x", "release": {"version": "1.0.0"}}),
    ):
        (run / "_workflow.json").write_text(json.dumps(workflow))
        with pytest.raises(AigiError, match=said):
            open_release(str(run))
    with pytest.raises(AigiError, match="not a release"):
        open_release(str(tmp_path / "nothing"))


class _Answer:
    """A response as the clients have it."""

    def __init__(self, status: int, url: str) -> None:
        self.status_code, self.headers = status, {"x-request-id": "1"}
        self.request: Any = type("Request", (), {"url": url})()


def refused(status: int, url: str = "https://hub/api/datasets/a/b/commit/main") -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    response: Any = _Answer(status, url)
    error = HfHubHTTPError("refused", response=response)
    outer = RuntimeError("Error while uploading")
    outer.__cause__ = error
    return outer


def what(error: Exception, writing: bool = True) -> str:
    return (cause_of(error, writing) or Cause("nobody knows", "")).what


def test_causes_are_found_below_other_errors_and_storage_is_no_matter_of_rights() -> None:
    assert what(refused(403)) == "no right to write there"
    assert what(refused(403), writing=False) == "no right to see it"
    assert what(refused(403, "https://s3/x?X-Amz-Signature=1")) == "nobody knows"
    assert what(refused(503)) == "the Hub itself has a fault (HTTP status 503)"
    assert what(refused(429)) == "too many requests"
    assert what(refused(400)) == "nobody knows"
    assert cause_of(ValueError("storage quota")) is None, "not the Hub's"
    assert cause_of(ConnectionError("refused")) is None and not no_such(FileNotFoundError("x"))
