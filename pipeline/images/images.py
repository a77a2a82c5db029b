"""The `plan` table in, the `images` table out: generated, requested or imported PNG images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import (
    Discriminator,
    Field,
    Tag,
)

from pipeline import AigiError
from pipeline.images.diffuser import (
    PLACES,
    Diffuser,
    DiffusersSource,
    check_weights,
    prompt_reader,
)
from pipeline.images.endpoint import Endpoint, HttpSource, check_endpoint, local_http
from pipeline.images.importer import Importer
from pipeline.images.models import check_zoo, of_member, unusable, without
from pipeline.models.hub import of_model
from pipeline.outside import Unreachable
from pipeline.pictures.sources import ImportSource, OriginalSource
from pipeline.plan import specification
from pipeline.plan.imports import local_import
from pipeline.plan.quotas import Plan, chosen
from pipeline.plan.rounds import by_model
from pipeline.plan.specification import Dataset, DiffusersSpec, DrawnSpec, HttpSpec, ZooSpec
from pipeline.progress import Progress
from pipeline.prompts.prompts import Model
from pipeline.settings import SPLITS, Count, Settings
from pipeline.stage import Compute, Map
from pipeline.store import Store
from pipeline.tables import IMAGES


def _kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return str(kind or "diffusers")


LocalSource = Annotated[
    Annotated[DiffusersSource, Tag("diffusers")]
    | Annotated[HttpSource, Tag("http")]
    | Annotated[ImportSource, Tag("import")]
    | Annotated[OriginalSource, Tag("pku")],
    Discriminator(_kind),
]


class Images(Settings):
    """The `plan` table in, the `images` table out (PNG bytes and provenance)."""

    png: Literal["fast", "small"] = Field(
        "fast", description="small: 3 to 4 % fewer bytes at a tenth of the speed"
    )
    encode_threads: Count | None = Field(None, description="null: all cores, up to 8")


VERSION = 1


def local_diffusers(sources: Mapping[str, LocalSource], name: str) -> DiffusersSource:
    """How a generated source runs on this machine; defaults without an entry in `sources`."""
    source = sources.get(name, DiffusersSource())
    if not isinstance(source, DiffusersSource):
        raise AigiError(f"sources.{name}.kind: the specification has diffusers, not {source.kind}")
    return source


class ImageMaker:
    """Plan rows of one shard in, images out; holds the model of one source at a time."""

    def __init__(
        self,
        settings: Images,
        sources: Mapping[str, LocalSource],
        dataset: Dataset,
        compute: Compute,
    ) -> None:
        import torch

        torch.set_num_threads(compute.threads)
        self.settings, self.sources, self.dataset = settings, sources, dataset
        self.device = compute.device
        self.workers = 1 if compute.ray is None else compute.workers
        self.held: tuple[str, int | None, str] | None = None
        self.maker: Diffuser | Endpoint | Importer | None = None
        self.unusable: dict[tuple[str, int | None, str], str] = {}

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """Yield IMAGES chunks in row order, from row `start` on, at which a batch begins.

        Raises:
            AigiError: the model cannot be loaded; one of a zoo costs its own rows instead.
        """
        first = rows.slice(0, 1).to_pylist()[0]
        name, revision = first["source"], first["revision"]
        spec = self.dataset.sources[name]
        number = spec.number_of(first) if isinstance(spec, ZooSpec) else None
        wanted = (name, number, revision)
        if wanted not in self.unusable and (self.maker is None or self.held != wanted):
            # The old model goes first: two do not fit on a GPU.
            self.maker = self.held = None
            try:
                self.maker, self.held = self._make(*wanted), wanted
            except Exception as error:
                if not isinstance(spec, ZooSpec) or number is None or not of_model(error):
                    raise
                self.unusable[wanted] = unusable(spec.members[number], error)
        if wanted in self.unusable or self.maker is None:
            yield from without(rows.slice(start), self.unusable[wanted])
        elif isinstance(self.maker, Diffuser):
            yield from self.maker(rows, start)
        else:
            yield from self.maker(rows.slice(start))

    @property
    def loaded(self) -> Mapping[str, str]:
        """Digests of the weights of the model that it holds, by source and component."""
        if self.held is None or not isinstance(self.maker, Diffuser):
            return {}
        name, number, _ = self.held
        of = name if number is None else f"{name}.{number:04d}"
        return {f"{of}.{part}": sha for part, sha in self.maker.loaded.items()}

    def _make(self, name: str, number: int | None, revision: str) -> Diffuser | Endpoint | Importer:
        spec = self.dataset.sources[name]
        if isinstance(spec, DrawnSpec):
            local = local_diffusers(self.sources, name)
            if isinstance(spec, ZooSpec):
                if number is None:
                    raise AigiError(f"sources.{name}: a row has a model that is not in the list")
                spec = spec.members[number]
                local = of_member(local, spec)
            made = Diffuser(
                name,
                # The plan pinned the revision; the specification may say `main`.
                spec.model_copy(update={"revision": revision}),
                local,
                self.device,
                self.settings.png,
                self.settings.encode_threads,
            )
            # One of many models may make nothing but noise: that costs its own rows.
            made.every_row_may_fail = number is not None
            return made
        if isinstance(spec, HttpSpec):
            http = local_http(self.sources, name)
            return Endpoint(name, spec, http, self.settings.png, self.workers)
        return Importer(local_import(self.sources, name), self.settings.png)


def _read(store: Store, shard: str) -> pa.Table:
    return store.read("plan", shard)


def _names(store: Store) -> list[str]:
    return by_model(store.shards("plan"))


def check_sources(plan: Plan, sources: Mapping[str, LocalSource]) -> list[str]:
    """Check that the models of all generated sources are there and the expected ones.

    An endpoint must answer, take the key and offer the model.

    Returns: what is assumed of models, a line each.

    Raises:
        AigiError: names every source, and what is missing or changed.
    """
    dataset = specification.load(plan.dataset)
    said: list[str] = []
    problems: list[str] = []
    for name in chosen(dataset, plan):
        spec = dataset.sources[name]
        if isinstance(spec, DiffusersSpec):
            try:
                said += check_weights(name, spec, local_diffusers(sources, name))
            except Unreachable:
                raise
            except AigiError as error:
                problems.append(str(error))
        elif isinstance(spec, ZooSpec):
            said += check_zoo(name, spec, local_diffusers(sources, name))
        elif isinstance(spec, HttpSpec):
            check_endpoint(name, spec, local_http(sources, name))
    if problems:
        raise AigiError("\n".join(problems))
    return said


def prompt_models(plan: Plan, sources: Mapping[str, LocalSource]) -> dict[str, Model]:
    """How the models of all generated sources read their prompts, by source.

    Raises:
        AigiError: from `reader`: a model or its tokenizer is missing.
    """
    dataset = specification.load(plan.dataset)
    found = {}
    for name in chosen(dataset, plan):
        spec = dataset.sources[name]
        if isinstance(spec, ZooSpec) and spec.reads_clip:
            found[name] = Model({})
        if not isinstance(spec, DiffusersSpec):
            continue
        if spec.pipeline in ("sd", "sdxl"):
            found[name] = Model({})  # CLIP's, whatever the model
            continue
        settings = {
            "pipeline": spec.pipeline,
            "model": spec.config or spec.model,
            "revision": spec.revision,
            "max_sequence_length": spec.options.get("max_sequence_length"),
        }
        local = local_diffusers(sources, name)
        found[name] = Model(settings, partial(prompt_reader, name, spec, local))
    return found


def _imported(keeps: Mapping[str, bool], shard: str) -> bool | None:
    """Whether an imported shard keeps metadata; None for a shard that is generated."""
    return next(
        (
            keep
            for name, keep in keeps.items()
            if any(shard.startswith(f"{name}-{split}-") for split in SPLITS)
        ),
        None,
    )


def _outside(keeps: Mapping[str, bool], store: Store, shard: str) -> Any:
    return _imported(keeps, shard)


def _outdated(
    keeps: Mapping[str, bool], store: Store, names: Sequence[str], progress: Progress
) -> set[str]:
    """Imports of a version of aigi that left their metadata in: they are made again without."""
    record = store.record("images")
    before = {} if record is None else record.shards
    found = {
        name
        for name in names
        if _imported(keeps, name) is False and name in before and before[name].made_from is None
    }
    if found:
        progress.say(
            f"images: {len(found)} imported shards of an earlier version may contain metadata; "
            "they are made again without it"
        )
    return found


def stage(
    settings: Images, plan: Plan, sources: Mapping[str, LocalSource], compute: Compute
) -> Map:
    """The images stage, over the sources that the plan has."""
    dataset = specification.load(plan.dataset)
    recorded: dict[str, Any] = {}
    keeps: dict[str, bool] = {}
    for name in chosen(dataset, plan):
        spec = dataset.sources[name]
        if isinstance(spec, DrawnSpec):
            # The folder is only where a copy is stored; the specification pins its content.
            local = local_diffusers(sources, name)
            recorded[name] = local.model_dump(mode="json", exclude={"folder", *PLACES})
        elif isinstance(spec, HttpSpec):
            # Where it is and how fast it is asked decides no byte that could be known here.
            recorded[name] = {"kind": local_http(sources, name).kind}
        else:
            # Whether metadata is kept counts for the imported shards alone; see `_outside`.
            imported = local_import(sources, name)
            recorded[name] = imported.model_dump(mode="json", exclude={"keep_metadata"})
            keeps[name] = imported.keep_metadata
    return Map(
        table="images",
        version=VERSION,
        schema=IMAGES,
        settings={
            "png": settings.png,
            "threads": compute.threads,
            "sources": recorded,
        },
        inputs=("plan",),
        names=_names,
        read=_read,
        make_worker=partial(ImageMaker, settings, sources, dataset, compute),
        check=partial(check_sources, plan, sources),
        outside=partial(_outside, keeps),
        outdated=partial(_outdated, keeps),
        unit="pair_id",
        keeps=("device", "versions"),
    )
