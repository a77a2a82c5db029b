"""What a release claims, against its rows: `verify` finds every lie, also one whose hashes fit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline import manifest
from pipeline.cli import app
from pipeline.pixels import decode, webp_bytes
from tests.conftest import listed

Rows = list[dict[str, Any]]


@pytest.fixture
def release(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[1] / "release", tmp_path / "release"))


def files(release: Path) -> list[str]:
    manifest = json.loads((release / "manifest.json").read_text())
    return [record["path"] for record in manifest["files"]]


def forged(release: Path, path: str, change: Callable[[Rows], None]) -> None:
    table = pq.read_table(release / path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), release / path)
    listed(release, path)


def verified(release: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", str(release), "--quiet", *more])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.output


def put(name: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0].update({name: value})


def test_a_sound_release_is_what_it_states(release: Path) -> None:
    code, said = verified(release, "--deep")
    assert code == 0, said
    assert "ids, splits, models and licences are what the rows give, pixels too" in said


def test_the_digest_is_that_of_sha256sum(release: Path) -> None:
    _, said = verified(release)
    command = (
        "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    )
    theirs = subprocess.run(command, shell=True, cwd=release, capture_output=True, text=True)
    digest = theirs.stdout.split()[0]
    assert f"digest: {digest}\n" in said
    forged(release, files(release)[0], put("device", "another"))
    assert digest not in verified(release)[1]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("text", "another prompt", "text 'another prompt'; planned"),
        ("seed", 5, "seed 5; planned"),
        ("steps", 3, "steps 3; the manifest states 2"),
        ("guidance_scale", 1.25, "guidance_scale 1.25; the manifest states"),
        ("model", "some/other", "model 'some/other'; the manifest states"),
        ("revision", "f" * 40, "revision 'ffff"),
        ("scheduler", "euler", "scheduler 'euler'; planned"),
        ("source", "sdxl", "source 'sdxl' in config sd"),
        ("watermark", "dwt-dct", "its columns give"),
        ("image_id", "0" * 32, "is not in plan.arrow"),
        ("prompt_id", "0" * 32, "prompt_id 00000000000000000000000000000000, its text has"),
        ("pair_id", "0" * 32, "pair_id 00000000000000000000000000000000"),
    ],
)
def test_a_row_that_is_not_what_it_states_is_named(
    release: Path, column: str, value: Any, said: str
) -> None:
    path = next(path for path in files(release) if path.startswith("sd/train"))
    forged(release, path, put(column, value))
    code, lines = verified(release)
    assert code == 1 and f"{path}: row 1" in lines and said in lines, lines


def test_a_release_without_its_plan_is_checked_by_its_own_columns(release: Path) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["documents"] = [d for d in manifest["documents"] if d["path"] != "plan.arrow"]
    (release / "manifest.json").write_text(json.dumps(manifest))
    (release / "plan.arrow").unlink()
    assert verified(release)[0] == 0
    path = files(release)[0]
    forged(release, path, put("seed", 5))
    code, lines = verified(release)
    assert code == 1 and f"{path}: row 1: image_id" in lines and "its columns give" in lines


def test_a_row_twice_and_a_prompt_in_two_splits_are_named(release: Path) -> None:
    train, test = (
        next(path for path in files(release) if path.startswith(f"sd/{split}"))
        for split in ("train", "test")
    )
    row = pq.read_table(release / train).to_pylist()[0]
    forged(release, test, lambda rows: rows.append(row))
    code, lines = verified(release)
    assert code == 1
    assert f"{row['image_id']} is in the release twice" in lines
    assert f"prompt {row['prompt_id']} is in test and in train" in lines or (
        f"prompt {row['prompt_id']} is in train and in test" in lines
    )


def test_a_plan_that_lacks_a_row_is_not_that_of_the_manifest(release: Path) -> None:
    path = release / "plan.arrow"
    with pa.ipc.open_file(path) as reader:
        schema = reader.schema
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    with pa.ipc.new_file(path, schema) as writer:
        for batch in (batches[0].slice(1), *batches[1:]):
            writer.write_batch(batch)
    listed(release, "plan.arrow")
    code, lines = verified(release)
    assert code == 1 and "plan.arrow: rows" in lines and "the manifest states" in lines


def plan_of(release: Path, change: Callable[[Rows], None]) -> None:
    """Change the rows of the first shard of the plan, as a forger would."""
    path = release / "plan.arrow"
    with pa.ipc.open_file(path) as reader:
        schema = reader.schema
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    rows = batches[0].to_pylist()
    change(rows)
    with pa.ipc.new_file(path, schema) as writer:
        for batch in (pa.RecordBatch.from_pylist(rows, schema), *batches[1:]):
            writer.write_batch(batch)
    listed(release, "plan.arrow")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("image_id", None), "plan.arrow: shard 0: image_id: a value is missing"),
        (put("shard", None), "plan.arrow: shard 0: shard: a value is missing"),
        (Rows.clear, "plan.arrow: shard 0: it has no rows"),
        (lambda rows: rows.append(rows[0]), "is planned twice"),
    ],
)
def test_a_plan_that_is_none_is_one_line(
    release: Path, change: Callable[[Rows], None], said: str
) -> None:
    plan_of(release, change)
    code, lines = verified(release)
    assert code == 1 and said in lines


def test_a_plan_of_other_columns_is_one_line(release: Path) -> None:
    with pa.ipc.new_file(release / "plan.arrow", pa.schema([("image_id", pa.string())])) as writer:
        writer.write_table(pa.table({"image_id": ["a"]}))
    listed(release, "plan.arrow")
    code, lines = verified(release)
    assert code == 1 and "plan.arrow: prompt_id: a plan has other columns" in lines


def test_a_row_without_a_value_is_one_line(release: Path) -> None:
    path = files(release)[0]
    good, table = (release / path).read_bytes(), pq.read_table(release / path)
    for column in table.column_names:
        forged(release, path, put(column, None))
        code, lines = verified(release, "--deep")
        free = ("note", "original_sha256", "path", "pair_id", "device", "versions", "batch_size")
        assert code == (0 if column in free else 1), (column, lines)
        (release / path).write_bytes(good)


def test_licences_of_the_card_and_of_croissant_are_those_of_the_manifest(release: Path) -> None:
    card, croissant = release / "README.md", release / "croissant.json"
    text = card.read_text()
    name = next(line for line in text.splitlines() if line.startswith("license"))
    card.write_text(text.replace(name, f"{name.partition(':')[0]}: mit", 1))
    listed(release, "README.md")
    code, lines = verified(release)
    assert code == 1 and "README.md: license" in lines and "'mit'; by the manifest" in lines
    card.write_text(text)
    listed(release, "README.md")
    assert verified(release)[0] == 0
    data = json.loads(croissant.read_text())
    croissant.write_text(json.dumps(data | {"license": ["https://example.org/free"]}))
    listed(release, "croissant.json")
    code, lines = verified(release)
    assert code == 1 and "croissant.json: license ['https://example.org/free']" in lines


def test_pixels_are_looked_at_by_deep_alone(release: Path) -> None:
    path = files(release)[0]

    def mirror(rows: Rows) -> None:
        rgb = decode(rows[1]["image"]["bytes"], 1 << 20).rgb[:, ::-1].copy()
        rows[1]["image"]["bytes"] = webp_bytes(rgb)

    forged(release, path, mirror)
    assert verified(release)[0] == 0
    code, lines = verified(release, "--deep")
    assert code == 1 and f"{path}: row 2" in lines and "other pixels than its pixels_" in lines


def test_verify_reads_the_manifest_once(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    checked = manifest.checked

    def noted(data: dict[str, Any], where: str, *more: Any) -> dict[str, Any]:
        read.append(where)
        return checked(data, where, *more)

    monkeypatch.setattr(manifest, "checked", noted)
    assert verified(finished[1])[0] == 0
    assert read == [str(finished[1] / "release" / "manifest.json")]


def test_verify_of_a_run_checks_every_table(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished[1], tmp_path / "run"))
    code, said = verified(run)
    assert code == 0 and "stages" in said and "all as they were written" in said
    for table in ("prompts", "plan", "images", "selection", "release"):
        path = sorted((run / table).rglob("*.parquet"))[0]
        data = path.read_bytes()
        for changed, why in (
            (data[:-1] + bytes([data[-1] ^ 1]), "it does not end as a parquet file does"),
            (data[:500] + bytes([data[500] ^ 1]) + data[501:], "changed since it was written"),
            (data[:-9], "were written"),
            (None, "missing"),
        ):
            path.unlink()
            if changed is not None:
                path.write_bytes(changed)
            code, said = verified(run)
            assert code == 1
            assert f"{path.relative_to(run)}: " in said and why in said, said
            assert "--rehash" in said
        shutil.copy(finished[1] / path.relative_to(run), path)
    stray = run / "images" / "stray.parquet"
    shutil.copy(next((run / "images").glob("*.parquet")), stray)
    assert "images/stray.parquet: the images stage did not write it" in verified(run)[1]
    stray.unlink()
    side = run / "rejects" / "images.parquet"
    side.write_bytes(side.read_bytes()[:-1])
    assert "rejects/images.parquet: " in verified(run)[1]
