"""Dataset specification, prompts and import lists in, the `plan` table out: one row an image.

A plan shard has one source, one split and one size. Seeds and ids are hashes of what they stand
for, so the same specification and prompts give the same plan anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline import AigiError
from pipeline.dataset import regenerate, specification
from pipeline.dataset.importer import list_captions, open_import
from pipeline.dataset.manifest import PLAN_FILE
from pipeline.dataset.original import OriginalPictures
from pipeline.dataset.pictures import Escapes, FolderPictures, ParquetPictures, ZipPictures
from pipeline.dataset.specification import Dataset, DiffusersSpec, ImportSpec, SplitSpec
from pipeline.dataset.text import normalise, prompt_id, split_of
from pipeline.pixels import BadPicture, image_size
from pipeline.progress import Progress
from pipeline.run import Build
from pipeline.tables import PLAN, REJECTS, Shard, Store
from pipeline.workflow import ImportedSource, OriginalSource, SplitShares, Workflow
from pipeline.workflow import Plan as PlanSettings

VERSION = 1
# The published release is about 455 GB of PNG for 3.0e11 pixels.
BYTES_PER_PIXEL = 1.5
# Of a picture whose header does not say.
UNKNOWN_PIXELS = 4_000_000
HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Quota:
    """What is wanted of one source and split, and what is planned for it."""

    source: str
    split: str
    spec: SplitSpec
    generations: int
    planned: int
    prompts: int
    shards: int

    @property
    def images(self) -> int:
        """Images wanted in the release."""
        return self.generations * len(self.spec.watermarks)


def seed_of(prompt: str, source: str, index: int, salt: int) -> int:
    """63-bit seed of one generation: a hash of prompt id, source and index."""
    digest = hashlib.sha256(f"seed:{salt}:{prompt}:{source}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _image_id(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _pair_id(ids: dict[str, str]) -> str | None:
    """The unmarked variant's id, where there is one; null where a picture has no variants.

    Args:
        ids: image id of every watermark of one picture, in the order of the specification.
    """
    return ids.get("none", next(iter(ids.values()))) if len(ids) > 1 else None


def _generations(spec: SplitSpec, plan: PlanSettings, found: int = 0) -> int:
    """Generations wanted; `found` where the count is open."""
    count = found if spec.count is None else spec.count
    return count if plan.limit is None else min(count, plan.limit)


def shard_rows(width: int, height: int, variants: int, shard_mb: float) -> int:
    """Generations a shard: about `shard_mb` of PNG, in multiples of 16 where that many fit."""
    fit = int(shard_mb * 1e6 / (BYTES_PER_PIXEL * width * height * variants))
    return max(1, fit - fit % 16 if fit >= 16 else fit)


def chosen(dataset: Dataset, plan: PlanSettings) -> list[str]:
    """Names of the sources to plan.

    Raises:
        AigiError: a name that the specification does not have.
    """
    for name in plan.sources or ():
        if name not in dataset.sources:
            raise AigiError(
                f"plan.sources: {name!r} is not in {plan.dataset}, which has "
                + ", ".join(dataset.sources)
            )
    return [name for name in dataset.sources if plan.sources is None or name in plan.sources]


def quotas(dataset: Dataset, plan: PlanSettings) -> list[Quota]:
    """Counts of every source and split, from the specification alone (for `--dry-run`)."""
    found = []
    for name in chosen(dataset, plan):
        source = dataset.sources[name]
        for split in specification.SPLITS:
            spec = source.splits.get(split)
            if spec is None:
                continue
            wanted = _generations(spec, plan)
            planned = math.ceil(wanted * (1 + plan.margin))
            each = source.images_per_prompt if isinstance(source, DiffusersSpec) else 1
            rows = shard_rows(
                spec.width or 1024, spec.height or 1024, len(spec.watermarks), plan.shard_mb
            )
            found.append(
                Quota(
                    source=name,
                    split=split,
                    spec=spec,
                    generations=wanted,
                    planned=planned,
                    prompts=math.ceil(planned / each),
                    shards=math.ceil(planned / rows),
                )
            )
    return found


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


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=PLAN)


def rank_of(rank: int, prompts: int, each: int) -> tuple[int, int]:
    """Which prompt, and its how-manyth image, a rank stands for.

    Every prompt gets `each` images in turn; ranks beyond the last one begin again at the first
    prompt, with new seeds.
    """
    lap, rest = divmod(rank, prompts * each)
    return rest // each, lap * each + rest % each


def _generated(
    name: str,
    spec: DiffusersSpec,
    split: str,
    prompts: list[_Prompt],
    plan: PlanSettings,
    rounds: list[int],
) -> Iterator[tuple[int, pa.Table]]:
    """Shards of one generated source and split, prompt after prompt, with their rounds.

    `rounds` says how many generations each top-up round adds.
    """
    size = spec.splits[split]  # type: ignore[index]
    wanted = _generations(size, plan)
    planned = math.ceil(wanted * (1 + plan.margin))
    need = math.ceil(planned / spec.images_per_prompt)
    if len(prompts) < need:
        raise AigiError(
            f"plan: {name} {split}: needs {need:,} {split} prompts "
            f"({planned:,} images, {spec.images_per_prompt} a prompt), the prompts table has "
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
    }
    deciding = {key: value for key, value in fixed.items() if key not in ("split", "path")}
    each = shard_rows(size.width or 0, size.height or 0, len(size.watermarks), plan.shard_mb)
    rows: list[dict[str, Any]] = []
    for number, first, last in _spans([planned, *rounds]):
        for rank in range(first, last):
            at, index = rank_of(rank, len(prompts), spec.images_per_prompt)
            prompt = prompts[at]
            seed = seed_of(prompt.prompt_id, name, index, plan.seed)
            ids = {
                watermark: _image_id(
                    {**deciding, "text": prompt.text, "seed": seed, "watermark": watermark}
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
                        "pair_id": _pair_id(ids),
                        "index": index,
                        "rank": rank,
                        "round": number,
                    }
                )
            if (rank + 1 - first) % each == 0 or rank + 1 == last:
                yield number, _table(rows)
                rows = []


def _spans(counts: list[int]) -> Iterator[tuple[int, int, int]]:
    """Number of each round with the first rank and the end of its ranks."""
    end = 0
    for number, count in enumerate(counts):
        yield number, end, end + count
        end += count


@dataclass(frozen=True, slots=True)
class _Import:
    path: str
    prompt_id: str
    text: str
    split: str
    variants: Mapping[str, str] | None  # path by watermark, where they come marked


def _imports(
    name: str, source: ImportedSource, shares: SplitShares, rejects: list[dict[str, Any]]
) -> list[_Import]:
    """Pictures of an import with caption and split, in the order in which they are planned.

    That is the order of their prompts' hashes, so that a part of them is a fair one; of the
    original release it is the order on disk, which is the fast one to read archives in.
    """
    found = []
    if isinstance(source, OriginalSource):
        where, original = source.path, True
    else:
        where, original = source.captions or source.path, False
    for number, listed in enumerate(list_captions(source), start=1):
        path, caption, problem, stated, line, variants = listed
        text = normalise(caption) if caption is not None else ""
        if problem is None and not text:
            problem = "no caption"
        if problem is None and stated is not None and stated not in specification.SPLITS:
            problem = f"unknown split: {stated}"
        if problem is not None:
            rejects.append(
                {
                    "source": name,
                    "file": f"{where}:{path}",
                    "line": line if original else number,
                    "reason": problem,
                    "text": text,
                }
            )
            continue
        identity = prompt_id(text)
        split = stated or split_of(identity, shares)
        found.append(_Import(path, identity, text, split, variants))
    if not original:
        found.sort(key=lambda item: (item.prompt_id, item.path))
    return found


def _imported(
    name: str,
    spec: ImportSpec,
    source: ImportedSource,
    split: str,
    pictures: list[_Import],
    plan: PlanSettings,
    rounds: list[int],
) -> Iterator[tuple[int, pa.Table]]:
    size = spec.splits[split]  # type: ignore[index]
    wanted = _generations(size, plan, len(pictures))
    first = min(len(pictures), math.ceil(wanted * (1 + plan.margin)))
    planned = min(len(pictures), first + sum(rounds))
    round_of = [
        number for number, start, end in _spans([first, *rounds]) for _ in range(start, end)
    ]
    width, height = (None, None) if source.fit == "keep" else (size.width, size.height)
    pixels = _pixels(source, [picture.path for picture in pictures[:planned]], width, height)
    seen: dict[str, int] = defaultdict(int)
    rows: list[dict[str, Any]] = []
    full = plan.shard_mb * 1e6 / BYTES_PER_PIXEL
    held = 0
    # The original release has its marked pictures; elsewhere we make them.
    watermarks = ("none",) if isinstance(source, OriginalSource) else size.watermarks
    for rank, picture in enumerate(pictures[:planned]):
        paths = picture.variants or dict.fromkeys(watermarks, picture.path)
        each = pixels[rank] * len(paths)
        if rows and (held + each > full or round_of[rank] != rows[-1]["round"]):
            yield rows[-1]["round"], _table(rows)
            rows, held = [], 0
        held += each
        index = seen[picture.prompt_id]
        seen[picture.prompt_id] += 1
        ids = {
            # Without a watermark the id is what it was before imports could have one.
            watermark: _image_id(
                {"source": name, "path": path, "text": picture.text}
                | ({} if watermark == "none" else {"watermark": watermark})
            )
            for watermark, path in paths.items()
        }
        for watermark, image_id in ids.items():
            rows.append(
                {
                    "image_id": image_id,
                    "prompt_id": picture.prompt_id,
                    "text": picture.text,
                    "split": split,
                    "source": name,
                    "model": spec.model,
                    "revision": spec.revision,
                    "width": width,
                    "height": height,
                    "watermark": watermark,
                    "pair_id": _pair_id(ids),
                    "path": paths[watermark],
                    "index": index,
                    "rank": rank,
                    "round": round_of[rank],
                }
            )
    if rows:
        yield rows[-1]["round"], _table(rows)


def _pixels(
    source: ImportedSource, names: list[str], width: int | None, height: int | None
) -> list[int]:
    """Pixels of each picture: what the specification says, else what its file header says."""
    if width is not None and height is not None:
        return [width * height] * len(names)
    with open_import(source) as pictures:
        if isinstance(pictures, ParquetPictures):
            return [UNKNOWN_PIXELS] * len(names)
        return [_pixels_of(pictures, name) for name in names]


def _pixels_of(pictures: FolderPictures | ZipPictures | OriginalPictures, name: str) -> int:
    try:
        size = image_size(pictures.head(name, HEADER_BYTES))
    except (BadPicture, Escapes):  # its row will say so
        size = None
    return UNKNOWN_PIXELS if size is None else size[0] * size[1]


def _stated_splits(
    imports: dict[str, list[_Import]], rejects: list[dict[str, Any]]
) -> dict[str, str]:
    """Splits that import lists state; they win over the hash, for every source alike.

    Two lists that disagree over one prompt are settled for the held-out side, test first.
    """
    order = {split: rank for rank, split in enumerate(("test", "validation", "train"))}
    stated: dict[str, str] = {}
    for pictures in imports.values():
        for picture in pictures:
            old = stated.get(picture.prompt_id)
            if old is None or order[picture.split] < order[old]:
                stated[picture.prompt_id] = picture.split
    for name, pictures in imports.items():
        for picture in pictures:
            if stated[picture.prompt_id] != picture.split:
                rejects.append(
                    {
                        "source": name,
                        "file": picture.path,
                        "line": None,
                        "reason": f"split: listed as {picture.split}, but its prompt is in "
                        f"{stated[picture.prompt_id]}",
                        "text": picture.text,
                    }
                )
        imports[name] = [p for p in pictures if stated[p.prompt_id] == p.split]
    return stated


def _pinned(name: str, spec: DiffusersSpec, source: object) -> str:
    """The commit that a branch name of the specification stands for now.

    Raises:
        AigiError: the Hub does not answer, or has no such model.
    """
    local = getattr(source, "folder", None) is not None
    if local or re.fullmatch(r"[0-9a-f]{40}", spec.revision):
        return spec.revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = HfApi().model_info(spec.model, revision=spec.revision).sha
    except (HfHubHTTPError, OSError) as error:
        raise AigiError(
            f"sources.{name}: cannot look up revision {spec.revision!r} of {spec.model}: {error}\n"
            f"Give a commit hash in the specification, or a local copy: sources.{name}.folder"
        ) from error
    if not commit:
        raise AigiError(f"sources.{name}: {spec.model} has no commit at {spec.revision!r}")
    return str(commit)


_ROUNDS = "_rounds.json"


def _extra(store: Store, rounds: Iterable[Mapping[str, int]] = ()) -> dict[str, Any]:
    """Commits that the first round pinned, and generations that each top-up round adds.

    Args:
        rounds: those that a plan begins with (that of a manifest).
    """
    return store.read_json("plan", _ROUNDS) or {"pins": {}, "rounds": list(rounds)}


def added(store: Store) -> list[dict[str, int]]:
    """Generations that each top-up round added to each `source/split`."""
    return list(_extra(store)["rounds"])


def pinned(dataset: Dataset, store: Store) -> Dataset:
    """The specification with the commits that the plan's rows were given."""
    pins = _extra(store)["pins"]
    sources = {
        name: spec.model_copy(update={"revision": pins[name]}) if name in pins else spec
        for name, spec in dataset.sources.items()
    }
    return dataset.model_copy(update={"sources": sources})


def shards(store: Store) -> Iterator[pa.Table]:
    """The plan shard by shard, with its name in a column `shard`: what a release carries along."""
    for name in store.shards("plan"):
        table = store.read("plan", name)
        yield table.append_column("shard", pa.array([name] * table.num_rows, pa.string()))


def summary(store: Store) -> dict[str, Any]:
    """Shards, rows, and a sha256 over the names of shards and the images that they plan."""
    digest = hashlib.sha256()
    names = list(store.shards("plan"))
    rows = 0
    for name in names:
        ids = store.read("plan", name, ["image_id"])["image_id"].to_pylist()
        digest.update(f"{name}:{','.join(ids)}\n".encode())
        rows += len(ids)
    return {"shards": len(names), "rows": rows, "sha256": digest.hexdigest()}


def top_up(store: Store, short: Mapping[str, int]) -> None:
    """Ask for one more round: generations to add to each `source/split`.

    The plan is a function of its settings and these numbers; its next build adds the shards.
    """
    extra = _extra(store)
    extra["rounds"].append(dict(short))
    store.write_json(extra, "plan", _ROUNDS)


def rounds_made(store: Store) -> int:
    """Top-up rounds that the plan has had."""
    return len(_extra(store)["rounds"])


def exhausted(store: Store, name: str) -> bool:
    """Whether the last round asking for more of `source/split` got less: an import's end."""
    asked = [(i, more[name]) for i, more in enumerate(_extra(store)["rounds"], 1) if name in more]
    if not asked:
        return False
    number, count = asked[-1]
    source, split = name.split("/")
    prefix = shard_name(source, split, number, 0).removesuffix("00000")
    found = sum(
        store.rows("plan", shard) or 0 for shard in store.shards("plan") if shard.startswith(prefix)
    )
    return bool(found < count)


def shard_name(source: str, split: str, number: int, shard: int) -> str:
    """Name of a plan shard; those of a top-up round sort after those of the rounds before."""
    return f"{source}-{split}-" + (f"round{number}-" if number else "") + f"{shard:05d}"


def _build(workflow: Workflow, store: Store, progress: Progress) -> list[Shard]:
    assert workflow.plan is not None
    plan = workflow.plan
    dataset = specification.load(plan.dataset)
    names = chosen(dataset, plan)
    rejects: list[dict[str, Any]] = []
    imports: dict[str, list[_Import]] = {}
    for name in names:
        if isinstance(dataset.sources[name], ImportSpec):
            source = local_import(workflow, name)
            imports[name] = _imports(name, source, workflow.split, rejects)
    stated = _stated_splits(imports, rejects)
    prompts: list[_Prompt] = []
    if any(isinstance(dataset.sources[name], DiffusersSpec) for name in names):
        prompts = [
            _Prompt(p.prompt_id, p.text, p.source, stated.get(p.prompt_id, p.split))
            for p in _read_prompts(store)
        ]
    made = []
    manifest = None if plan.manifest is None else regenerate.read_manifest(plan.manifest)
    extra = _extra(store, [] if manifest is None else manifest["plan"]["rounds"])
    for name in names:
        spec = dataset.sources[name]
        if isinstance(spec, DiffusersSpec):
            # A later round is made by the same commit as the first one, wherever a branch went.
            pins = extra["pins"]
            pins[name] = pins.get(name) or _pinned(name, spec, workflow.sources.get(name))
            spec = spec.model_copy(update={"revision": pins[name]})
        for split in specification.SPLITS:
            if split not in spec.splits:
                continue
            rounds = [more.get(f"{name}/{split}", 0) for more in extra["rounds"]]
            if isinstance(spec, DiffusersSpec):
                usable = [
                    p
                    for p in prompts
                    if p.split == split and (spec.captions is None or p.source in spec.captions)
                ]
                shards = _generated(name, spec, split, usable, plan, rounds)
            else:
                mine = [p for p in imports[name] if p.split == split]
                wanted = _generations(spec.splits[split], plan)
                # Without a stated count, as many are wanted as there are.
                if len(mine) < wanted or (wanted < len(mine) and wanted and plan.limit is None):
                    progress.say(
                        f"plan: {name} {split}: {len(mine):,} pictures found, {wanted:,} wanted"
                    )
                source = local_import(workflow, name)
                shards = _imported(name, spec, source, split, mine, plan, rounds)
            numbers: dict[int, int] = defaultdict(int)
            for number, table in shards:
                shard = shard_name(name, split, number, numbers[number])
                made.append(store.write("plan", shard, table, PLAN))
                numbers[number] += 1
    store.write_json(extra, "plan", _ROUNDS)
    if not made:
        raise AigiError("plan: nothing to make; look at plan.sources, plan.limit and the rejects")
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
    """Refuse a plan that was made anew and is not the one of the manifest."""
    found, expected = summary(store), manifest["plan"]
    if all(found[key] == expected[key] for key in found):
        return
    here = (store.read_json("_stages", "prompts.json") or {}).get("settings", {})
    contents = [source.get("content") for source in here.get("sources", [])]
    captions = [
        f"  {line['file']}: other content than the file of that name had there"
        for line, content in zip(manifest["captions"], contents, strict=False)
        if line["content"] != content
    ]
    raise AigiError(
        f"plan: {found['rows']:,} images in {found['shards']:,} shards, and not those of "
        f"{manifest['name']} {manifest['version']} ({expected['rows']:,} in "
        f"{expected['shards']:,}).\n"
        + "\n".join(captions or ["  The captions are the same: is it the same version of aigi?"])
        + f"\nThe release itself carries its plan: take the manifest beside {PLAN_FILE}."
    )


def _copy(workflow: Workflow, store: Store, progress: Progress) -> list[Shard]:
    """The plan that lies beside a manifest, as it is; of the sources that are asked for."""
    assert workflow.plan is not None
    assert workflow.plan.manifest is not None
    location = workflow.plan.manifest
    manifest = regenerate.read_manifest(location)
    made = []
    for table in regenerate.read_plan(location, manifest):
        source, name = table["source"][0].as_py(), table["shard"][0].as_py()
        if workflow.plan.sources is None or source in workflow.plan.sources:
            made.append(store.write("plan", name, table.drop_columns(["shard"]), PLAN))
    if not made:
        raise AigiError(f"plan.sources: {location} has no image of these sources")
    store.write_json(_extra(store, manifest["plan"]["rounds"]), "plan", _ROUNDS)
    return made


def local_import(workflow: Workflow, name: str) -> ImportedSource:
    """The place of an imported source on this machine.

    Raises:
        AigiError: the workflow does not say where its pictures lie.
    """
    source = workflow.sources.get(name)
    if not isinstance(source, ImportedSource):
        raise AigiError(
            f"sources.{name}: this source is imported; say where its pictures lie, for example "
            f"--set sources.{name}.kind=import --set sources.{name}.path=FOLDER_OR_ZIP, "
            "or leave it out with plan.sources"
        )
    return source


def stage(workflow: Workflow) -> Build:
    """The plan stage of a workflow that has a plan section."""
    assert workflow.plan is not None
    dataset = specification.load(workflow.plan.dataset)
    names = chosen(dataset, workflow.plan)
    generated = any(isinstance(dataset.sources[name], DiffusersSpec) for name in names)
    location, rounds = workflow.plan.manifest, []
    if location is not None:
        manifest = regenerate.read_manifest(location)
        if regenerate.plan_beside(location, manifest) is not None:
            return Build(
                table="plan",
                version=VERSION,
                schema=PLAN,
                settings={"plan": manifest["plan"], "sources": names},
                inputs=(),
                build=partial(_copy, workflow),
            )
        rounds = manifest["plan"]["rounds"]
    settings = {
        "dataset": {
            name: dataset.sources[name].model_dump(
                mode="json", exclude={"title", "licence", "licence_url"}
            )
            for name in names
        },
        **workflow.plan.model_dump(mode="json", exclude={"dataset", "sources", "manifest"}),
        "split": workflow.split.model_dump(mode="json"),
        "imports": {
            name: local_import(workflow, name).model_dump(mode="json")
            for name in names
            if isinstance(dataset.sources[name], ImportSpec)
        },
    }
    return Build(
        table="plan",
        version=VERSION,
        schema=PLAN,
        settings=settings,
        inputs=("prompts",) if generated else (),
        build=partial(_build, workflow),
        state=lambda store: _extra(store, rounds)["rounds"],
    )
