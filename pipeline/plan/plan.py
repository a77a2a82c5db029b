"""Dataset specification, prompts and import lists in, the `plan` table out: one row per image.

A plan shard has one source, one split and one size. Seeds and ids are hashes of what they
identify, so the same specification and prompts give the same plan anywhere.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import RootModel

from pipeline import AigiError, gate
from pipeline.files import signature
from pipeline.manifest import PLAN_FILE, plan_beside, read_manifest
from pipeline.models.hub import hub_api, hub_errors, of_model
from pipeline.outside import in_short
from pipeline.pictures.sources import ImportedSource
from pipeline.plan import specification
from pipeline.plan.copied import read_plan
from pipeline.plan.generated import Part, named, parts_of, write_parts, write_shards
from pipeline.plan.ids import spans
from pipeline.plan.imports import (
    Import,
    imported_shards,
    listed_imports,
    local_import,
    stated_splits,
)
from pipeline.plan.quotas import Plan, chosen, generations_of, shard_rows
from pipeline.plan.rounds import REMEDY, ROUNDS, extra_of, pinned_source, summary
from pipeline.plan.specification import (
    DiffusersSpec,
    DrawnSpec,
    ImportSpec,
    PromptedSpec,
    some_options,
)
from pipeline.plan.usable import Prompts, Stated, Usable
from pipeline.progress import Progress
from pipeline.prompts.text import SplitShares
from pipeline.rows.rows import ENDINGS
from pipeline.rows.shards import content_of
from pipeline.settings import SPLITS
from pipeline.stage import Build, Compute
from pipeline.store import Shard, Store
from pipeline.tables import PLAN, REJECTS, with_options

VERSION = 1
LISTS = "_lists.json"
"""Beside the plan of a run with imports: what these were made from."""
SPLITS_BEFORE, PATHS_BEFORE = "_splits.arrow", "_paths.arrow"
"""Beside the plan of a run that has grown: prompts that it had before, with their splits; and its
imported images, in order."""
_PATHS = pa.schema([("source", pa.string()), ("path", pa.string())])
_SPLITS = pa.schema([("prompt_id", pa.string()), ("split", pa.string())])


def _generated(
    name: str,
    spec: PromptedSpec,
    split: str,
    usable: Usable,
    plan: Plan,
    rounds: list[int],
    options: bool,
) -> Iterator[Part]:
    """The parts of one generated source and split.

    Args:
        rounds: generations that each top-up round adds.
        options: whether the plan has a column of options.
    """
    size = spec.splits[split]  # type: ignore[index]
    wanted = generations_of(size, plan)
    planned = math.ceil(wanted * (1 + plan.margin))
    need = math.ceil(planned / spec.images_per_prompt)
    if len(usable) < need:
        raise _TooFew(
            f"plan: {name} {split}: needs {need:,} {split} prompts "
            f"({planned:,} images, {spec.images_per_prompt} per prompt); the prompts table has "
            f"{len(usable):,} that it may use."
        )
    each = shard_rows(size.width or 0, size.height or 0, len(size.watermarks), plan.shard_mb)
    return parts_of(name, spec, split, usable, plan.seed, each, options, spans([planned, *rounds]))


class _TooFew(AigiError):
    """A source lacks prompts; why, who has all prompts can tell."""


def _cause(
    name: str, spec: PromptedSpec, split: str, there: Mapping[tuple[str, str], int], usable: int
) -> str:
    """Why a source has too few prompts, and the setting that cures it: sentences.

    Args:
        there: prompts by split and caption source.
        usable: those of this split that it may use.
    """
    of = Counter[str]()
    for (each, source), count in there.items():
        if each == split:
            of[source] += count
    barred = {s: n for s, n in of.items() if spec.captions is not None and s not in spec.captions}
    if barred:
        listed = ", ".join(f"{source} ({count:,})" for source, count in sorted(barred.items()))
        return (
            f"{'It' if usable else 'The reason: it'} may not use those of {listed}: the "
            f"specification has sources.{name}.captions: [{', '.join(spec.captions or ())}]. Name "
            "them there, or set captions: any; or name the caption source as the specification "
            "does (prompts.sources.N.name)."
        )
    elsewhere = sum(there.values()) - of.total()
    if not of.total() and elsewhere:
        return (
            f"All {elsewhere:,} prompts are in other splits: {more_in(split)}, or raise "
            "prompts.select.count, so that some fall into it by chance."
        )
    return (
        f"Raise prompts.select.count, {more_in(split)}, add caption sources, or lower plan.limit."
    )


def more_in(split: str) -> str:
    """How a larger share of the prompts comes into a split, in words."""
    if split == "train":
        return "lower split.validation or split.test"
    return f"raise split.{split}"


class _Lists(RootModel[dict[str, dict[str, dict[str, Any]]]]):
    """By source: what the files that it is made from were when the plan was made."""


def _lists(
    sources: Mapping[str, object], names: Iterable[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """What imports are made from, as far as one can see without opening each image."""
    found = {}
    for name in names:
        source = local_import(sources, name)
        captions = getattr(source, "captions", None)
        # A list says what is planned; a file of it that is gone costs its row alone.
        if captions is None:
            found[name] = {"path": signature(source.path)}
        else:
            found[name] = {"captions": content_of(captions, ENDINGS)}
    return found


def changed_lists(store: Store, sources: Mapping[str, object]) -> list[str]:
    """Imported sources of a run whose files are not those that its plan was made from: a line each.

    Plans of before did not note them, so nothing is known of theirs.
    """
    found = store.read_json("plan", LISTS, remedy=REMEDY) or {}
    before = gate.check(_Lists, found, store.path("plan", LISTS), REMEDY).root
    names = [name for name in before if isinstance(sources.get(name), ImportedSource)]
    now = _lists(sources, names)
    return [
        f"sources.{name}.{key}: the files there have changed"
        for name in names
        for key in now[name]
        if now[name][key] != before[name].get(key)
    ]


def keep_before(store: Store, beside: Store) -> None:
    """Note what a run has planned, for its next plan: no prompt changes its split or its place."""
    table = store.read_all("plan", ["prompt_id", "split", "source", "path", "rank"])
    splits = table.group_by(["prompt_id", "split"]).aggregate([]).cast(_SPLITS)
    beside.write_arrow([splits], _SPLITS, "plan", SPLITS_BEFORE)
    paths = table.filter(pc.is_valid(table["path"])).sort_by("rank").select(_PATHS.names)
    beside.write_arrow([paths.cast(_PATHS)], _PATHS, "plan", PATHS_BEFORE)


def _splits_before(store: Store) -> dict[str, str]:
    """Splits of prompts that a run had before it grew."""
    table = store.read_arrow("plan", SPLITS_BEFORE)
    return {} if table is None else dict(zip(*(c.to_pylist() for c in table.columns), strict=True))


def _first_before(store: Store, imports: dict[str, list[Import]]) -> None:
    """Put images that a run had before it grew before those that were found since."""
    table = store.read_arrow("plan", PATHS_BEFORE)
    rows = [] if table is None else table.to_pylist()
    places = {(row["source"], row["path"]): place for place, row in enumerate(rows)}
    for name, pictures in imports.items() if places else ():

        def place(picture: Import, name: str = name) -> int:
            paths = (picture.path, *(picture.variants or {}).values())
            return min(places.get((name, path), len(places)) for path in paths)

        pictures.sort(key=place)


def _write_rejects(store: Store, rejects: list[dict[str, Any]]) -> str:
    """Write what was refused, whatever comes of the others.

    Returns: their reasons, the first one and where all are, for an error; empty: there are none.
    """
    store.write("rejects", "plan", pa.Table.from_pylist(rejects, schema=REJECTS), REJECTS)
    if not rejects:
        return ""
    reasons = Counter(str(row["reason"]).split(":")[0] for row in rejects)
    counts = ", ".join(f"{count:,} {why}" for why, count in reasons.most_common())
    first = rejects[0]
    return (
        f"{len(rejects):,} images were refused: {counts}; first {first['file']}: "
        f"{first['reason']}; all in {store.path('rejects', 'plan.parquet')}"
    )


def _pinned(name: str, spec: DiffusersSpec, source: object) -> str:
    """The commit that a branch name of the specification points to now.

    Raises:
        AigiError: the Hub does not answer, or has no such model.
    """
    # What one file was made from, its sha256 says.
    folder = getattr(source, "folder", None) is not None or spec.file is not None
    if folder or re.fullmatch(r"[0-9a-f]{40}", spec.revision):
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


def _pin(
    name: str, spec: DrawnSpec, source: object, pins: dict[str, str], progress: Progress
) -> None:
    """Note the commits of today for all names of revisions that have none yet.

    Raises:
        AigiError: the Hub does not answer; or it has no such model, and the source has no other.
    """
    if isinstance(spec, DiffusersSpec):
        pins[name] = pins.get(name) or _pinned(name, spec, source)
        return
    for number, member in enumerate(spec.members):
        if (key := f"{name}/{number}") in pins:
            continue
        try:
            pins[key] = _pinned(name, member, source)
        except AigiError as error:
            if not of_model(error):
                raise
            # Its rows will say so; the others are made.
            progress.say(f"plan: {error}")


def _build(
    plan: Plan,
    sources: Mapping[str, object],
    shares: SplitShares,
    compute: Compute,
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
            notes: list[str] = []
            imports[name] = listed_imports(name, source, shares, rejects, notes)
            for note in notes:
                progress.say(f"plan: {name}: {note}")
    stated = Stated.of_mapping(stated_splits(imports, rejects, _splits_before(store)))
    _first_before(store, imports)
    refused = _write_rejects(store, rejects)
    prompts: Prompts | None = None
    if any(isinstance(dataset.sources[name], PromptedSpec) for name in names):
        prompts = Prompts(store, stated)
    made: list[Shard] = []
    rows = 0
    shards: Iterator[Shard]
    manifest = None if plan.manifest is None else read_manifest(plan.manifest)
    extra = extra_of(store, [] if manifest is None else manifest["plan"]["rounds"])
    for name in names:
        spec = dataset.sources[name]
        if isinstance(spec, DrawnSpec):
            # A later round is made by the same commit as the first one, wherever a branch went.
            _pin(name, spec, sources.get(name), extra["pins"], progress)
            spec = pinned_source(name, spec, extra["pins"])
        for split in SPLITS:
            if split not in spec.splits:
                continue
            rounds = [more.get(f"{name}/{split}", 0) for more in extra["rounds"]]
            if isinstance(spec, PromptedSpec):
                assert prompts is not None
                usable = prompts.usable(split, spec.captions)
                try:
                    parts = _generated(name, spec, split, usable, plan, rounds, options)
                except _TooFew as error:
                    why = _cause(name, spec, split, prompts.all(), len(usable))
                    raise AigiError(f"{error} {why}") from None
                shards = write_parts(store, parts, schema, compute)
            else:
                mine = [p for p in imports[name] if p.split == split]
                wanted = generations_of(spec.splits[split], plan)
                # Without a stated count, as many are wanted as there are.
                if len(mine) < wanted or (wanted < len(mine) and wanted and plan.limit is None):
                    progress.say(
                        f"plan: {name} {split}: {len(mine):,} images found, {wanted:,} needed"
                    )
                source = local_import(sources, name)
                tables = imported_shards(name, spec, source, split, mine, plan, rounds, options)
                shards = write_shards(store, named(name, split, tables), schema)
            for shard in shards:
                made.append(shard)
                rows += shard.rows
                if manifest is not None and rows > manifest["plan"]["rows"]:
                    _check_same(store, manifest)  # however many more there would be
    store.write_json(extra, "plan", ROUNDS)
    if imports:
        store.write_json(_lists(sources, imports), "plan", LISTS)
    if not made:
        raise AigiError(
            "plan: nothing to make: "
            + (f"{refused}." if refused else "check plan.sources and plan.limit.")
        )
    if refused:
        progress.say(f"plan: {refused}")
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


def stage(
    plan: Plan, sources: Mapping[str, object], shares: SplitShares, compute: Compute | None = None
) -> Build:
    """The plan stage.

    Args:
        sources: how the workflow makes or imports the sources of the specification.
        shares: shares of the prompts for each split.
        compute: where its rows are made; None: here.

    Raises:
        AigiError: the specification cannot be read, or `sources` names one that it does not have.
    """
    dataset = specification.load(plan.dataset)
    specification.check_known(plan.dataset, sources)
    names = chosen(dataset, plan)
    generated = any(isinstance(dataset.sources[name], PromptedSpec) for name in names)
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
        **plan.model_dump(mode="json", exclude={"dataset", "sources", "manifest", "reuse"}),
        "split": shares.model_dump(mode="json"),
        "imports": {
            name: local_import(sources, name).recorded()
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
        build=partial(_build, plan, sources, shares, compute or Compute()),
        state=lambda store: extra_of(store, rounds)["rounds"],
    )
