"""Thousands of damaged files of ours: each is one error line, or is read as what it says."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import stages
from pipeline.collection import Collection, Pictures
from pipeline.learned import sizes
from pipeline.manifest import ENTRIES, MANIFEST, PLAN_FILE, open_release
from pipeline.plan import rounds
from pipeline.plan.copied import read_plan
from pipeline.plan.rounds import ROUNDS, extra_of
from pipeline.progress import Progress
from pipeline.release.diff import diff
from pipeline.release.publish import publish
from pipeline.release.trust import asked
from pipeline.release.verify import compare
from pipeline.running import run_stages
from pipeline.selection.kept import FILES, digest_of, files_of
from pipeline.store import RUN_WORKFLOW, Store
from pipeline.training.logs import logs
from tests.conftest import PLANNING, ROOT, aigi
from tests.mutations import changed_bytes, json_bytes

Verdict = Any
"""What a reader made of a file; None where it was refused."""


@contextmanager
def explained() -> Iterator[list[str]]:
    """Errors that a user can act on are kept; any other one fails the test."""
    said: list[str] = []
    try:
        yield said
    except AigiError as error:
        said.append(str(error))


def one_line(said: list[str], *names: str) -> None:
    """An error is one line, names one of the files, and is in the words of aigi."""
    for text in said:
        # What publishing refuses is a list: one line each.
        assert "\n" not in text.partition("nothing was sent:")[0] and len(text) < 1500, text
        assert any(name in text for name in names), text
        for word in ("pydantic", "Traceback", "Input should", "KeyError", "object at 0x"):
            assert word not in text


class Release:
    """A copy of a release whose manifest is replaced, and all that reads one."""

    def __init__(self, release: Path, models: Path, folder: Path) -> None:
        self.original, self.folder, self.models = release, folder, models
        self.copy = folder / "copy"
        shutil.copytree(release, self.copy)
        self.manifest = json.loads((release / MANIFEST).read_text())
        self.bare = folder / "bare.yaml"
        self.bare.write_text(f"run: {folder / 'again'}\n")
        self.plan = {row["image_id"]: row for row in self._plan(release)}

    def _plan(self, release: Path) -> list[dict[str, Any]]:
        location = str(release / MANIFEST)
        tables = read_plan(location, json.loads((release / MANIFEST).read_text()))
        return [{**row, "shard": name} for name, table in tables for row in table.to_pylist()]

    def verify(self) -> None:
        store, manifest = open_release(str(self.copy), ENTRIES)
        found = compare(store, manifest)
        states = ("files", "documents", "schema")
        if any(_content(manifest[key]) != _content(self.manifest[key]) for key in states):
            assert found, "verify found nothing, and the manifest states something else"

    def read(self) -> None:
        parts = Collection(Pictures(place=str(self.copy))).parts
        known = {(file["config"], file["split"]) for file in self.manifest["files"]}
        assert {(part.source, part.split) for part in parts} <= known

    def compare(self) -> None:
        list(diff(str(self.original), str(self.copy)))

    def publish(self) -> None:
        publish(str(self.copy), str(self.folder / "empty"), dry_run=True)

    def over(self) -> None:
        """Published over what is there: its files are removed by no other manifest's word."""
        publish(str(self.original), str(self.copy), dry_run=True)

    def replaced(self) -> None:
        """The same, where all that is refused is asked for."""
        changes, _ = publish(str(self.original), str(self.copy), dry_run=True, replace=True)
        assert all(
            (self.copy / change.path).is_file() for change in changes if change.what != "new"
        )

    def beside(self) -> None:
        """A source is added to what is there: others wrote that manifest, and its plan."""
        publish(
            str(self.original),
            str(self.copy),
            dry_run=True,
            replace=True,
            sources=["sdxl"],
            version="9.0.0",
        )

    def again(self) -> None:
        overrides = [
            f"plan.manifest={self.copy / MANIFEST}",
            f"sources.sd.folder={self.models / 'sd'}",
            f"sources.sdxl.folder={self.models / 'sdxl'}",
        ]
        workflow = workflows.load(self.bare, overrides)
        asked(workflow)
        store = Store(f"memory://{uuid.uuid4().hex}")
        plan = [stage for stage in stages(workflow) if stage.table in PLANNING]
        run_stages(plan, store, workflow.compute, Progress(quiet=True))
        for table in rounds.shards(store):
            for row in table.to_pylist():
                assert row == self.plan[row["image_id"]]

    def readers(self) -> list[Callable[[], None]]:
        given = [self.verify, self.read, self.compare, self.publish, self.over, self.replaced]
        return [*given, self.beside, self.again]


def _content(value: Any) -> Any:
    """A list of records without its order."""
    return sorted(json.dumps(item, sort_keys=True) for item in value)


def attack_manifests(release: Release, count: int, seed: int) -> int:
    """How many of the mutants were refused by somebody."""
    draw = random.Random(seed)
    refused = 0
    for number in range(count):
        data = json_bytes(release.manifest, draw)
        (release.copy / MANIFEST).write_bytes(data)
        failures = []
        for read in release.readers():
            with explained() as said:
                try:
                    read()
                except AigiError:
                    raise
                except BaseException as error:
                    raise AssertionError(f"mutant {number}, {read.__name__}: {data!r}") from error
            failures += said
            lists = ("Give their places here", "which this workflow does not name")
            one_line(
                [text for text in said if not any(words in text for words in lists)],
                str(release.copy), "plan", "prompts", "selection", "images",
            )  # fmt: skip
        refused += bool(failures)
    assert (release.folder / "again").exists() is False
    return refused


@pytest.fixture
def release(finished: tuple[Path, Path], models: Path, tmp_path: Path) -> Release:
    return Release(finished[1] / "release", models, tmp_path)


def test_mutated_manifests_are_refused_or_mean_what_they_say(release: Release) -> None:
    assert attack_manifests(release, 150, 18) > 90


@pytest.mark.slow
def test_10_000_mutated_manifests(release: Release) -> None:
    assert attack_manifests(release, 10_000, 1) > 6_000


def attack_plans(release: Release, count: int, seed: int) -> int:
    """Mutants of plan.arrow, each with a manifest that has its hash: as if it were meant."""
    draw = random.Random(seed)
    with pa.ipc.open_file(release.original / PLAN_FILE) as reader:
        table = reader.read_all()
    plain = release.folder / "plain.arrow"  # not compressed: more of its bits mean something
    with pa.ipc.new_file(str(plain), table.schema) as writer:
        writer.write_table(table)
    files = [(release.original / PLAN_FILE).read_bytes(), plain.read_bytes()]
    refused = 0
    for number in range(count):
        data = changed_bytes(draw.choice(files), draw)
        (release.copy / PLAN_FILE).write_bytes(data)
        manifest = json.loads(json.dumps(release.manifest))
        record = next(d for d in manifest["documents"] if d["path"] == PLAN_FILE)
        record |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (release.copy / MANIFEST).write_text(json.dumps(manifest))
        with explained() as said:
            try:
                release.again()
            except AigiError:
                raise
            except BaseException as error:
                raise AssertionError(f"mutant {number}") from error
        one_line(said, PLAN_FILE)
        refused += bool(said)
    return refused


def test_mutated_plans_are_refused_or_are_the_plan(release: Release) -> None:
    assert attack_plans(release, 100, 18) > 50


@pytest.mark.slow
def test_3_000_mutated_plans(release: Release) -> None:
    assert attack_plans(release, 3_000, 1) > 1_500


def attack_records(
    folder: Path, sound: Any, read: Callable[[Path], Any], count: int, seed: int
) -> int:
    draw, refused = random.Random(seed), 0
    path = folder / "record.json"
    for number in range(count):
        path.write_bytes(json_bytes(sound, draw))
        with explained() as said:
            try:
                read(path)
            except AigiError:
                raise
            except BaseException as error:
                raise AssertionError(f"mutant {number}: {path.read_bytes()!r}") from error
        one_line(said, path.name, ROUNDS, FILES)
        refused += bool(said)
    return refused


def _network(path: Path) -> None:
    found = sizes.read(path)
    assert found.n <= 512 and found.m <= 1024
    if found.text is not None:
        assert ".." not in found.text.tower and ".." not in (found.text.revision or "")


CODECS = sorted((ROOT / "pipeline" / "learned" / "weights").glob("*/config.json"))


@pytest.mark.parametrize("config", CODECS, ids=lambda path: path.parent.name)
def test_mutated_codecs_are_refused_or_networks(config: Path, tmp_path: Path) -> None:
    sound = json.loads(config.read_text())
    assert attack_records(tmp_path, sound, _network, 300, 18) > 200


def test_mutated_rounds_and_release_names_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))

    def read_rounds(path: Path) -> None:
        store.write_bytes(path.read_bytes(), "plan", ROUNDS)
        for more in extra_of(store)["rounds"]:
            assert all(isinstance(count, int) and count >= 0 for count in more.values())

    def read_names(path: Path) -> None:
        store.write_bytes(path.read_bytes(), "selection", FILES)
        digest_of(store)
        for name, shard in files_of(store).items():
            assert store.path("release", name).startswith(store.root)
            assert store.path("images", shard).startswith(store.root)

    sound: Any = {"pins": {"sd": "a" * 40}, "rounds": [{"sd/train": 3}, {"sd/test": 1}]}
    assert attack_records(tmp_path, sound, read_rounds, 200, 18) > 100
    sound = {"files": {"sd/test-00000": "sd-test-00000"}, "sha256": "0" * 64}
    assert attack_records(tmp_path, sound, read_names, 200, 18) > 150


def test_the_commands_say_it_in_one_line(release: Release, tmp_path: Path) -> None:
    """As a user meets it, each in a process of its own."""
    (release.copy / MANIFEST).write_bytes(b'{"files": ' + b"[" * 50_000)
    place, original = str(release.copy), str(release.original)
    run = f"--set=run={tmp_path / 'run'}"
    codec = tmp_path / "codec"
    codec.mkdir()
    (codec / "config.json").write_bytes(b'{"kind": "catc", "n": [')
    (codec / "model.safetensors").write_bytes(b"")
    sheet = release.original / "sheet.webp"
    for command in (
        ["verify", place],
        ["diff", original, place],
        ["publish", place, "--to", str(tmp_path / "there")],
        ["publish", original, "--to", place],
        ["run", str(release.bare), run, f"--set=plan.manifest={place}/{MANIFEST}"],
        ["run", str(release.bare), run, f"--set=characteristics.pictures=[{{place: {place}}}]"],
        ["encode", str(sheet), "--model", str(codec), "-o", str(tmp_path / "x.aigi")],
    ):
        done = aigi(*command)
        assert done.returncode == 1, (command, done.stdout, done.stderr)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert MANIFEST in done.stderr or "config.json" in done.stderr


@pytest.mark.parametrize("log", ["curve", "validation", "rates"])
@pytest.mark.parametrize(
    ("damaged", "workflow"),
    [("step,loss\nx,1\n", "{}"), ("loss\n1\n", "{}"), ("step\nnan\n", '{"train": {"steps": 3}}')],
)
def test_damaged_logs_of_training_are_named(
    tmp_path: Path, log: str, damaged: str, workflow: str
) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / f"{log}.csv").write_text(damaged)
    (tmp_path / RUN_WORKFLOW).write_text(workflow)
    with pytest.raises(AigiError, match=rf"train/a/{log}\.csv: not a log of training"):
        logs(Store(str(tmp_path)))


def test_a_workflow_of_others_does_not_stop_the_status(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "curve.csv").write_text("step,loss\n3,1\n")
    damaged: list[Any] = [[], "x", {"steps": "many"}, None]
    for train in damaged:
        (tmp_path / RUN_WORKFLOW).write_text(json.dumps({"train": train}))
        (log,) = logs(Store(str(tmp_path)))
        assert log.progress == "3"
