"""A run that grows in place equals one that was made in one go, and loses nothing in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline import growth, held
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.store import Store
from tests.conftest import PROMPTS, WorkflowMaker, aigi_here, listed, make_workflow
from tests.killed import killed

Made = Callable[..., Path]


def release_of(run: Path) -> dict[str, bytes]:
    """Every file of a release, whole."""
    folder = run / "release"
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def rows_of(run: Path, table: str) -> dict[str, dict[str, Any]]:
    """All rows of a table, by image id."""
    store = Store(str(run))
    found = [row for shard in store.shards(table) for row in store.read(table, shard).to_pylist()]
    return {row["image_id"]: row for row in found}


def changed(workflow: Path, **sections: Any) -> Path:
    """The same workflow with these settings added to its sections."""
    data = yaml.safe_load(workflow.read_text())
    for name, section in sections.items():
        data[name] = {**(data.get(name) or {}), **section} if section is not None else None
    workflow.write_text(yaml.safe_dump(data))
    return workflow


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of every image that a model makes, in order."""
    found: list[str] = []
    generate = Diffuser.generate

    def counted(self: Diffuser, rows: list[dict[str, Any]]) -> Any:
        found.extend(row["text"] for row in rows)
        return generate(self, rows)

    monkeypatch.setattr(Diffuser, "generate", counted)
    return found


def run(workflow: Path, *more: str, code: int = 0) -> str:
    done = aigi_here("run", str(workflow), *more)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """The run directory of a run made in one go: not to be changed."""
    make: WorkflowMaker = make_workflow.__wrapped__(  # type: ignore[attr-defined]
        tmp_path_factory.mktemp("whole"), models
    )
    path = make(quality={})
    run(path)
    return path.parent / "run"


# --- what grows -----------------------------------------------------------------------------------


def test_a_larger_limit_makes_what_is_missing_as_in_one_go(
    make_workflow: WorkflowMaker, whole: Path, drawn: list[str], tmp_path: Path
) -> None:
    path = make_workflow(
        quality={}, plan={"dataset": "dataset.yaml", "shard_mb": 0.05, "limit": 10}
    )
    run(path)
    before, first = rows_of(tmp_path / "run", "images"), len(drawn)
    said = run(changed(path, plan={"limit": None}))
    assert "limit: 10 -> None. 22 images are kept, 0 are not, 14 are missing" in said
    assert "2 of 16 to make are taken from what this run has made" in said
    after = rows_of(tmp_path / "run", "images")
    assert all(after[image] == row for image, row in before.items()), "not one was made again"
    # 14 rows, and those beside them in the first batch of the shard that was cut.
    assert len(drawn) - first <= 14 + 2
    assert release_of(tmp_path / "run") == release_of(whole)
    assert not (tmp_path / "run" / held.HELD).exists()
    assert not (tmp_path / "run" / growth.NEXT).exists()
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "run" / "images").iterdir()}
    said = run(path)
    assert said.count("already made") >= 6 and "rows in" not in said.replace("card", "")
    assert times == {f: f.stat().st_mtime_ns for f in (tmp_path / "run" / "images").iterdir()}


def test_another_source_leaves_the_first_one_as_it_is(
    make_workflow: WorkflowMaker, whole: Path, tmp_path: Path, drawn: list[str]
) -> None:
    plan = {"dataset": "dataset.yaml", "shard_mb": 0.05, "sources": ["sd"]}
    path = make_workflow(quality={}, plan=plan)
    run(path)
    first, files = len(drawn), (tmp_path / "run" / "images").glob("sd-*")
    times = {file: file.stat().st_mtime_ns for file in files}
    assert "10 are missing" in run(changed(path, plan={"sources": None}))
    assert len(drawn) == first + 7, "seven generations, three of them with a variant"
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    assert release_of(tmp_path / "run") == release_of(whole)


def test_more_captions_leave_chosen_prompts_chosen(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    few = {"sources": [{"kind": "text", "path": "prompts.txt", "name": "a"}],
           "select": {"count": 30}}  # fmt: skip
    path = make_workflow(prompts=few, quality={}, split={"validation": 0.0, "test": 0.2})
    run(path)
    before = rows_of(tmp_path / "run", "images")
    prompts = pq.read_table(tmp_path / "run" / "prompts").to_pylist()
    (tmp_path / "more.txt").write_text("\n".join(f"{text} at night" for text in PROMPTS) + "\n")
    more = {"sources": [*few["sources"], {"kind": "text", "path": "more.txt", "name": "b"}],
            "select": {"count": 60}}  # fmt: skip
    said = run(changed(path, prompts=more))
    assert "36 images are kept, 0 are not, 0 are missing" in said
    after = pq.read_table(tmp_path / "run" / "prompts").to_pylist()
    assert after[:30] == prompts and len(after) == 60, "in the same places, in the same splits"
    assert "b" in {row["source"] for row in after[30:]}
    assert rows_of(tmp_path / "run", "images") == before
    # A larger quota begins with those, too.
    text = (tmp_path / "dataset.yaml").read_text().replace("count: 24", "count: 40")
    (tmp_path / "dataset.yaml").write_text(text)
    assert "16 are missing" in run(path)
    images = rows_of(tmp_path / "run", "images")
    assert len(images) == 52 and before.items() <= images.items()


def test_diverse_prompts_stay_chosen_and_a_new_seed_chooses_anew(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    given = {"sources": [{"kind": "text", "path": "prompts.txt"}], "near_duplicates": None,
             "select": {"count": 10, "method": "diverse"}}  # fmt: skip
    path = make_workflow(prompts=given, plan=None, images=None, release=None)
    texts = []
    for select in ({}, {"count": 25}, {"count": 25, "seed": 1}):
        data = {**given, "select": {**given["select"], **select}}  # type: ignore[dict-item]
        run(changed(path, prompts=data))
        texts.append(pq.read_table(tmp_path / "run" / "prompts")["text"].to_pylist())
    # Without a plan, prompts are made anew: nothing depends on them.
    assert [len(found) for found in texts] == [10, 25, 25]
    assert texts[1] != texts[2]


def test_another_mark_is_put_on_images_that_are_there(
    make_workflow: WorkflowMaker, tmp_path: Path, drawn: list[str]
) -> None:
    path = make_workflow(quality={})
    run(path)
    before, first = rows_of(tmp_path / "run", "images"), len(drawn)
    text = (
        (tmp_path / "dataset.yaml")
        .read_text()
        .replace(
            "test: {count: 2, width: 96, height: 64}",
            "test: {count: 2, width: 96, height: 64, watermarks: [none, dwt-dct]}",
        )
    )
    (tmp_path / "dataset.yaml").write_text(text)
    said = run(path)
    assert "36 images are kept, 0 are not, 2 are missing" in said
    assert len(drawn) == first, "no model drew anything"
    images = rows_of(tmp_path / "run", "images")
    assert before.items() <= images.items() and len(images) == 38
    clone = make_workflow("clone", quality={}, run=str(tmp_path / "clone"))
    (tmp_path / "dataset.yaml").write_text(text)
    run(clone)
    assert release_of(tmp_path / "run") == release_of(tmp_path / "clone")


def pictures(folder: Path, names: list[str], captions: list[str]) -> Path:
    """A folder of small images with captions, and its caption table."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), (number * 40 % 256, 80, 120)).save(folder / f"{name}.png")
    lines = [f"{name}.png,{text}" for name, text in zip(names, captions, strict=True)]
    (folder / "captions.csv").write_text("\n".join(["file,text,split", *lines]) + "\n")
    return folder


IMPORT = """
  mine:
    title: Mine
    licence: MIT
    kind: import
    model: m
    revision: r
    splits: {train: {width: 64, height: 64}, test: {width: 64, height: 64}}
"""


def test_imported_images_stay_where_they_are_when_more_are_found(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    names = [f"p{number}" for number in range(12)]
    texts = [f"a picture of thing number {number},train" for number in range(12)]
    folder = pictures(tmp_path / "pictures", names[:8], texts[:8])
    mine = {"kind": "import", "path": str(folder), "captions": str(folder / "captions.csv")}
    path = make_workflow(prompts=None, sources={"mine": mine}, plan={
        "dataset": "dataset.yaml", "shard_mb": 0.02, "sources": ["mine"]})  # fmt: skip
    (tmp_path / "dataset.yaml").write_text((tmp_path / "dataset.yaml").read_text() + IMPORT)
    run(path)
    before = release_of(tmp_path / "run")
    pictures(folder, names, texts)
    (tmp_path / "run" / "plan" / "_lists.json").write_text('{"mine": []}')
    said = run(path)
    assert "put back from the record" in said
    assert "sources.mine.captions: the files there have changed" in said
    assert "8 images are kept, 0 are not, 4 are missing" in said
    after = release_of(tmp_path / "run")
    kept = {n for n, data in before.items() if n.startswith("mine/") and after[n] == data}
    assert len(kept) == 2 and len(rows_of(tmp_path / "run", "release")) == 12
    assert "have changed" not in run(path)
    pictures(folder, names[1:], texts[1:])
    (folder / "p0.png").unlink()
    said = run(path, code=1)
    assert "cannot keep 1 of the run's images" in said and "  mine train: 1" in said
    assert "11 would be kept" in said


def test_no_prompt_changes_its_split_because_an_import_says_so(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    plan = {"dataset": "dataset.yaml", "shard_mb": 0.05, "sources": ["sd"]}
    path = make_workflow(plan=plan)
    (tmp_path / "dataset.yaml").write_text((tmp_path / "dataset.yaml").read_text() + IMPORT)
    run(path)
    before = rows_of(tmp_path / "run", "images")
    planned = rows_of(tmp_path / "run", "plan").values()
    train = next(row["text"] for row in planned if row["split"] == "train")
    test = next(row["text"] for row in planned if row["split"] == "test")
    texts = [f"{train},test", f"{test},train", "a new thing in the garden,test"]
    folder = pictures(tmp_path / "pictures", ["a", "b", "c"], texts)
    mine = {"kind": "import", "path": str(folder), "captions": str(folder / "captions.csv"),
            "split_column": "split"}  # fmt: skip
    sources = {**yaml.safe_load(path.read_text())["sources"], "mine": mine}
    said = run(changed(path, plan={"sources": ["sd", "mine"]}, sources=sources))
    assert "26 images are kept, 0 are not, 1 are missing" in said
    assert "2 images were refused: 2 split" in said
    assert before.items() <= rows_of(tmp_path / "run", "images").items()
    refused = pq.read_table(tmp_path / "run" / "rejects" / "plan.parquet").to_pylist()
    assert sorted(row["reason"] for row in refused) == [
        "split: listed as test, but its prompt is in train",
        "split: listed as train, but its prompt is in test",
    ]


def test_the_batch_size_may_change_for_what_is_missing(
    make_workflow: WorkflowMaker, tmp_path: Path, drawn: list[str]
) -> None:
    path = make_workflow(quality={}, plan={"dataset": "dataset.yaml", "shard_mb": 0.05, "limit": 8})
    run(path)
    before, first = rows_of(tmp_path / "run", "images"), len(drawn)
    sources = yaml.safe_load(path.read_text())["sources"]
    sources["sd"]["batch_size"] = 4
    said = run(changed(path, sources=sources))
    assert len(drawn) == first and "rows in" not in said.replace("card", "").replace("release", "")
    run(changed(path, plan={"limit": 16}))
    images = rows_of(tmp_path / "run", "images")
    assert before.items() <= images.items()
    made = {row["batch_size"] for image, row in images.items() if image not in before}
    assert made == {4} and {row["batch_size"] for row in before.values()} == {3, 2}
    done = aigi_here("verify", str(tmp_path / "run" / "release"), "--pixels", "40", "--deep")
    assert "28 images made again, none differs" in done.stdout, done.stdout


# --- what cannot be kept --------------------------------------------------------------------------


def test_what_cannot_be_kept_is_listed_and_needs_consent(
    make_workflow: WorkflowMaker, tmp_path: Path, whole: Path
) -> None:
    path = make_workflow(quality={})
    run(path)
    state = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*.parquet")}
    text = (tmp_path / "dataset.yaml").read_text()
    (tmp_path / "dataset.yaml").write_text(text.replace("euler", "ddim"))
    said = run(path, code=1)
    assert "cannot keep 10 of the run's images, which took" in said
    assert "  sdxl test: 6\n  sdxl train: 4\n26 would be kept." in said
    assert "dataset.sdxl.scheduler: euler -> ddim" in said and "--replace" in said
    assert {f: f.read_bytes() for f in (tmp_path / "run").rglob("*.parquet")} == state
    (tmp_path / "dataset.yaml").write_text(text)
    assert "cannot keep" not in run(path), "back to the old settings"
    (tmp_path / "dataset.yaml").write_text(text.replace("euler", "ddim"))
    said = run(path, "--replace")
    assert "26 images are kept, 10 are not, 10 are missing" in said
    assert not (tmp_path / "run" / held.HELD).exists()
    one, other = rows_of(tmp_path / "run", "images"), rows_of(whole, "images")
    assert len(one.keys() & other.keys()) == 26 and len(one) == 36


def test_settings_that_decide_pixels_cost_their_own_source_alone(
    make_workflow: WorkflowMaker, tmp_path: Path, drawn: list[str]
) -> None:
    path = make_workflow(quality={})
    run(path)
    before, first = rows_of(tmp_path / "run", "images"), len(drawn)
    sources = yaml.safe_load(path.read_text())["sources"]
    sources["sdxl"]["vae_slicing"] = True
    said = run(changed(path, sources=sources), code=1)
    assert "cannot keep 10 of the run's images" in said and "sdxl.vae_slicing" in said
    run(path, "--replace")
    assert len(drawn) == first + 7
    after = rows_of(tmp_path / "run", "images")
    assert all(after[i] == row for i, row in before.items() if "SDXL" not in row["versions"]
               and not json.loads(after[i]["versions"]).get("settings"))  # fmt: skip
    assert sum("settings" in row["versions"] for row in after.values()) == 10


def test_fewer_images_stay_planned_as_more_than_are_needed(
    make_workflow: WorkflowMaker, tmp_path: Path
) -> None:
    path = make_workflow(quality={})
    run(path)
    said = run(changed(path, plan={"limit": 10}))
    assert "36 images are kept, 0 are not, 0 are missing" in said
    assert len(rows_of(tmp_path / "run", "release")) == 22
    reasons = [row["reason"] for row in rows_of(tmp_path / "run", "selection").values()]
    assert reasons.count("surplus") == 14 and reasons.count(None) == 22


def test_a_failed_try_binds_nobody(make_workflow: WorkflowMaker, tmp_path: Path) -> None:
    import csv

    with open(tmp_path / "c.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "words"], *enumerate(PROMPTS)])
    for column, code in (("text", 1), ("id", 1), ("words", 0)):
        source = {"kind": "csv", "path": "c.csv", "column": column}
        path = make_workflow(quality={}, prompts={"sources": [source], "near_duplicates": None})
        said = run(path, code=code)
        assert "other settings" not in said and "cannot keep" not in said
        if column == "id":
            assert "captions: " in said and "; first c.csv:2: " in said
            assert pq.read_table(tmp_path / "run" / "rejects" / "prompts.parquet").num_rows == 72


# --- from elsewhere -------------------------------------------------------------------------------


@pytest.fixture
def moved(make_workflow: WorkflowMaker, tmp_path: Path) -> Iterator[Path]:
    """A workflow whose models are not on this machine."""
    data = yaml.safe_load(make_workflow(quality={}).read_text())
    for name, source in data["sources"].items():
        source["folder"] = str(tmp_path / "gone" / name)
    data["run"] = str(tmp_path / "other")
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(data))
    yield path


@pytest.mark.parametrize("place", ["run", "release"])
def test_images_of_another_run_or_release_need_no_model(
    moved: Path, whole: Path, tmp_path: Path, place: str
) -> None:
    assert "gone" in run(moved, code=1)
    where = whole if place == "run" else whole / "release"
    if place == "release":
        shutil.copytree(whole / "release", tmp_path / "published")
        where = tmp_path / "published"
    said = run(changed(moved, plan={"reuse": [str(where)]}))
    assert f"36 of 36 to make are taken from {where}" in said
    assert release_of(tmp_path / "other") == release_of(whole)
    assert "reuse" not in (tmp_path / "other" / "release" / "manifest.json").read_text()


def test_what_is_missing_there_is_made_here(
    make_workflow: WorkflowMaker, whole: Path, tmp_path: Path, drawn: list[str]
) -> None:
    path = make_workflow(
        quality={}, plan={"dataset": "dataset.yaml", "shard_mb": 0.05, "limit": 10}
    )
    run(path)
    first = len(drawn)
    other = make_workflow("other", quality={}, run=str(tmp_path / "other"), plan={
        "dataset": "dataset.yaml", "shard_mb": 0.05, "reuse": [str(tmp_path / "run")]})  # fmt: skip
    said = run(other)
    assert "22 of 36 to make are taken from" in said
    assert len(drawn) - first <= 16
    assert release_of(tmp_path / "other") == release_of(whole)


def test_images_in_another_container_are_stored_as_this_run_stores_them(
    make_workflow: WorkflowMaker, whole: Path, tmp_path: Path
) -> None:
    path = make_workflow(quality={}, images={"format": "png"}, plan={
        "dataset": "dataset.yaml", "shard_mb": 0.05, "reuse": [str(whole)]})  # fmt: skip
    run(path)
    one, other = rows_of(tmp_path / "run", "images"), rows_of(whole, "images")
    for image, row in one.items():
        assert row["image"]["bytes"].startswith(b"\x89PNG")
        assert row["image"]["path"] == f"{image}.png"
        assert row | {"image": None} == other[image] | {"image": None}


def test_images_that_were_made_otherwise_are_not_taken(
    make_workflow: WorkflowMaker, whole: Path, tmp_path: Path, drawn: list[str]
) -> None:
    path = make_workflow(quality={}, plan={"dataset": "dataset.yaml", "shard_mb": 0.05,
                                           "reuse": [str(whole)]})  # fmt: skip
    sources = yaml.safe_load(path.read_text())["sources"]
    sources["sd"]["vae_slicing"] = True
    said = run(changed(path, sources=sources))
    assert "26 more are there, made with other settings of attention, quantise, vae_slicing" in said
    assert len(drawn) == 26


def test_a_forged_release_is_refused(moved: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "forged"
    shutil.copytree(whole / "release", folder)
    name = next(path for path in release_of(whole) if path.startswith("sd/train"))
    table = pq.read_table(folder / name, partitioning=None)
    for column, value, told in (
        ("seed", 1, "seed 1, and the same id is planned with"),
        ("pixels_sha256", "0" * 64, "other pixels than its pixels_sha256 states"),
        ("text", "another prompt", "text 'another prompt', and the same id"),
    ):
        rows = table.to_pylist()
        rows[0][column] = value
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), folder / name)
        listed(folder, name)
        said = run(changed(moved, plan={"reuse": [str(folder)]}), code=1)
        assert told in said and name in said, said
        shutil.rmtree(tmp_path / "other")
    said = run(changed(moved, plan={"reuse": [str(tmp_path / "nothing")]}), code=1)
    assert "plan.reuse" in said and "neither a run with images nor a release" in said


def test_other_weights_beside_those_of_taken_images_are_refused(
    make_workflow: WorkflowMaker, whole: Path, tmp_path: Path
) -> None:
    path = make_workflow(
        quality={}, plan={"dataset": "dataset.yaml", "shard_mb": 0.05, "limit": 10}
    )
    run(changed(path, release={"pixels": "copied"}))
    for file in (tmp_path / "run" / "images").glob("sd-*"):
        table = pq.read_table(file, partitioning=None)
        rows = table.to_pylist()
        for row in rows:
            versions = json.loads(row["versions"])
            versions["weights"]["unet"] = "0" * 64
            row["versions"] = json.dumps(versions)
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), file)
    shutil.rmtree(tmp_path / "run" / "_stages")
    other = make_workflow("other", quality={}, run=str(tmp_path / "other"), plan={
        "dataset": "dataset.yaml", "shard_mb": 0.05, "reuse": [str(tmp_path / "run")]})  # fmt: skip
    said = run(other, code=1)
    assert "sd.unet: " in said and "weights of sha256 000000000000…" in said


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        *(("copy", 1), ("move", 1), ("images", 1), ("write_record", 3)),
        pytest.param("copy", 3, marks=pytest.mark.slow),
        pytest.param("images", 2, marks=pytest.mark.slow),
        pytest.param("write_record", 6, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_growth_that_is_killed_ends_as_if_it_had_not_been(
    make_workflow: WorkflowMaker, whole: Path, tmp_path: Path, moment: str, count: int
) -> None:
    path = make_workflow(
        quality={}, plan={"dataset": "dataset.yaml", "shard_mb": 0.05, "limit": 10}
    )
    run(path)
    before = rows_of(tmp_path / "run", "images")
    changed(path, plan={"limit": None})
    assert killed(moment, count, "run", str(path))
    run(path)
    after = rows_of(tmp_path / "run", "images")
    assert before.items() <= after.items()
    assert release_of(tmp_path / "run") == release_of(whole)
    assert not (tmp_path / "run" / held.HELD).exists()
    assert not (tmp_path / "run" / growth.NEXT).exists()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [("_next/ready.json", "{}", "_next/ready.json: tables: needed"),
     ("_next/ready.json", '{"tables": ["../images"]}', "_next/ready.json: tables.0: no "),
     ("_next/ready.json", '{"tables": ["plan"]}', "_next/_stages/plan.json: missing"),
     ("_next/ready.json", "[]", "_next/ready.json: expected an object")],
)  # fmt: skip
def test_a_damaged_note_of_a_growth_is_one_line(
    make_workflow: WorkflowMaker, tmp_path: Path, file: str, text: str, said: str
) -> None:
    path = make_workflow(quality={}, plan={"dataset": "dataset.yaml", "limit": 4})
    run(path)
    before = release_of(tmp_path / "run")
    (tmp_path / "run" / file).parent.mkdir()
    (tmp_path / "run" / file).write_text(text)
    told = run(path, code=1)
    assert said in told and "Delete" in told and "Traceback" not in told
    assert release_of(tmp_path / "run") == before


# --- elsewhere ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_s3_grows_and_gives_its_images_to_its_release(
    make_workflow: WorkflowMaker,
    whole: Path,
    tmp_path: Path,
    s3: Callable[[str], None],
    moto: str,
    drawn: list[str],
) -> None:
    s3(moto)
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3").create_bucket(Bucket="grows")
    path = make_workflow(quality={}, run="s3://grows/run", plan={
        "dataset": "dataset.yaml", "shard_mb": 0.05, "limit": 10})  # fmt: skip
    run(path)
    first = len(drawn)
    assert "22 images are kept, 0 are not, 14 are missing" in run(
        changed(path, plan={"limit": None})
    )
    assert len(drawn) - first <= 16
    store = Store("s3://grows/run")
    found = {str(Path(p).relative_to("grows/run/release")): store.fs.cat_file(p)
             for p in store.fs.find("grows/run/release")}  # fmt: skip
    assert found == release_of(whole)
    assert not [p for p in store.fs.find("grows/run") if held.HELD in p or growth.NEXT in p]
    assert sum(store.fs.size(p) for p in store.fs.find("grows/run/images")) < 100_000
    other = make_workflow("other", quality={}, plan={
        "dataset": "dataset.yaml", "shard_mb": 0.05, "reuse": ["s3://grows/run"]})  # fmt: skip
    assert "36 of 36 to make are taken from s3://grows/run" in run(other)
    assert release_of(tmp_path / "run") == release_of(whole)


@pytest.mark.slow
def test_workers_of_ray_grow_a_run_to_the_same_bytes(
    make_workflow: WorkflowMaker, whole: Path, tmp_path: Path
) -> None:
    path = make_workflow(
        quality={}, plan={"dataset": "dataset.yaml", "shard_mb": 0.05, "limit": 10}
    )
    more = ("--set", "compute.ray=local", "--set", "compute.workers=2")
    run(path, *more)
    said = run(changed(path, plan={"limit": None}), *more)
    assert "2 of 16 to make are taken from what this run has made" in said
    assert release_of(tmp_path / "run") == release_of(whole)
    assert not (tmp_path / "run" / held.HELD).exists()
