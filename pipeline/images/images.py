"""The `plan` table in, the `images` table out: generated, requested or imported images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from pipeline import AigiError
from pipeline.images import reuse
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.places import check_weights, prompt_reader
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.images.endpoint.endpoint import Endpoint, HttpSource, check_endpoint, local_http
from pipeline.images.importer import REENCODED, Importer
from pipeline.images.models import check_zoo, of_member, unusable, without
from pipeline.models.device import pick_device
from pipeline.models.hub import of_model
from pipeline.outside import Unreachable
from pipeline.pictures.sources import ImportSource, OriginalSource
from pipeline.pixels import WEBP_SIDE, Container, Format
from pipeline.plan import specification
from pipeline.plan.imports import local_import
from pipeline.plan.quotas import Plan, chosen
from pipeline.plan.rounds import by_model
from pipeline.plan.specification import Dataset, DiffusersSpec, DrawnSpec, HttpSpec, ZooSpec
from pipeline.progress import Progress
from pipeline.prompts.prompts import Model
from pipeline.retry import MISSING
from pipeline.settings import SPLITS, Count, Settings
from pipeline.stage import Compute, Map
from pipeline.store import RECORDS, Store
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


_SMALL_PNG = "png: small is an effort of PNG alone, and WebP is smaller: leave it out, or set "


class Images(Settings):
    """The `plan` table in, the `images` table out: files of images and their provenance."""

    format: Format | None = Field(
        None,
        description="how images are stored, without loss; null: as the run began, a new one in "
        f"webp. Images of more than {WEBP_SIDE:,} pixels a side are PNG, and imported 8-bit RGB "
        "PNG files keep the bytes of their pixels",
    )
    png: Literal["fast", "small"] = Field(
        "fast",
        description="effort of PNG; small: 3 to 4 % fewer bytes at a tenth of the speed, "
        "for `format: png` alone",
    )
    encode_threads: Count | None = Field(None, description="null: all cores, up to 8")
    fill_batches: bool | None = Field(
        None,
        description="make every batch as large as batch_size, so that an image does not depend on "
        "those beside it and stays the same when the dataset grows; null: as the run began, a new "
        "one does",
    )

    @model_validator(mode="after")
    def _effort_of_png(self) -> Images:
        if self.format == "webp" and self.png == "small":
            raise ValueError(f"{_SMALL_PNG}format: png")
        return self


VERSION = 1


def _before(store: Store) -> Format | None:
    """What the images of a run are stored in; None: it has none.

    Records name it where it is not PNG. Without a record, the names of the images tell.
    """
    if (record := store.record("images")) is not None:
        return "webp" if record.settings.get("format") == "webp" else "png"
    shards = list(store.shards("images"))
    paths = (path for shard in shards for path in _paths(store, shard))
    return ("webp" if any(path.endswith(".webp") for path in paths) else "png") if shards else None


def _paths(store: Store, shard: str) -> list[str]:
    with suppress(AigiError):  # a damaged shard is reported when it is used
        images = store.read("images", shard, ["image.path"])["image"]
        return [image["path"] for image in images.to_pylist() if image and image["path"]]
    return []


def _fills(store: Store) -> bool | None:
    """Whether batches of a run are filled; None: it has no images."""
    if (record := store.record("images")) is not None:
        return bool(record.settings.get("fill_batches", False))
    return False if store.shards("images") else None


def begun(settings: Images, store: Store) -> Images:
    """The section with its format and the filling of batches: the given one, else as the run began.

    A new run has WebP and fills batches.

    Raises:
        AigiError: it asks for an effort of PNG, and images become WebP.
    """
    found = settings.format or _before(store) or "webp"
    if found == "webp" and settings.png == "small":
        raise AigiError(f"images.{_SMALL_PNG}images.format: png")
    fill = settings.fill_batches
    if fill is None:
        fill = _fills(store) is not False
    return settings.model_copy(update={"format": found, "fill_batches": fill})


def check_format(settings: Images, store: Store) -> None:
    """Refuse a format that is not that of the images which a run has.

    Raises:
        AigiError: with the remedies.
    """
    before = _before(store)
    if settings.format is not None and before not in (None, settings.format):
        raise AigiError(
            f"images.format: {settings.format}, but the images of {store.url} are {before}. Leave "
            "format out to go on as the run began, use a new run directory (--set run=...), or "
            f"delete {store.path('images')} and {store.path(RECORDS, 'images.json')} to remake "
            "them."
        )


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
        self.batch_size: int | None = None  # None: of the source
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
            try:
                self.hold(*wanted)
            except Exception as error:
                if not isinstance(spec, ZooSpec) or number is None or not of_model(error):
                    raise
                self.unusable[wanted] = unusable(spec.members[number], error)
        if MISSING in rows.column_names and not isinstance(self.maker, Diffuser):
            rows = rows.filter(rows[MISSING]).drop([MISSING])  # theirs do not depend on others
        if wanted in self.unusable or self.maker is None:
            yield from without(rows.slice(start), self.unusable[wanted])
        elif isinstance(self.maker, Diffuser):
            if self.batch_size is not None:
                size = {"batch_size": self.batch_size}
                self.maker.local = self.maker.local.model_copy(update=size)
            yield from self.maker(rows, start)
        else:
            yield from self.maker(rows.slice(start))

    def hold(self, name: str, number: int | None, revision: str) -> None:
        """Load the model of a source.

        Args:
            number: in the list of a zoo; None: the source has one model.
        """
        # The old model goes first: two do not fit on a GPU.
        self.maker = self.held = None
        self.maker, self.held = self._make(name, number, revision), (name, number, revision)

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
                self._container(Container()),
                self.settings.encode_threads,
                bool(self.settings.fill_batches),
            )
            # One of many models may make nothing but noise: that costs its own rows.
            made.every_row_may_fail = number is not None
            return made
        if isinstance(spec, HttpSpec):
            http = local_http(self.sources, name)
            return Endpoint(name, spec, http, self._container(REENCODED), self.workers)
        return Importer(local_import(self.sources, name), self._container(REENCODED))

    def _container(self, usual: Container) -> Container:
        return replace(usual, format=self.settings.format or "webp", png=self.settings.png)


def _read(store: Store, shard: str) -> pa.Table:
    return store.read("plan", shard)


def _names(store: Store) -> list[str]:
    return by_model(store.shards("plan"))


def check_sources(
    plan: Plan, sources: Mapping[str, LocalSource], compute: Compute | None = None
) -> list[str]:
    """Check that the models of all generated sources are there and the expected ones.

    An endpoint must answer, take the key and offer the model.

    Args:
        compute: where they will run; None: not asked.

    Returns: what is assumed of models, a line each.

    Raises:
        AigiError: names every source, and what is missing or changed.
    """
    dataset = specification.load(plan.dataset)
    device = None
    # Workers of Ray may have devices that this machine has not: each checks its own.
    if compute is not None and compute.ray is None:
        device = pick_device(compute.device).type
    said: list[str] = []
    problems: list[str] = []
    for name in chosen(dataset, plan):
        spec = dataset.sources[name]
        if isinstance(spec, DiffusersSpec):
            try:
                said += check_weights(name, spec, local_diffusers(sources, name), device)
            except Unreachable:
                raise
            except AigiError as error:
                problems.append(str(error))
        elif isinstance(spec, ZooSpec):
            said += check_zoo(name, spec, local_diffusers(sources, name), device)
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
        if isinstance(spec, DrawnSpec) and spec.reads_clip:
            found[name] = Model({})  # whatever the model
            continue
        if not isinstance(spec, DiffusersSpec):
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


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str] | None:
    """Sources of both whose settings decide other pixels now; None: all do.

    How many images are made at once concerns what is still missing: each row says it.
    """
    if {**old, "sources": {}} != {**new, "sources": {}}:
        return None
    before, after = (
        {
            name: {key: value for key, value in source.items() if key != "batch_size"}
            for name, source in settings["sources"].items()
        }
        for settings in (old, new)
    )
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def _extends(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return _changed(old, new) == set()


def shards_of(source: str, names: Iterable[str]) -> list[str]:
    """Those of these shards that are of a source."""
    return [name for name in names if any(name.startswith(f"{source}-{s}-") for s in SPLITS)]


def _replaces(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]
) -> Sequence[str]:
    changed = _changed(old, new)
    if changed is None:
        return names
    return [shard for source in changed for shard in shards_of(source, names)]


def stage(
    settings: Images,
    plan: Plan,
    sources: Mapping[str, LocalSource],
    compute: Compute,
    maker: Callable[..., ImageMaker] = ImageMaker,
) -> Map:
    """The images stage, over the sources that the plan has.

    Args:
        settings: with the format of the run, see `begun`; null is WebP.
        maker: what makes its workers; arguments as those of ImageMaker.
    """
    dataset = specification.load(plan.dataset)
    recorded: dict[str, Any] = {}
    keeps: dict[str, bool] = {}
    for name in chosen(dataset, plan):
        spec = dataset.sources[name]
        if isinstance(spec, DrawnSpec):
            # The folder is only where a copy is stored; the specification pins its content.
            local = local_diffusers(sources, name)
            recorded[name] = local.recorded()
        elif isinstance(spec, HttpSpec):
            # Where it is and how fast it is asked decides no byte that could be known here.
            recorded[name] = {"kind": local_http(sources, name).kind}
        else:
            # Whether metadata is kept counts for the imported shards alone; see `_outside`.
            imported = local_import(sources, name)
            recorded[name] = imported.recorded()
            keeps[name] = imported.keep_metadata
    wish = reuse.Wish(
        dataset=dataset,
        reuse=plan.reuse,
        container=Container(settings.format or "webp", settings.png),
        how={name: reuse.how(settings_of) for name, settings_of in recorded.items()},
    )
    return Map(
        table="images",
        version=VERSION,
        schema=IMAGES,
        settings={
            # PNG is not named, nor are batches as they come: runs of before had no others.
            **({} if settings.format == "png" else {"format": "webp"}),
            **({"fill_batches": True} if settings.fill_batches else {}),
            "png": settings.png,
            "threads": compute.threads,
            "sources": recorded,
        },
        inputs=("plan",),
        names=_names,
        read=_read,
        make_worker=partial(maker, settings, sources, dataset, compute),
        check=partial(check_sources, plan, sources, compute),
        outside=partial(_outside, keeps),
        outdated=partial(_outdated, keeps),
        unit="pair_id",
        keeps=("device", "versions"),
        extends=_extends,
        replaces=_replaces,
        takes=partial(reuse.find, wish),
    )
