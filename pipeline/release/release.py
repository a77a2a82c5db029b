"""Plan, images and selection in, release out: parquet per source and split, manifest, card.

The release folder holds nothing else and loads as it is: `datasets.load_dataset(FOLDER, "sdxl",
split="test")`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import AigiError, __version__
from pipeline.images.images import begun
from pipeline.makers import made_by_one
from pipeline.manifest import MANIFEST, PLAN_FILE, FileRecord, read_manifest
from pipeline.pixels import decode_threads
from pipeline.plan import specification
from pipeline.plan.copied import schema as plan_schema
from pipeline.plan.quotas import chosen, quotas
from pipeline.plan.rounds import added, pinned, summary
from pipeline.plan.rounds import shards as plan_shards
from pipeline.plan.specification import some_options
from pipeline.progress import Progress
from pipeline.release import card
from pipeline.release.recipe import Recipe, Release
from pipeline.release.regenerate import recorded
from pipeline.selection.kept import digest_of, files_of
from pipeline.shown import public_url
from pipeline.software import git_commit, library_versions
from pipeline.stage import Files, Map
from pipeline.store import Store
from pipeline.tables import OPTIONS, RELEASE, with_options
from pipeline.threads import ahead, workers

VERSION = 1
FILE_BYTES = 500_000_000
ROWS_A_CHUNK = 16
TABLES = (
    "prompts", "plan", "images", "embeddings", "quality", "duplicates", "selection", "release",
)  # fmt: skip


@cache
def release_schema(options: bool = False) -> pa.Schema:
    """RELEASE with the features that `datasets` reads: the image column is an `Image`.

    Args:
        options: whether a source has some.
    """
    from datasets import Features, Image, Value

    schema = with_options(RELEASE, options)
    features = Features(
        {
            field.name: Image() if field.name == "image" else Value(str(field.type))
            for field in schema
        }
    )
    info = {"info": {"features": features.to_dict()}}
    return schema.with_metadata({"huggingface": json.dumps(info)})


def _names(store: Store) -> list[str]:
    return list(files_of(store))


def _sources(store: Store, name: str) -> list[tuple[str, str]]:
    shard = files_of(store)[name]
    return [(table, shard) for table in ("plan", "images", "selection")]


def _read(store: Store, name: str) -> pa.Table:
    """Kept rows of one image shard, with everything that is known about them.

    Raises:
        Damaged: an image has other pixels than its row states.
    """
    shard = files_of(store)[name]
    found = store.aligned(shard, {"plan": None, "images": None, "selection": ["keep"]})
    plan, images = found["plan"], found["images"]
    schema = with_options(RELEASE, OPTIONS.name in plan.column_names)
    columns = [
        images[field.name] if field.name in images.column_names else plan[field.name]
        for field in schema
    ]
    keep = found["selection"]["keep"]
    rows = pa.table(columns, schema=schema).filter(keep)
    numbers = [number for number, kept in enumerate(keep.to_pylist()) if kept]
    stated = rows.select(["image_id", "image", "width", "height", "pixels_sha256"])

    def compared(place: int) -> None:
        (values,) = stated.slice(place, 1).to_pylist()
        store.pixels("images", shard, numbers[place], values)

    with workers(decode_threads(None), "compare") as pool:
        for _ in ahead(range(rows.num_rows), compared, pool, 32):
            pass
    return rows


def _chunks(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, ROWS_A_CHUNK):
        yield rows.slice(start, ROWS_A_CHUNK)


def _worker() -> Any:
    return _chunks


def stage(options: bool = False) -> Map:
    """The release stage: one parquet file for every image shard with kept rows.

    Args:
        options: whether a source has some, so that rows have a column of them.
    """
    return Map(
        table="release",
        version=VERSION,
        schema=release_schema(options),
        settings={},
        inputs=("plan", "images", "selection"),
        names=_names,
        read=_read,
        make_worker=_worker,
        sources=_sources,
        state=digest_of,
        remake=True,  # a copy of what is kept: another selection asks for another one
        published=True,
    )


def _check_splits(store: Store, names: list[str]) -> None:
    """Refuse a prompt that is in two splits, whatever the source."""
    split_of: dict[str, str] = {}
    for name in names:
        rows = store.read("release", name, ["prompt_id"])
        split = name.split("/")[1].split("-")[0]
        for prompt in pc.unique(rows["prompt_id"]).to_pylist():
            if split_of.setdefault(prompt, split) != split:
                raise AigiError(
                    f"release: prompt {prompt} is in {split_of[prompt]} and in {split} ({name}); "
                    "the plan must keep a prompt in one split"
                )


def _captions(store: Store) -> list[dict[str, Any]]:
    """Caption files of the prompts, by name and content."""
    record = store.record("prompts")
    settings = {} if record is None else record.settings
    return [
        {"file": source["path"], "content": source["content"]}
        if "content" in source
        else {"file": public_url(source.get("dataset") or source["kind"]), "content": None}
        for source in settings.get("sources", [])
    ]


def _make_manifest(
    recipe: Recipe, settings: Release, store: Store, progress: Progress
) -> list[str]:
    if recipe.images is not None:
        recipe = recipe.model_copy(update={"images": begun(recipe.images, store)})
    plan = recipe.planned("release")
    dataset = pinned(specification.load(plan.dataset), store)
    sizes = store.shards("release")
    names = [name for name in _names(store) if name in sizes]
    _check_splits(store, names)
    record = store.record("release")
    made = {} if record is None else record.shards
    files: list[FileRecord] = []
    for name in names:
        if sizes[name] > FILE_BYTES:
            raise AigiError(
                f"release: {name}.parquet has {sizes[name]:,} bytes, more than {FILE_BYTES:,}: "
                "make the plan with a smaller plan.shard_mb"
            )
        config, rest = name.split("/")
        files.append(
            {
                "path": f"{name}.parquet",
                "config": config,
                "split": rest.split("-")[0],
                "rows": made[name].rows,
                "bytes": sizes[name],
                "sha256": made[name].sha256,
            }
        )
    names_made = chosen(dataset, plan)
    documents = card.write(recipe, settings.version, dataset, store, files, progress)
    options = some_options(dataset, names_made)
    planned = plan_schema(options)
    size, digest = store.write_arrow(plan_shards(store), planned, "release", PLAN_FILE)
    documents.append({"path": PLAN_FILE, "bytes": size, "sha256": digest})
    manifest = {
        "name": dataset.name,
        "version": settings.version,
        "files": files,
        "documents": documents,
        "schema": release_schema(options).to_string(show_schema_metadata=False).splitlines(),
        "specification": {
            **dataset.model_dump(mode="json", exclude={"sources"}),
            "sources": {name: dataset.sources[name].model_dump(mode="json") for name in names_made},
        },
        "plan": {**summary(store), "rounds": added(store)},
        # Where it ran and on how many workers does not change a byte; threads can.
        "workflow": recorded(recipe, names_made),
        "captions": _captions(store),
        "wanted": {
            f"{quota.source}/{quota.split}": quota.images
            for quota in quotas(dataset, plan)
            if quota.spec.count is not None
        },
        "tables": {
            table: record.fingerprint
            for table in TABLES
            if (record := store.record(table)) is not None
        },
        "aigi": {"version": __version__, "commit": git_commit()},
        "versions": library_versions(),
    }
    if plan.manifest is not None:
        # The plan was made there; a release made again says how, not that it was copied.
        first = made_by_one(plan.manifest, read_manifest(plan.manifest), names_made)
        manifest["captions"] = first["captions"]
        manifest["workflow"]["prompts"] = first["workflow"].get("prompts")
        manifest["workflow"]["selection"] = first["workflow"].get("selection")
    store.write_json(manifest, "release", MANIFEST)
    if settings.record is not None:
        records = Store(settings.record)
        records.write_json(manifest, f"{dataset.name}-{settings.version}.json")
    progress.say(
        f"release: {sum(file['rows'] for file in files):,} images in {len(files):,} files, "
        f"{sum(file['bytes'] for file in files) / 1e6:,.1f} MB: {store.path('release')}"
    )
    return [f"release/{name}" for name in (*(d["path"] for d in documents), MANIFEST)]


def manifest_stage(recipe: Recipe, settings: Release) -> Files:
    """Card and manifest, once every file of the release is there."""
    dataset = specification.load(recipe.planned("release").dataset)
    return Files(
        table="manifest",
        version=card.VERSION,
        settings={
            **settings.model_dump(mode="json"),
            "card": card.settings(recipe, dataset),
        },
        inputs=("release",),
        make=partial(_make_manifest, recipe, settings),
    )
