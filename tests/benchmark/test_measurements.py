"""The measurements table: true figures, one row for one failure, and work that is kept."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipeline import AigiError
from pipeline.benchmark import measurements
from pipeline.benchmark.comparisons import Comparer
from pipeline.benchmark.measurements import MEASUREMENTS, Bench, Job, with_job
from pipeline.benchmark.metrics import ms_ssim, ms_ssim_scales, psnr
from pipeline.benchmark.stages import make, planned
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.table import CODECS, models_of, opened, row_of
from pipeline.collection import Collection, Part
from pipeline.faults import MachineFault
from pipeline.intact import Checks
from pipeline.learned.shipped import shipped
from pipeline.pages.measured import measured as measured_sections
from pipeline.pixels import decode
from pipeline.progress import Progress
from pipeline.stage import Compute
from pipeline.store import Store
from pipeline.workflow import load
from tests.benchmark.conftest import PROMPT, SIZES, execute, write_workflow
from tests.codecs.conftest import stand_ins
from tests.conftest import ROOT, aigi_here

Measured = tuple[Path, Store, str]
TIMES = ("encode_ms", "decode_ms")


def rows_of(store: Store, table: str = "measurements") -> list[dict[str, Any]]:
    """All rows of a table of the run."""
    rows: list[dict[str, Any]] = store.read_all(table).to_pylist()
    return rows


def test_a_row_for_every_image_codec_and_quality(measured: Measured) -> None:
    _, store, _ = measured
    rows = rows_of(store)
    assert store.read_all("measurements").schema.equals(MEASUREMENTS)
    seen = {(row["codec"], row["quality"]) for row in rows}
    assert seen == {
        *(("jpeg", q) for q in (20, 60, 90)),
        *(("webp", q) for q in (10, 60, 90)),
        ("vtm-stand-in", 37),
    }
    assert (
        len(rows) == len(seen) * 4 == len({(r["image_id"], r["codec"], r["quality"]) for r in rows})
    )


def test_figures_are_those_of_the_codec(measured: Measured, pictures: Path) -> None:
    _, store, _ = measured
    originals = {
        size: decode((pictures / name).read_bytes(), 1 << 20).rgb for name, size in SIZES.items()
    }
    checked = 0
    for row in rows_of(store):
        if row["error"] is not None or row["codec"] == "vtm-stand-in":
            continue
        image = originals[row["height"], row["width"]]
        codec = opened(CodecSettings(codec=row["codec"]), row["quality"], Here())
        data = codec.encode(image, PROMPT)
        decoded = codec.decode(data)
        assert row["bytes"] == len(data) and row["prompt_bytes"] == 0
        assert row["bpp"] == 8 * len(data) / (row["height"] * row["width"])
        assert row["psnr"] == psnr(image, decoded) < 60
        assert row["ms_ssim"] == ms_ssim(image, decoded) is not None
        assert row["ms_ssim_scales"] == ms_ssim_scales(image, decoded)
        assert row["encode_ms"] > 0 < row["decode_ms"] and row["device"] == "cpu"
        assert "Pillow" in row["codec_version"] and row["source"] == "boats"
        checked += 1
    assert checked == 3 * 6


def test_the_stand_in_is_lossless_and_its_size_counts(measured: Measured) -> None:
    _, store, _ = measured
    mine = [r for r in rows_of(store) if r["codec"] == "vtm-stand-in" and r["error"] is None]
    assert len(mine) == 3 and all(r["psnr"] == 100 and r["ms_ssim"] == 1 for r in mine)


def test_a_damaged_picture_costs_its_rows_alone(measured: Measured) -> None:
    _, store, _ = measured
    failed = [row for row in rows_of(store) if row["error"] is not None]
    assert len({row["image_id"] for row in failed}) == 1 and len(failed) == 7
    assert all(row["error"].startswith("picture: truncated") for row in failed)
    assert all(row[name] is None for row in failed for name in ("bytes", "bpp", "psnr"))


def test_a_missing_program_skips_its_codec_and_says_so(measured: Measured) -> None:
    _, _, said = measured
    assert "benchmark: bpg is skipped: programs.bpgenc: /nowhere/bpgenc: no such file" in said


def test_a_codec_that_fails_costs_its_rows_alone(tmp_path: Path, pictures: Path) -> None:
    programs = stand_ins(tmp_path)
    broken = Path(programs["EncoderApp"])
    # It fails on the one picture of 161 pixels, and on every picture at QP 27.
    text = broken.read_text().replace(
        "raw =", "assert value['-wdt'] != '161' and value['-q'] != '27', 'out of luck'\nraw ="
    )
    broken.write_text(text)
    workflow = write_workflow(
        tmp_path / "w.yaml",
        pictures,
        programs,
        codecs=[{"codec": "vtm", "qualities": [37, 27]}, {"codec": "jpeg", "qualities": [50]}],
        strips=None,
    )
    store, said = execute(workflow)
    assert "failed" not in said
    failed = {
        (row["codec"], row["quality"], row["width"])
        for row in rows_of(store)
        if row["error"] and row["width"]
    }
    assert failed == {("vtm", 37, 161), ("vtm", 27, 161), ("vtm", 27, 96), ("vtm", 27, 33)}
    (why,) = {row["error"] for row in rows_of(store) if row["width"] == 96 and row["error"]}
    assert why.startswith("CodecFailed: EncoderApp: exit code 1")


KILLED = """
import os, pathlib
if pathlib.Path(__file__).with_name("busy").exists() and value["-wdt"] == "161":
    os.kill(os.getpid(), 9)
raw ="""


def test_a_program_that_is_killed_costs_no_row(tmp_path: Path, pictures: Path) -> None:
    """As by a machine that is short of memory: its shard fails, and is made in the next run."""
    programs = stand_ins(tmp_path)
    encoder, busy = Path(programs["EncoderApp"]), tmp_path / "busy"
    encoder.write_text(encoder.read_text().replace("raw =", KILLED, 1))
    busy.touch()
    workflow = write_workflow(
        tmp_path / "w.yaml",
        pictures,
        programs,
        codecs=[{"codec": "vtm", "qualities": [37]}, {"codec": "jpeg", "qualities": [50]}],
        strips={"count": 3, "bpp": 1.5, "crop": 24},
    )
    with pytest.raises(AigiError, match=r"1 of 2 shards failed.*vtm.*EncoderApp: ended by SIGKILL"):
        execute(workflow)
    store = Store(str(tmp_path / "run"))
    assert {row["codec"] for row in rows_of(store)} == {"jpeg"}
    encoder.rename(tmp_path / "away")
    encoder.symlink_to("nowhere")
    with pytest.raises(AigiError):  # the program itself is gone
        Bench(Here(programs), 1).measure(
            CodecSettings(codec="vtm"),
            37,
            decode((pictures / "a.png").read_bytes(), 1 << 20).rgb,
            "",
        )
    encoder.unlink()
    (tmp_path / "away").rename(encoder)
    busy.unlink()
    execute(workflow)
    whole = [row for row in rows_of(store) if row["width"]]
    assert len(whole) == 6 and all(row["error"] is None for row in whole)


def test_a_codec_that_cannot_be_opened_says_nothing_about_an_image(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*given: Any) -> Any:
        raise AigiError("models: its folder is gone")

    monkeypatch.setattr(measurements, "opened", gone)
    image = decode((pictures / "a.png").read_bytes(), 1 << 20).rgb
    with pytest.raises(MachineFault, match="jpeg: cannot be opened: models: its folder is gone"):
        Bench(Here(), 1).measure(CodecSettings(codec="jpeg"), 50, image, "")


def test_what_a_device_does_to_a_decoded_image_is_no_error_of_its_row(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    workflow = write_workflow(
        tmp_path / "w.yaml",
        pictures,
        {},
        codecs=[{"codec": "jpeg", "qualities": [50]}],
        strips=None,
    )
    with monkeypatch.context() as broken:
        broken.setattr(measurements.Measurer, "_content", full)
        with pytest.raises(AigiError, match=r"1 of 1 shards failed.*CUDA out of memory"):
            execute(workflow)
    store, _ = execute(workflow)
    assert len([row for row in rows_of(store) if row["error"] is None]) == 3


def test_failed_rows_are_measured_again_when_asked(tmp_path: Path, pictures: Path) -> None:
    """Those of codecs in the workflow; what it no longer asks for stays as it is."""
    programs = stand_ins(tmp_path)
    encoder = Path(programs["EncoderApp"])
    sound = encoder.read_text()
    encoder.write_text(sound.replace("raw =", "assert value['-wdt'] != '161', 'no'\nraw ="))
    vtm: list[dict[str, Any]] = [
        {"codec": "vtm", "qualities": [q], "name": f"v{q}"} for q in (30, 37)
    ]
    jpeg = {"codec": "jpeg", "qualities": [50]}

    def go(codecs: list[Any], retry: bool) -> dict[str, list[str | None]]:
        workflow = write_workflow(
            tmp_path / "w.yaml", pictures, programs, codecs=codecs, anchor="jpeg", strips=None
        )
        found = load(workflow)
        assert found.benchmark is not None
        store = Store(found.run)
        make(found.benchmark, Compute(), store, Progress(quiet=True), Checks(retry=retry))
        rows = [row for row in rows_of(store) if row["width"]]
        return {label: [row["error"] for row in rows if row["codec"] == label]
                for label in ("jpeg", "v30", "v37")}  # fmt: skip

    first = go([jpeg, *vtm], False)
    assert sum(error is not None for errors in first.values() for error in errors) == 2
    encoder.write_text(sound)
    assert go([jpeg, *vtm], False) == first
    again = go([jpeg, vtm[0]], True)
    assert again == first | {"v30": [None] * 3}


def test_other_codecs_cost_their_own_shards_alone(tmp_path: Path, pictures: Path) -> None:
    workflow = tmp_path / "w.yaml"
    few = {"strips": None, "anchor": "jpeg"}
    jpeg = {"codec": "jpeg", "qualities": [20, 60]}
    write_workflow(workflow, pictures, {}, codecs=[jpeg], **few)
    store, _ = execute(workflow)
    first = {name: _mtime(store, name) for name in store.shards("measurements")}
    assert len(first) == 2
    jpeg["qualities"] = [60, 90]
    write_workflow(
        workflow, pictures, {}, codecs=[jpeg, {"codec": "webp", "qualities": [50]}], **few
    )
    execute(workflow)
    second = {name: _mtime(store, name) for name in store.shards("measurements")}
    assert len(second) == 4
    assert all(second[name] == made for name, made in first.items())
    # The same again makes nothing.
    _, said = execute(workflow)
    assert "measurements: 4 shards, already made" in said
    # Other pictures are refused, and named.
    data = workflow.read_text().replace("name: boats", "name: ships")
    workflow.write_text(data)
    with pytest.raises(AigiError, match=r"pictures\.name: boats -> ships"):
        execute(workflow)


def test_what_is_no_longer_asked_for_is_kept_but_not_reported(
    tmp_path: Path, pictures: Path
) -> None:
    workflow = tmp_path / "w.yaml"
    few = {"strips": None, "anchor": "jpeg"}
    jpeg: dict[str, Any] = {"codec": "jpeg", "qualities": [20, 60, 90]}
    other = {"codec": "webp", "qualities": [10], "name": "other"}

    def reported(*codecs: dict[str, Any]) -> set[tuple[str, str, float]]:
        write_workflow(workflow, pictures, {}, codecs=codecs, **few)
        store, _ = execute(workflow)
        rows = store.read_csv("benchmark", "measurements.csv")
        assert len(rows) == 4 * len({(row["codec"], row["quality"]) for row in rows})
        (section,) = (one for one in measured_sections(store) if one.name == "codecs")
        assert section.text[0].startswith(f"There are {len(rows)} measurements of 4 images")
        return {
            (row["codec"], row["codec_version"].split()[0], float(row["quality"]))
            for row in rows
            if not row["error"]
        }

    libjpeg = {("jpeg", "libjpeg_turbo", quality) for quality in (20.0, 60.0, 90.0)}
    webp = {("other", "webp", 10.0)}
    assert reported(jpeg, other) == libjpeg | webp
    store = Store(str(tmp_path / "run"))
    first = {name: _mtime(store, name) for name in store.shards("measurements")}
    # Nothing is new, then something is, under a name that another codec had.
    fewer = jpeg | {"qualities": [20, 90]}
    assert reported(fewer) == libjpeg - {("jpeg", "libjpeg_turbo", 60.0)}
    again = {"codec": "jpeg2000", "qualities": [40], "name": "other"}
    assert {row for row in reported(fewer, again) if row[0] == "other"} == {
        ("other", "jpg_2000", 40.0)
    }
    assert reported(jpeg, other) == libjpeg | webp
    assert first.items() <= {n: _mtime(store, n) for n in store.shards("measurements")}.items()
    # One that is cut short, and not asked for, is in nobody's way.
    (webp_shard,) = (name for name in first if "/10/" in name)
    Path(store.path("measurements", f"{webp_shard}.parquet")).write_bytes(b"cut")
    assert len(reported(jpeg, again | {"qualities": [20]})) == 4
    assert webp_shard not in store.shards("measurements")


def test_what_was_measured_elsewhere_is_kept(tmp_path: Path, pictures: Path) -> None:
    programs = stand_ins(tmp_path)
    codecs = [{"codec": "vtm", "qualities": [37]}, {"codec": "jpeg", "qualities": [50]}]
    workflow = tmp_path / "w.yaml"
    write_workflow(workflow, pictures, programs, codecs=codecs)
    execute(workflow)
    gone = programs | {"EncoderApp": "/nowhere/EncoderApp"}
    write_workflow(workflow, pictures, gone, codecs=codecs)
    store, said = execute(workflow)
    assert "vtm is skipped" in said and "measurements: 2 shards, already made" in said
    assert {row["codec"] for row in rows_of(store)} == {"vtm", "jpeg"}
    assert {row["codec"] for row in rows_of(store, "comparisons")} == {"vtm", "jpeg"}


def test_target_may_be_a_distance(tmp_path: Path, pictures: Path) -> None:
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, {}, codecs=["jpeg", "webp"], strips={"psnr": 23.0}
    )
    found = load(workflow).benchmark
    assert found is not None and found.strips is not None
    rows = Collection(found.measured).read("boats/test-00000").slice(0, 2)
    compare = Comparer(Here(), 1, found.strips)
    for given in found.codecs:
        job = with_job(rows, Job(given, 0, Part("", "", "", 0, "", ())))
        for made in compare(job):
            (row,) = made.to_pylist()
            assert row["psnr"] == pytest.approx(23.0, abs=0.5)


def test_measurements_and_comparisons_go_on_at_any_row(tmp_path: Path, pictures: Path) -> None:
    """As after a kill: both keep their finished rows."""
    workflow = write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=["jpeg"])
    found = load(workflow).benchmark
    assert found is not None and found.strips is not None
    rows = Collection(found.measured).read("boats/test-00000")
    job = with_job(rows, Job(found.codecs[0], 50, Part("", "", "", 0, "", ())))
    workers = (Comparer(Here(), 1, found.strips), measurements.Measurer(Here(), 1))
    for worker in workers:
        whole, rest = (pa.concat_tables(worker(job, start=start)) for start in (0, 1))
        assert whole.num_rows == rows.num_rows > 1
        timed = [name for name in whole.column_names if name.endswith("_ms")]
        assert rest.drop_columns(timed) == whole.slice(1).drop_columns(timed)


def test_a_target_is_met_in_whatever_order_qualities_are_given(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No grid to search, as networks have none.
    row = replace(CODECS["jpeg"], grid=())
    monkeypatch.setitem(CODECS, "jpeg", row)
    jpeg = {"codec": "jpeg", "qualities": [8, 6, 4, 2]}
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, {}, codecs=[jpeg], strips={"bpp": 0.001}
    )
    store, _ = execute(workflow)
    made = [row for row in rows_of(store, "comparisons") if row["error"] is None]
    assert made and {row["quality"] for row in made} == {2}


@pytest.mark.parametrize(
    ("codecs", "said"),
    [
        ([{"codec": "learned", "models": ["/nowhere/x"]}], "/nowhere/x: no such folder"),
        (
            [{"codec": "learned", "models": ["catc-smal"]}],
            'no model "catc-smal" comes with aigi',
        ),
        ([{"codec": "vvc", "preset": "fastt"}], 'no preset "fastt"; did you mean "fast"?'),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    tmp_path: Path, pictures: Path, codecs: list[dict[str, Any]], said: str
) -> None:
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, {}, codecs=["jpeg", *codecs], strips=None
    )
    found = load(workflow).benchmark
    assert found is not None
    with pytest.raises(AigiError, match=re.escape(said)):
        planned(found, Compute())


def test_an_anchor_that_is_no_codec_is_refused(tmp_path: Path, pictures: Path) -> None:
    codecs = ["jpeg", {"codec": "webp", "name": "other"}]
    workflow = write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=codecs, anchor="wepb")
    with pytest.raises(AigiError, match=r"anchor: no codec is called wepb; there are jpeg, other"):
        load(workflow)


def test_the_name_of_a_network_that_comes_with_aigi_stands_for_it(
    tmp_path: Path, pictures: Path
) -> None:
    names = list(shipped())
    assert names
    found = load(write_workflow(tmp_path / "w.yaml", pictures, {}, codecs=names)).benchmark
    assert found is not None and [given.label for given in found.codecs] == names
    assert [models_of(given) for given in found.codecs] == [(str(p),) for p in shipped().values()]
    for label, count, why in planned(found, Compute()):
        assert label in names and count and not why
    with pytest.raises(AigiError, match=rf'no codec "mp3"; there are jpeg.* {names[0]}'):
        row_of(CodecSettings(codec="mp3"))


def _mtime(store: Store, name: str) -> int:
    return os.stat(store.path("measurements", f"{name}.parquet")).st_mtime_ns


def test_killed_it_goes_on_where_it_was(tmp_path: Path, pictures: Path) -> None:
    programs = stand_ins(tmp_path)
    slow = Path(programs["EncoderApp"])
    slow.write_text(slow.read_text().replace("raw =", "import time; time.sleep(0.4)\nraw ="))
    workflow = write_workflow(
        tmp_path / "w.yaml",
        pictures,
        programs,
        codecs=[
            {"codec": "jpeg", "qualities": [50]},
            {"codec": "vtm", "qualities": [20, 30, 40]},
        ],
        strips=None,
    )
    store = Store(str(tmp_path / "run"))
    command = [sys.executable, "-m", "pipeline.cli", "run", str(workflow), "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(store.shards("measurements")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {name: _mtime(store, name) for name in store.shards("measurements")}
    assert 2 <= len(kept) < 4
    execute(workflow)
    assert len(rows_of(store)) == 4 * 4
    assert {name: _mtime(store, name) for name in kept} == kept


def test_no_codec_at_all_is_an_error(tmp_path: Path, pictures: Path) -> None:
    workflow = write_workflow(
        tmp_path / "w.yaml", pictures, {"bpgenc": "/nowhere"}, codecs=["bpg"], strips=None
    )
    done = aigi_here("run", str(workflow))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "none of them can run on this machine" in done.stderr and "bpg: " in done.stderr


def test_first_picture_of_a_codec_is_coded_before_the_clock_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.codecs.test_contract import picture

    calls: list[str] = []

    class Slow:
        """It takes long at its first picture."""

        def encode(self, image: Any, prompt: str = "") -> bytes:
            time.sleep(0 if calls else 0.3)
            calls.append("encode")
            return b"x"

        def decode(self, data: bytes) -> Any:
            calls.append("decode")
            return picture(16, 16)

    row = CODECS["jpeg"]
    monkeypatch.setitem(CODECS, "jpeg", replace(row, open=lambda *given: Slow()))
    bench = Bench(Here(), 1)
    given = CodecSettings(codec="jpeg")
    first = bench.measure(given, 50, picture(16, 16), "")
    bench.measure(given, 50, picture(16, 16), "")
    assert calls == ["encode", "decode"] * 3
    assert first.columns["encode_ms"] < 250


@pytest.mark.slow
def test_ray_measures_the_same(measured: Measured, tmp_path: Path) -> None:
    import ray

    workflow, store, _ = measured
    again = tmp_path / "ray.yaml"
    again.write_text(
        workflow.read_text().replace(str(workflow.parent / "run"), str(tmp_path / "run"))
    )
    assert load(again).run == str(tmp_path / "run")
    try:
        other, _ = execute(again, ray="local", workers=2)
    finally:
        ray.shutdown()
    for table in ("measurements", "comparisons"):
        mine, theirs = (
            store_.read_all(table).drop_columns(list(TIMES)) for store_ in (store, other)
        )
        assert mine.equals(theirs)
