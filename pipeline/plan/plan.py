"""Dataset specification, prompts and import lists in, the `plan` table out: one row per image.

A plan shard has one source, one split and one size. Seeds and ids are hashes of what they
identify, so the same specification and prompts give the same plan anywhere.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline import AigiError
from pipeline.manifest import PLAN_FILE, plan_beside, read_manifest
from pipeline.models.hub import hub_api, hub_errors
from pipeline.outside import in_short
from pipeline.plan import specification
from pipeline.plan.copied import read_plan
from pipeline.plan.ids import image_id_of, pair_id_of, plan_table, rank_of, seed_of, spans
from pipeline.plan.imports import (
    Import,
    imported_shards,
    listed_imports,
    local_import,
    stated_splits,
)
from pipeline.plan.quotas import Plan, chosen, generations_of, shard_rows
from pipeline.plan.rounds import ROUNDS, extra_of, shard_name, summary
from pipeline.plan.specification import DiffusersSpec, ImportSpec, some_options
from pipeline.progress import Progress
from pipeline.prompts.text import SplitShares
from pipeline.settings import SPLITS
from pipeline.stage import Build
from pipeline.store import Shard, Store
from pipeline.tables import PLAN, REJECTS, with_options

VERSION = 1


@dataclass(frozen=True)
class _Prompt:
    prompt_id: str
    text: str
    source: str
    split: str


def _read_prompts(store: Store) -> Iterator[_Prompt]:
    for shard in store.shards("prompts"):
        table = store.read("prompts", shard, ["prompt_id", "text", "source", "split"])
        for row in table.to_pylist():
            yield _Prompt(**row)


def _generated(
    name: str,
    spec: DiffusersSpec,
    split: str,
    prompts: list[_Prompt],
    plan: Plan,
    rounds: list[int],
    options: bool,
) -> Iterator[tuple[int, pa.Table]]:
    """Shards of one generated source and split, prompt after prompt, with their rounds.

    Args:
        rounds: generations that each top-up round adds.
        options: whether the plan has a column of options.
    """
    size = spec.splits[split]  # type: ignore[index]
    wanted = generations_of(size, plan)
    planned = math.ceil(wanted * (1 + plan.margin))
    need = math.ceil(planned / spec.images_per_prompt)
    if len(prompts) < need:
        raise AigiError(
            f"plan: {name} {split}: needs {need:,} {split} prompts "
            f"({planned:,} images, {spec.images_per_prompt} per prompt); the prompts table has "
            f"{len(prompts):,} that it may use. Raise prompts.select.count or split.{split}, "
            "add caption sources, or lower plan.limit."
        )
    fixed = {
        "split": split,
        "source": name,
        "model": spec.model,
        "revision": spec.revision,
        "steps": spec.steps,
        "guidance_scale": spec.guidance_scale,
        "negative_prompt": spec.negative_prompt,
        "scheduler": spec.scheduler,
        "dtype": spec.dtype,
        "width": size.width,
        "height": size.height,
        "path": None,
        "options": spec.row_options,
    }
    each = shard_rows(size.width or 0, size.height or 0, len(size.watermarks), plan.shard_mb)
    rows: list[dict[str, Any]] = []
    for number, first, last in spans([planned, *rounds]):
        for rank in range(first, last):
            at, index = rank_of(rank, len(prompts), spec.images_per_prompt)
            prompt = prompts[at]
            seed = seed_of(prompt.prompt_id, name, index, plan.seed)
            ids = {
                watermark: image_id_of(
                    {**fixed, "text": prompt.text, "seed": seed, "watermark": watermark}
                )
                for watermark in size.watermarks
            }
            for watermark, image_id in ids.items():
                rows.append(
                    {
                        **fixed,
                        "image_id": image_id,
                        "prompt_id": prompt.prompt_id,
                        "text": prompt.text,
                        "seed": seed,
                        "watermark": watermark,
                        "pair_id": pair_id_of(ids),
                        "index": index,
                        "rank": rank,
                        "round": number,
                    }
                )
            if (rank + 1 - first) % each == 0 or rank + 1 == last:
                yield number, plan_table(rows, options)
                rows = []


def _pinned(name: str, spec: DiffusersSpec, source: object) -> str:
    """The commit that a branch name of the specification points to now.

    Raises:
        AigiError: the Hub does not answer, or has no such model.
    """
    # What one file was made from, its sha256 says.
    local = getattr(source, "folder", None) is not None or spec.file is not None
    if local or re.fullmatch(r"[0-9a-f]{40}", spec.revision):
        return spec.revision
    try:
        commit = hub_api().model_info(spec.model, revision=spec.revision).sha
    except hub_errors() as error:
        raise AigiError(
            f"sources.{name}: cannot look up revision {spec.revision!r} of {spec.model}: "
            f"{in_short(error)}. "
            f"Give a commit hash in the specification, or a local copy: sources.{name}.folder"
        ) from error
    if not commit:
        raise AigiError(f"sources.{name}: {spec.model} has no commit at {spec.revision!r}")
    return str(commit)


def _build(
    plan: Plan,
    sources: Mapping[str, object],
    shares: SplitShares,
    store: Store,
    progress: Progress,
) -> list[Shard]:
    dataset = specification.load(plan.dataset)
    names = chosen(dataset, plan)
    options = some_options(dataset, names)
    schema = with_options(PLAN, options)
    rejects: list[dict[str, Any]] = []
    imports: dict[str, list[Import]] = {}
    for name in names:
        if isinstance(dataset.sources[name], ImportSpec):
            source = local_import(sources, name)
            imports[name] = listed_imports(name, source, shares, rejects)
    stated = stated_splits(imports, rejects)
    prompts: list[_Prompt] = []
    if any(isinstance(dataset.sources[name], DiffusersSpec) for name in names):
        prompts = [
            _Prompt(p.prompt_id, p.text, p.source, stated.get(p.prompt_id, p.split))
            for p in _read_prompts(store)
        ]
    made: list[Shard] = []
    rows = 0
    manifest = None if plan.manifest is None else read_manifest(plan.manifest)
    extra = extra_of(store, [] if manifest is None else manifest["plan"]["rounds"])
    for name in names:
        spec = dataset.sources[name]
        if isinstance(spec, DiffusersSpec):
            # A later round is made by the same commit as the first one, wherever a branch went.
            pins = extra["pins"]
            pins[name] = pins.get(name) or _pinned(name, spec, sources.get(name))
            spec = spec.model_copy(update={"revision": pins[name]})
        for split in SPLITS:
            if split not in spec.splits:
                continue
            rounds = [more.get(f"{name}/{split}", 0) for more in extra["rounds"]]
            if isinstance(spec, DiffusersSpec):
                usable = [
                    p
                    for p in prompts
                    if p.split == split and (spec.captions is None or p.source in spec.captions)
                ]
                shards = _generated(name, spec, split, usable, plan, rounds, options)
            else:
                mine = [p for p in imports[name] if p.split == split]
                wanted = generations_of(spec.splits[split], plan)
                # Without a stated count, as many are wanted as there are.
                if len(mine) < wanted or (wanted < len(mine) and wanted and plan.limit is None):
                    progress.say(
                        f"plan: {name} {split}: {len(mine):,} images found, {wanted:,} needed"
                    )
                source = local_import(sources, name)
                shards = imported_shards(name, spec, source, split, mine, plan, rounds, options)
            numbers: dict[int, int] = defaultdict(int)
            for number, table in shards:
                shard = shard_name(name, split, number, numbers[number])
                made.append(store.write("plan", shard, table, schema))
                numbers[number] += 1
                rows += table.num_rows
                if manifest is not None and rows > manifest["plan"]["rows"]:
                    _check_same(store, manifest)  # however many more there would be
    store.write_json(extra, "plan", ROUNDS)
    if not made:
        raise AigiError("plan: nothing to make; check plan.sources, plan.limit and the rejects")
    store.write("rejects", "plan", pa.Table.from_pylist(rejects, schema=REJECTS), REJECTS)
    if rejects:
        reasons = Counter(str(row["reason"]).split(":")[0] for row in rejects)
        progress.say(
            f"plan: {len(rejects):,} rejected, see rejects/plan.parquet"
            + "".join(f", {count:,} {why}" for why, count in reasons.most_common())
        )
    if manifest is not None:
        _check_same(store, manifest)
    return made


def _check_same(store: Store, manifest: Mapping[str, Any]) -> None:
    """Refuse a remade plan that differs from the plan of the manifest."""
    found, expected = summary(store), manifest["plan"]
    if all(found[key] == expected[key] for key in found):
        return
    record = store.record("prompts")
    here = {} if record is None else record.settings
    contents = [source.get("content") for source in here.get("sources", [])]
    captions = [
        f"  {line['file']}: its content differs from that of the file of this name there"
        for line, content in zip(manifest["captions"], contents, strict=False)
        if line["content"] != content
    ]
    raise AigiError(
        f"plan: the {found['rows']:,} images in {found['shards']:,} shards are not those of "
        f"{manifest['name']} {manifest['version']} ({expected['rows']:,} in "
        f"{expected['shards']:,}).\n"
        + "\n".join(captions or ["  The captions are the same: is it the same version of aigi?"])
        + f"\nThe release itself contains its plan: use the manifest beside {PLAN_FILE}."
    )


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema; one that the table does not have is null."""
    absent = pa.nulls(table.num_rows, pa.string())
    have = table.column_names
    columns = [table[name] if name in have else absent for name in schema.names]
    return pa.table(columns, schema=schema)


def _copy(
    location: str, sources: Collection[str] | None, store: Store, progress: Progress
) -> list[Shard]:
    """Copy the plan beside a manifest, for these sources or for all."""
    manifest = read_manifest(location)
    # Of a source without options, the column may be there for another one that is left out.
    dataset = specification.load(location)
    names = list(dataset.sources) if sources is None else sources
    schema = with_options(PLAN, some_options(dataset, names))
    made = [
        store.write("plan", name, _as(table, schema), schema)
        for name, table in read_plan(location, manifest)
        if sources is None or table["source"][0].as_py() in sources
    ]
    if not made:
        raise AigiError(f"plan.sources: {location} has no image of these sources")
    store.write_json(extra_of(store, manifest["plan"]["rounds"]), "plan", ROUNDS)
    return made


def stage(plan: Plan, sources: Mapping[str, object], shares: SplitShares) -> Build:
    """The plan stage.

    Args:
        sources: how the workflow makes or imports the sources of the specification.
        shares: shares of the prompts for each split.
    """
    dataset = specification.load(plan.dataset)
    names = chosen(dataset, plan)
    generated = any(isinstance(dataset.sources[name], DiffusersSpec) for name in names)
    schema = with_options(PLAN, some_options(dataset, names))
    location, rounds = plan.manifest, []
    if location is not None:
        manifest = read_manifest(location)
        if plan_beside(location, manifest) is not None:
            return Build(
                table="plan",
                version=VERSION,
                schema=schema,
                settings={"plan": manifest["plan"], "sources": names},
                inputs=(),
                build=partial(_copy, location, plan.sources),
            )
        rounds = manifest["plan"]["rounds"]
    settings = {
        "dataset": {
            name: dataset.sources[name].model_dump(
                mode="json", exclude={"title", "licence", "licence_url"}
            )
            for name in names
        },
        **plan.model_dump(mode="json", exclude={"dataset", "sources", "manifest"}),
        "split": shares.model_dump(mode="json"),
        "imports": {
            # Metadata of files decides no row of the plan.
            name: local_import(sources, name).model_dump(mode="json", exclude={"keep_metadata"})
            for name in names
            if isinstance(dataset.sources[name], ImportSpec)
        },
    }
    return Build(
        table="plan",
        version=VERSION,
        schema=schema,
        settings=settings,
        inputs=("prompts",) if generated else (),
        build=partial(_build, plan, sources, shares),
        state=lambda store: extra_of(store, rounds)["rounds"],
    )
