"""Plans that somebody else made: no row of one decides what is loaded, or where anything goes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import stages
from pipeline.manifest import MANIFEST, PLAN_FILE
from pipeline.plan.copied import SCHEMA
from pipeline.plan.ids import image_id_of
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.store import Store

Row = dict[str, Any]
Shards = list[list[Row]]


def write(release: Path, shards: Shards | bytes, schema: pa.Schema = SCHEMA) -> None:
    """Put another plan beside the manifest, which agrees with it in every number."""
    manifest = json.loads((release / MANIFEST).read_text())
    if isinstance(shards, bytes):
        (release / PLAN_FILE).write_bytes(shards)
    else:
        digest = hashlib.sha256()
        with pa.ipc.new_file(str(release / PLAN_FILE), schema) as writer:
            for rows in shards:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                if rows:
                    ids = ",".join(str(row.get("image_id")) for row in rows)
                    digest.update(f"{rows[0].get('shard')}:{ids}\n".encode())
        numbers = {"shards": len(shards), "rows": sum(map(len, shards))}
        manifest["plan"] |= {**numbers, "sha256": digest.hexdigest()}
    sha = hashlib.sha256((release / PLAN_FILE).read_bytes()).hexdigest()
    document = next(d for d in manifest["documents"] if d["path"] == PLAN_FILE)
    document |= {"bytes": (release / PLAN_FILE).stat().st_size, "sha256": sha}
    (release / MANIFEST).write_text(json.dumps(manifest))


def read(release: Path) -> Shards:
    with pa.ipc.open_file(release / PLAN_FILE) as reader:
        return [reader.get_batch(n).to_pylist() for n in range(reader.num_record_batches)]


def copied(release: Path, models: Path, tmp_path: Path) -> Store:
    """The plan stage of a run that copies the plan."""
    shutil.rmtree(tmp_path / "user" / "again", ignore_errors=True)
    bare = tmp_path / "bare.yaml"
    bare.write_text(f"run: {tmp_path / 'user' / 'again'}\n")
    overrides = [
        f"plan.manifest={release / MANIFEST}",
        f"sources.sd.folder={models / 'sd'}",
        f"sources.sdxl.folder={models / 'sdxl'}",
    ]
    workflow = workflows.load(bare, overrides)
    store = Store(workflow.run)
    plan = [stage for stage in stages(workflow) if stage.table == "plan"]
    run_stages(plan, store, workflow.compute, Progress(quiet=True))
    return store


@pytest.fixture
def release(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    for name in (MANIFEST, PLAN_FILE):
        shutil.copy(finished[1] / "release" / name, folder / name)
    return folder


def test_what_is_sound_is_copied_row_by_row(
    release: Path, models: Path, tmp_path: Path, finished: tuple[Path, Path]
) -> None:
    write(release, read(release))
    store, original = copied(release, models, tmp_path), Store(str(finished[1]))
    assert list(store.shards("plan")) == list(original.shards("plan"))
    for name in store.shards("plan"):
        assert store.read("plan", name) == original.read("plan", name)


@pytest.mark.parametrize("name", ["../../victim", "/tmp/aigi-victim", "a\\b", "", "sd-test-00001"])
def test_a_cell_never_names_the_file_that_is_written(
    release: Path, models: Path, tmp_path: Path, name: str
) -> None:
    """With "../../victim" this overwrote a file of the user, two folders above the table."""
    (tmp_path / "user").mkdir()
    victim = tmp_path / "user" / "victim.parquet"
    victim.write_bytes(b"a file of the user")
    shards = read(release)
    for row in shards[0]:
        row["shard"] = name
    write(release, shards)
    with pytest.raises(
        AigiError, match=r"plan\.arrow: shard 0: shard: another name than sd-test-0"
    ):
        copied(release, models, tmp_path)
    assert victim.read_bytes() == b"a file of the user"
    files = [path.name for path in (tmp_path / "user").rglob("*.parquet")]
    assert files == ["victim.parquet"]


def honest(row: Row) -> Row:
    """The row with the id that its fields give."""
    return {**row, "image_id": image_id_of(row)}


ROWS: dict[str, tuple[Callable[[Row], Row], str]] = {
    "revision": (lambda r: honest({**r, "revision": "main"}), "revision: 'main', specified is"),
    "model": (lambda r: honest({**r, "model": "evil/model"}), "model: 'evil/model', specified"),
    "steps": (lambda r: honest({**r, "steps": 10**9}), "steps: 1000000000, specified is 2"),
    "scheduler": (lambda r: honest({**r, "scheduler": "lms"}), "scheduler: 'lms', specified is"),
    "width": (lambda r: honest({**r, "width": 2**30}), "width: 1073741824, specified is"),
    "no width": (lambda r: honest({**r, "width": None}), "width: None, specified is"),
    "mark": (lambda r: honest({**r, "watermark": "visible:text=x"}), "watermark: .* not specified"),
    "path": (lambda r: honest({**r, "path": "../../secret.png"}), "path: a generated image has"),
    "seed": (lambda r: honest({**r, "seed": None}), "seed: needed"),
    "negative seed": (lambda r: honest({**r, "seed": -1}), "seed: expected 0 or more, found -1"),
    "rank": (lambda r: {**r, "rank": -1}, "rank: expected 0 or more"),
    "far rank": (lambda r: {**r, "rank": r["rank"] + 1}, r"sd/test: rank \d is missing"),
    "index": (lambda r: {**r, "index": r["index"] + 1}, r"sd/test: rank \d has index"),
    "text": (lambda r: {**r, "text": r["text"] + " x"}, "prompt_id: is not the hash of the text"),
    "other seed": (lambda r: {**r, "seed": r["seed"] ^ 1}, "image_id: is not the hash of the row"),
    "other id": (lambda r: {**r, "image_id": "0" * 32}, "image_id: is not the hash of the row"),
    "no text": (lambda r: {**r, "text": None}, "shard 0: text: a value is missing"),
    "source": (lambda r: {**r, "source": "../x"}, r"source: .* no source '\.\./x'"),
    "split": (lambda r: {**r, "split": "dev"}, "split: the manifest specifies no split 'dev'"),
    "round": (lambda r: {**r, "round": 1}, "round: differs from that of the first row"),
    "pair": (lambda r: {**r, "pair_id": "0" * 32}, "pair_id: is not the variant of the same rank"),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_row_that_is_not_what_the_manifest_specifies_is_refused(
    release: Path, models: Path, tmp_path: Path, what: str
) -> None:
    change, said = ROWS[what]
    shards = read(release)
    shards[0][-1] = change(shards[0][-1])
    write(release, shards)
    with pytest.raises(AigiError, match=said) as caught:
        copied(release, models, tmp_path)
    assert "\n" not in str(caught.value) and str(release / PLAN_FILE) in str(caught.value)
    assert not list((tmp_path / "user").rglob("*.parquet")), "nothing is written before the check"


def test_numbers_of_the_manifest_hold(release: Path, models: Path, tmp_path: Path) -> None:
    shards = read(release)
    write(release, [*shards, shards[-1]])
    with pytest.raises(AigiError, match="shard: another name than"):
        copied(release, models, tmp_path)
    write(release, [*shards[:-1], []])
    with pytest.raises(AigiError, match="it has no rows"):
        copied(release, models, tmp_path)
    write(release, shards)
    manifest = json.loads((release / MANIFEST).read_text())
    for key, value in (("rows", 35), ("shards", 1), ("sha256", "0" * 64)):
        changed = {**manifest, "plan": {**manifest["plan"], key: value}}
        (release / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(AigiError, match=rf"plan\.{key}: .*, the manifest states {value}"):
            copied(release, models, tmp_path)


def test_other_columns_are_refused(release: Path, models: Path, tmp_path: Path) -> None:
    shards = read(release)
    for schema, said in (
        (SCHEMA.append(pa.field("more", pa.string())), "more: a plan has other columns"),
        (SCHEMA.remove(0), "image_id: a plan has other columns"),
        (SCHEMA.set(7, pa.field("seed", pa.int32())), "seed: a plan has other columns"),
        (pa.schema(list(reversed(SCHEMA))), "the order of its columns"),
    ):
        rows = [[{k: v for k, v in r.items() if k != "seed"} for r in rows] for rows in shards]
        write(release, rows, schema)
        with pytest.raises(AigiError, match=said):
            copied(release, models, tmp_path)


@pytest.mark.parametrize("data", [b"", b"ARROW1", b"ARROW1\0\0" * 3, b"x" * 1000])
def test_what_is_no_arrow_file_is_refused(
    release: Path, models: Path, tmp_path: Path, data: bytes
) -> None:
    write(release, data)
    with pytest.raises(AigiError, match=r"plan\.arrow: not readable as an Arrow file") as caught:
        copied(release, models, tmp_path)
    assert "\n" not in str(caught.value)
