"""A workflow and the estimate of its plan in, what each stage stores in its run out.

What is there already counts as it is. The rest is rows by their schemas, and images by the bytes
of the estimate. Nothing of a run is removed while it goes on, so its disk grows to the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline import AigiError
from pipeline.build import Estimate
from pipeline.dry_run.rows import plan_bytes, table_bytes
from pipeline.manifest import CARD, MANIFEST, PLAN_FILE
from pipeline.models.clip import Embeddings, model_config
from pipeline.plan import plan, specification
from pipeline.plan.quotas import chosen
from pipeline.prompts import texts
from pipeline.prompts.captions import GrammarCaptions
from pipeline.prompts.prompts import SHARD_ROWS, Prompts
from pipeline.record import Record
from pipeline.release.croissant import CROISSANT
from pipeline.release.release import moves
from pipeline.release.sheet import SHEET
from pipeline.selection.kept import counts_of, files_of
from pipeline.shards import WAVE
from pipeline.store import RECORDS, Store
from pipeline.tables import (
    DUPLICATES,
    IMAGES,
    PLAN,
    PROMPTS,
    QUALITY,
    RELEASE,
    SELECTION,
    embeddings_schema,
    with_options,
)
from pipeline.workflow import Workflow

WITHIN = 1.5
"""The estimate of a table and the truth differ at most by this factor, images left out.

Bytes of images are as good as what is known of them: see `pipeline.build.estimate`.
"""
DOCUMENTS = (CARD, CROISSANT, SHEET, PLAN_FILE, MANIFEST)
"""Files of a release that are no tables."""
PAIRS = 0.1
"""Pairs of near duplicates that are found for an image, where nothing is known."""
_RECORD = 500, 100  # bytes of the record of a shard, and of its entry in a list of shards
_FILE = 550  # bytes that croissant.json and the manifest have of a file of a release
_FEATURE = 50  # bytes that a file of a release has of each column, for `datasets`
_CONFIG, _CARD = 25_000, 20_000  # croissant.json and the contact sheet of a config; the rest


@dataclass(frozen=True)
class Stored:
    """What a stage stores in the run.

    Attributes:
        rows: of its table; None: it has none, or nobody knows.
        files: of these rows.
        bytes: when it is finished.
        there: bytes that are stored already.
        counted: false: some of it is not known, so `bytes` is the least.
        passing: bytes beside it while it is made.
    """

    stage: str
    rows: int | None
    files: int | None
    bytes: float
    there: int
    counted: bool = True
    passing: float = 0.0


def _moved(workflow: Workflow, store: Store) -> bool:
    """Whether images that are not made yet, or have moved already, are stored in the release."""
    if workflow.release is None or not moves(workflow.release, store):
        return False
    record = store.record("images")
    return record is None or record.empty or any(one.moved for one in record.shards.values())


def release_bytes(images: float, workflow: Workflow, store: Store) -> float:
    """Bytes of images that a release adds to those of its run."""
    copied = workflow.release is not None and not moves(workflow.release, store)
    return images if copied or _moved(workflow, store) else 0.0


def peak(stages: Sequence[Stored]) -> float:
    """The most bytes that are stored at once, while the stages run one after another."""
    held = most = float(sum(stage.there for stage in stages))
    for stage in stages:
        held += stage.bytes - stage.there
        most = max(most, held + stage.passing)
    return most


@dataclass(frozen=True)
class _Planned:
    """Images of a plan.

    Attributes:
        rows: planned.
        shards: of them.
        kept: of the rows, those that go into the release.
        bytes: of their files, all planned.
        files: of the release, by config.
        counted: false: imports decide how many there are.
    """

    rows: int
    shards: int
    kept: int
    bytes: float
    files: Mapping[str, int]
    counted: bool


def release_files(lines: Sequence[Estimate], store: Store) -> dict[str, int]:
    """Parquet files of a release by config: a shard of the plan is one at most.

    Raises:
        AigiError: the record of the selection is damaged.
    """
    if counts_of(store) is not None:
        return dict(Counter(name.partition("/")[0] for name in files_of(store)))
    found: Counter[str] = Counter()
    for line in lines:
        found[line.source] += line.shards
    return dict(found)


def _current(workflow: Workflow, record: Record) -> bool:
    """Whether the plan of a run is the one that the workflow asks for."""
    try:
        stage = plan.stage(workflow.planned("plan"), workflow.sources, workflow.split)
    except AigiError:  # places of imports may be missing from the workflow
        return False
    settings = stage.settings
    return record.settings == settings


def _planned(workflow: Workflow, lines: Sequence[Estimate], store: Store) -> _Planned:
    rows, shards = (sum(getattr(line, name) for line in lines) for name in ("planned", "shards"))
    known = all(line.counted for line in lines)
    size = sum(line.gigabytes or 0.0 for line in lines) * 1e9
    record = store.record("plan")
    if record is not None and record.status == "done" and record.shards:
        # With rounds, and imports of which there are fewer, or nobody stated how many.
        found, current = sum(one.rows for one in record.shards.values()), _current(workflow, record)
        if current or found > rows:
            size = size * found / rows if rows else size
            rows, shards = found, len(record.shards)
        known |= current
    kept = min(rows, sum(line.images for line in lines if line.counted))
    return _Planned(rows, shards, kept, size, release_files(lines, store), known)


def _stored(
    store: Store,
    table: str,
    rows: int,
    files: int,
    size: float,
    counted: bool = True,
    passing: float = 0.0,
) -> Stored:
    """A table, of which some may be there."""
    there = sum(store.shards(table).values())
    record = store.record(table)
    have = 0 if record is None else sum(one.rows for one in record.shards.values())
    if there:
        whole = record is not None and record.status == "done" and (have >= rows or not counted)
        left = 0.0 if whole or not rows else size * max(0.0, 1 - have / rows)
        size, rows, counted = there + left, max(rows, have), counted or whole
    return Stored(table, rows, files, size, there, counted, passing if size > there else 0.0)


def _prompts(workflow: Workflow, lines: Sequence[Estimate], store: Store, bounded: bool) -> Stored:
    """The prompts: as many as are chosen, or at least those that the plan needs.

    Args:
        bounded: what all captions take at most is counted with those that are refused.
    """
    prompts = workflow.prompts
    assert prompts is not None
    needed: dict[str, int] = {}
    for line in lines:
        needed[line.split] = max(needed.get(line.split, 0), line.prompts)
    made = sum(each.count for each in prompts.sources if isinstance(each, GrammarCaptions))
    rows = prompts.select.count or max(made, sum(needed.values()))
    files = math.ceil(rows / SHARD_ROWS)
    size = table_bytes(PROMPTS, rows, files)
    return _stored(store, "prompts", rows, files, size, bounded or bool(prompts.select.count))


def _rejects(workflow: Workflow, store: Store) -> Stored:
    """What was refused; before the prompts are chosen, at most what the caption files have.

    That is all captions, so it bounds those that become prompts, too.
    """
    there = sum(store.shards("rejects").values())
    size, counted = 0, True
    if workflow.prompts is not None and store.record("prompts") is None:
        size, counted = _file_bytes(workflow.prompts)
    return Stored("rejects", None, None, max(size, there), there, counted)


def _file_bytes(prompts: Prompts) -> tuple[int, bool]:
    """Bytes of all caption files, and whether they are all known; a grammar has none."""
    size, counted = 0, True
    for source in prompts.sources:
        place = getattr(source, "path", None)
        if isinstance(source, GrammarCaptions):  # its sentences pass, nearly all
            continue
        if place is None or not Path(place).is_file():
            counted = False
            continue
        size += Path(place).stat().st_size
    return size, counted


_LINE_BYTES, _TEXT_BYTES = 40, 110
"""Of a caption in `lines` and in `texts`, at most; measured: 23 and 75 (COCO and CC3M)."""
_LINE_FILE, _TEXT_FILE = 3_000, 20_000
"""Of a file of them beside its rows."""


def _captions(workflow: Workflow, store: Store) -> list[Stored]:
    """Captions as they are read, and their scores: of files, at most a share of their size."""
    assert workflow.prompts is not None
    size, counted = _file_bytes(workflow.prompts)
    grammar = [one for one in workflow.prompts.sources if isinstance(one, GrammarCaptions)]
    sentences = sum(one.count for one in grammar)
    found = []
    files = len(workflow.prompts.sources)
    for table, each, file in (
        ("lines", _LINE_BYTES, _LINE_FILE), ("texts", _TEXT_BYTES, _TEXT_FILE)
    ):  # fmt: skip
        there = sum(store.shards(table).values())
        done = (record := store.record(table)) is not None and record.status == "done"
        # A caption in a file has 40 bytes and more.
        rows = size // 40 + sentences
        most = (
            there if done else max(there, rows * each + (files + rows // texts.SHARD_ROWS) * file)
        )
        found.append(Stored(table, None, None, most, there, counted or done))
    return found


def _vector(settings: Embeddings) -> int | None:
    """Numbers of a vector; None: only the Hub knows, and it is silent."""
    try:
        return int(model_config(settings)["embed_dim"])
    except AigiError:
        return None


def disk(workflow: Workflow, lines: Sequence[Estimate]) -> list[Stored]:
    """What each stage stores, in the order in which they run.

    Args:
        lines: the estimate of the plan.

    Raises:
        AigiError: a record of the run is damaged, or the run cannot be reached.
    """
    asked, store = workflow.planned("--dry-run"), Store(workflow.run)
    found = _planned(workflow, lines, store)
    dataset = specification.load(asked.dataset)
    options = specification.some_options(dataset, chosen(dataset, asked))
    rows, shards, counted = found.rows, found.shards, found.counted

    def table(name: str, schema: pa.Schema, entries: int = 0, extra: float = 0.0) -> Stored:
        size = table_bytes(schema, rows, shards, entries) + extra
        return _stored(store, name, rows, shards, size, counted)

    stages = []
    if workflow.prompts is not None:
        rejects = _rejects(workflow, store)
        stages += [*_captions(workflow, store), _prompts(workflow, lines, store, rejects.counted)]
        stages.append(rejects)
    stages.append(table("plan", with_options(PLAN, options)))
    if workflow.images is not None:
        stages.append(_images(workflow, found, store))
    if workflow.embeddings is not None:
        if (size := _vector(workflow.embeddings)) is None:
            there = sum(store.shards("embeddings").values())
            stages.append(Stored("embeddings", rows, shards, there, there, counted=False))
        else:
            stages.append(table("embeddings", embeddings_schema(size)))
    if workflow.quality is not None:
        stages.append(table("quality", QUALITY, len(workflow.quality.concepts)))
    if workflow.duplicates is not None:
        pairs = math.ceil(rows * PAIRS)
        size = table_bytes(DUPLICATES, pairs, 1) + shards * _RECORD[1]
        # How many there are is nowhere stated; beside the rest they are nothing.
        stages.append(_stored(store, "duplicates", pairs, 1, size, counted))
    if workflow.images is not None:
        stages.append(table("selection", SELECTION, extra=shards * _RECORD[1]))
    if workflow.release is not None:
        stages += _release(workflow, found, store, options)
    size = shards * (_RECORD[0] + _RECORD[1]) * len(stages)
    names = [*(stage.stage for stage in stages), "manifest"]
    there = sum(store.size(RECORDS, f"{name}.json") or 0 for name in names)
    stages.append(Stored("records", None, None, max(size, there), there, counted))
    return stages


def _images(workflow: Workflow, found: _Planned, store: Store) -> Stored:
    workers = workflow.compute.workers if workflow.compute.ray is not None else 1
    # Of a shard in progress there are its finished batches, and the file that they become.
    passing = 2 * workers * found.bytes / max(1, found.shards)
    size = found.bytes + table_bytes(IMAGES, found.rows, found.shards)
    if _moved(workflow, store) and found.rows:
        leaving = found.bytes * found.kept / found.rows
        size, passing = size - leaving, passing + leaving
    return _stored(store, "images", found.rows, found.shards, size, found.counted, passing)


def _release(workflow: Workflow, found: _Planned, store: Store, options: bool) -> Iterator[Stored]:
    files, kept = sum(found.files.values()), found.kept
    record = store.record("release")
    if record is not None and record.status == "done" and len(record.shards) == files:
        kept = sum(one.rows for one in record.shards.values())  # the selection decides
    share = kept / found.rows if found.rows else 0.0
    schema = with_options(RELEASE, options)
    # Each file names its features for `datasets`, which takes long to load.
    schema = schema.with_metadata({"huggingface": _FEATURE * len(schema) * "-"})
    rows = table_bytes(schema, kept, files)
    size = release_bytes(found.bytes * share, workflow, store) + rows
    passing = min(1.0, WAVE / max(1, files)) * found.bytes * share  # these are twice there
    yield _stored(store, "release", kept, files, size, found.counted, passing)
    size = plan_bytes(with_options(PLAN, options), found.rows, found.shards)
    size += files * _FILE + len(found.files) * _CONFIG + _CARD
    there = sum(store.size("release", name) or 0 for name in DOCUMENTS)
    whole = (record := store.record("manifest")) is not None and record.status == "done"
    size = there if whole else max(size, there)
    yield Stored("documents", None, len(DOCUMENTS), size, there, found.counted)
