"""Another version or setting of a codec remakes what it measured, and nothing else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import AigiError
from pipeline.benchmark import measurements
from pipeline.benchmark.complexity import Weigher
from pipeline.benchmark.report import Report
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.command import Missing
from pipeline.codecs.table import CODECS
from pipeline.collection import Collection
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.workflow import load
from tests.benchmark.conftest import cells_of, execute, page_of, write_workflow
from tests.codecs.conftest import stand_ins
from tests.conftest import record_as_written

TABLES = ("measurements", "comparisons", "complexity")
JPEG, AVIF = {"codec": "jpeg", "qualities": [20, 60]}, {"codec": "avif", "qualities": [30]}


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page and its figures, which take most of the time."""
    monkeypatch.setattr(Report, "write", lambda report: "")


def upgrade(monkeypatch: pytest.MonkeyPatch, codec: str, version: str) -> None:
    """Another version of the library behind a codec."""
    row = replace(CODECS[codec], version=lambda given, here: version)
    monkeypatch.setitem(CODECS, codec, row)


def made(store: Store) -> dict[str, int]:
    """When each shard was written."""
    return {
        f"{table}/{name}": os.stat(store.path(table, f"{name}.parquet")).st_mtime_ns
        for table in TABLES
        for name in store.shards(table)
    }


def remade(before: dict[str, int], store: Store) -> set[str]:
    """Folders of what is new since, or was written again: TABLE/CODEC-DIGEST."""
    new = {name for name, time in made(store).items() if before.get(name) != time}
    return {"/".join(name.split("/")[:2]) for name in new}


def versions(store: Store, codec: str, table: str = "measurements") -> set[str | None]:
    """All versions that the rows of a codec name."""
    rows = store.read_all(table, ["codec", "codec_version"]).to_pylist()
    return {row["codec_version"] for row in rows if row["codec"] == codec}


def relabelled(store: Store, names: Iterable[str], version: str | None) -> None:
    """Shards as another version, or one that was not written down, would have made them."""
    for name in names:
        table = store.read("measurements", name)
        at = table.schema.get_field_index("codec_version")
        column = pa.array([version] * table.num_rows, pa.string())
        store.write(
            "measurements", name, table.set_column(at, "codec_version", column), table.schema
        )
        record_as_written(store, "measurements", name)


def version_program(programs: dict[str, str], version: str | None) -> None:
    """Let the stand-in of VTM tell a version, or none."""
    path = Path(programs["EncoderApp"])
    _, _, text = path.read_text().rpartition("# begin\n")
    said = f"print('VTM Encoder Version {version}')" if version else "pass"
    head = f"import sys\nif len(sys.argv) == 1:\n    {said}\n    sys.exit()\n# begin\n"
    path.write_text(f"#!{sys.executable}\n{head}{text}")


@pytest.mark.usefixtures("no_page")
def test_names_are_those_of_older_runs(tmp_path: Path, pictures: Path) -> None:
    workflow = write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=[JPEG, AVIF], strips=None)
    store, _ = execute(workflow)
    assert set(store.shards("measurements")) == {
        "jpeg-73fd8651/20/boats/test-00000",
        "jpeg-73fd8651/60/boats/test-00000",
        "avif-875a62e7/30/boats/test-00000",
    }
    first = made(store)
    _, said = execute(workflow)
    assert said == "measurements: 3 shards, already made\n" and made(store) == first


@pytest.mark.slow
def test_an_upgraded_library_remakes_its_codec_alone(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, {}, codecs=[JPEG, AVIF], complexity={"sides": [64]}
    )
    store, _ = execute(workflow)
    (old,) = versions(store, "jpeg") - {None}
    kept, before = versions(store, "avif"), made(store)
    upgrade(monkeypatch, "jpeg", "libjpeg_turbo 99 in Pillow 99")
    _, said = execute(workflow)
    new = "libjpeg_turbo 99 in Pillow 99"
    assert remade(before, store) == {f"{table}/jpeg-73fd8651" for table in TABLES}
    for table in TABLES:
        assert f"{table}: jpeg: measured with {old}, now {new}: made anew\n" in said
        assert "avif" not in said and versions(store, "jpeg", table) - {None} == {new}
    assert versions(store, "avif") == kept
    assert {row[4] for row in cells_of(page_of(store), "Codecs")[1:]} == {new, *kept} - {None}
    # Once is enough.
    before = made(store)
    _, said = execute(workflow)
    assert "made anew" not in said and not remade(before, store)


def test_a_changed_setting_remakes_its_codec_alone(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, {}, codecs=[JPEG, AVIF], complexity={"sides": [64]}
    )
    store, _ = execute(workflow)
    before, row = made(store), CODECS["avif"]
    faster = replace(row, settings={**row.settings, "speed": 9})
    monkeypatch.setitem(CODECS, "avif", faster)
    execute(workflow)
    folders = remade(before, store)
    assert {name.partition("-")[0] for name in folders} == {f"{table}/avif" for table in TABLES}
    assert not any(name.endswith("875a62e7") for name in folders)
    # One curve has none of the points that the other setting made.
    rows = store.read_csv("benchmark", "measurements.csv")
    assert len([row for row in rows if row["codec"] == "avif"]) == 4
    # The measurements of before are there on the day that the setting is.
    monkeypatch.setitem(CODECS, "avif", row)
    first = {name: time for name, time in before.items() if name.startswith("measurements")}
    execute(workflow)
    assert first.items() <= made(store).items()


@pytest.mark.usefixtures("no_page")
def test_an_upgrade_that_was_cut_short_goes_on(tmp_path: Path, pictures: Path) -> None:
    workflow = write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=[JPEG, AVIF], strips=None)
    store, _ = execute(workflow)
    (version,) = versions(store, "jpeg") - {None}
    (shard,) = (name for name in store.shards("measurements") if "/20/" in name)
    relabelled(store, [shard], "JPEG of old")
    before = made(store)
    _, said = execute(workflow)
    assert f"jpeg: measured with JPEG of old, now {version}: made anew" in said
    new = {name for name, time in made(store).items() if before[name] != time}
    assert new == {f"measurements/{shard}"} and versions(store, "jpeg") - {None} == {version}


def test_what_fails_under_a_new_version_leaves_the_old_one(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=[JPEG], strips=None)
    store, _ = execute(workflow)
    before = made(store)

    def absent(*given: Any) -> Any:
        raise Missing("out of luck")

    upgrade(monkeypatch, "jpeg", "JPEG of tomorrow")
    monkeypatch.setitem(CODECS, "jpeg", replace(CODECS["jpeg"], open=absent))
    with pytest.raises(AigiError, match=r"2 of 2 shards failed.*out of luck"):
        execute(workflow)
    assert made(store) == before


def test_failed_rows_go_with_their_version(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = stand_ins(tmp_path)
    broken = Path(programs["bpgenc"])
    whole = broken.read_text()
    broken.write_text("#!/bin/sh\necho BPG Image Encoder version 0.9.7 >&2; exit 2\n")
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, programs, codecs=["bpg"], complexity={"sides": [64]}
    )
    store, _ = execute(workflow)
    for table in TABLES:
        rows = store.read_all(table).to_pylist()
        assert rows and all(row["error"] for row in rows)
    assert versions(store, "bpg") == {"BPG 0.9.7", None}  # null: of the damaged picture
    assert {versions(store, "bpg", table) == {"BPG 0.9.7"} for table in TABLES[1:]} == {True}
    assert cells_of(page_of(store), "Codecs")[1][4:6] == ["BPG 0.9.7", ", a program of its own"]
    # Another version, which can.
    text = whole.replace(
        "a =", "if len(sys.argv) == 1: sys.exit('BPG Image Encoder version 1.0')\na ="
    )
    broken.write_text(text)
    execute(workflow)
    for table in TABLES:
        rows = store.read_all(table).to_pylist()
        assert any(row["error"] is None for row in rows)
    assert versions(store, "bpg") == {"BPG 1.0", None}


@pytest.mark.usefixtures("no_page")
def test_shards_without_any_version_go_with_the_others(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=[JPEG, AVIF], strips=None)
    store, _ = execute(workflow)
    (shard,) = (name for name in store.shards("measurements") if "/20/" in name)
    (avif,) = (name for name in store.shards("measurements") if "/30/" in name)
    relabelled(store, [shard, avif], None)
    before = made(store)
    _, said = execute(workflow)
    assert "measurements: 3 shards, already made" in said and made(store) == before
    upgrade(monkeypatch, "jpeg", "JPEG of tomorrow")
    execute(workflow)
    again = {name for name, time in made(store).items() if before[name] != time}
    assert again == {f"measurements/jpeg-73fd8651/{q}/boats/test-00000" for q in (20, 60)}
    assert versions(store, "jpeg") - {None} == {"JPEG of tomorrow"}


@pytest.mark.usefixtures("no_page")
def test_what_a_missing_program_measured_is_of_one_version(tmp_path: Path, pictures: Path) -> None:
    programs = stand_ins(tmp_path)
    version_program(programs, "23.13")
    codecs: list[Any] = [{"codec": "vtm", "qualities": [37, 32]}, JPEG]
    workflow = tmp_path / "w.yaml"
    write_workflow(workflow, pictures, programs, codecs=codecs, strips=None)
    store, _ = execute(workflow)
    gone = programs | {"EncoderApp": "/nowhere/EncoderApp"}
    write_workflow(workflow, pictures, gone, codecs=codecs, strips=None)
    before = made(store)
    _, said = execute(workflow)
    assert "vtm is skipped: programs.EncoderApp" in said and "already made" in said
    assert made(store) == before and versions(store, "vtm") - {None} == {"VTM 23.13"}
    (shard,) = (name for name in store.shards("measurements") if "/32/" in name)
    relabelled(store, [shard], "VTM 24.0")
    with pytest.raises(
        AigiError, match=r"vtm was measured with several.*\(VTM 23\.13, VTM 24\.0\)"
    ):
        execute(workflow)
    # Where the program is, the rest is made anew.
    write_workflow(workflow, pictures, programs, codecs=codecs, strips=None)
    execute(workflow)
    assert versions(store, "vtm") - {None} == {"VTM 23.13"}


@pytest.mark.usefixtures("no_page")
def test_a_version_that_cannot_be_read_makes_nothing_anew(tmp_path: Path, pictures: Path) -> None:
    programs = stand_ins(tmp_path)
    version_program(programs, "23.13")
    vtm: dict[str, Any] = {"codec": "vtm", "qualities": [37, 32]}
    workflow = tmp_path / "w.yaml"
    write_workflow(workflow, pictures, programs, codecs=[vtm, JPEG], strips=None)
    store, _ = execute(workflow)
    before = made(store)
    version_program(programs, None)
    kept = "vtm: now VTM of unknown version; kept as measured with VTM 23.13"
    # Not even a quality that is new: it would be a point of another version.
    vtm["qualities"] = [37, 32, 27]
    write_workflow(workflow, pictures, programs, codecs=[vtm, JPEG], strips=None)
    _, said = execute(workflow)
    assert f"measurements: {kept}\n" in said and made(store) == before
    # Nor one that was cut short.
    (shard,) = (name for name in store.shards("measurements") if "/32/" in name)
    Path(store.path("measurements", f"{shard}.parquet")).write_bytes(b"cut")
    vtm["qualities"] = [37, 32]
    write_workflow(workflow, pictures, programs, codecs=[vtm, "jpeg-444"], strips=None)
    _, said = execute(workflow)
    assert f"measurements: {kept}\n" in said and shard not in store.shards("measurements")
    version_program(programs, "23.13")
    _, said = execute(workflow)
    assert "kept" not in said and shard in store.shards("measurements")
    assert versions(store, "vtm") - {None} == {"VTM 23.13"}
    # One that never told its version is of one version as far as anyone knows.
    other = tmp_path / "other"
    other.mkdir()
    version_program(programs, None)
    write_workflow(other / "w.yaml", pictures, programs, codecs=[vtm, JPEG], strips=None)
    execute(other / "w.yaml")
    _, said = execute(other / "w.yaml")
    assert said == "measurements: 4 shards, already made\n"


def test_a_worker_with_another_version_is_refused(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=[JPEG], strips=None)
    found = load(workflow).benchmark
    assert found is not None
    # The driver looks once, before its workers start.
    upgrade(monkeypatch, "jpeg", "JPEG 1")
    stage = measurements.stage(found, Compute(), Collection(found.measured))
    upgrade(monkeypatch, "jpeg", "JPEG 2")
    store = Store(str(tmp_path / "run"))
    said = "jpeg: a worker has JPEG 2, but this run measures with JPEG 1. Install the same version"
    with pytest.raises(AigiError, match=re.escape(said)):
        run_stages([stage], store, Compute(), Progress(quiet=True))
    assert not store.shards("measurements")
    weigh = Weigher(Here(), 1, 1, {"jpeg": "JPEG 1"})
    row = {"settings": CodecSettings(codec="jpeg").model_dump_json(), "side": 64, "quality": 50.0}
    with pytest.raises(Missing, match=re.escape(said)):
        list(weigh(pa.Table.from_pylist([row])))
