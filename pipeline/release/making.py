"""A row of a release and its manifest in, all that made its image out, or why nobody knows it.

An image by a text-to-image model is a function of these fields, on one kind of machine: `codecs`
makes a file of them, and `remake` the image again. Batch and threads are among them, since both
move the last bit of some pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline import AigiError, complaints
from pipeline.gate import Checked, matching
from pipeline.images.diffusion.source import TILE_FROM, DiffusersSource
from pipeline.images.models import copy_in
from pipeline.makers import workflow_of
from pipeline.manifest import MANIFEST
from pipeline.marks.names import parse
from pipeline.marks.visible import logo_of
from pipeline.plan import specification
from pipeline.plan.families import AUTO, FAMILIES
from pipeline.plan.options import FILES, options_of, parsed
from pipeline.plan.schedulers import scheduler_of
from pipeline.plan.specification import (
    Dataset,
    DiffusersSpec,
    HttpSpec,
    Revision,
    SplitSpec,
    ZooSpec,
)
from pipeline.release.regenerate import HUB_ID, places_of
from pipeline.store import Store
from pipeline.tables import ENDPOINT, RELEASE

COLUMNS = (
    "image_id", "text", "source", "width", "height", "model", "revision", "seed", "steps",
    "guidance_scale", "negative_prompt", "scheduler", "dtype", "watermark", "path",
    "pixels_sha256", "batch_size", "versions", "options",
)  # fmt: skip
"""Columns of a release that say what made an image."""
UNNAMED = ("attention", "quantise", "vae_slicing")
"""Settings of a source that decide pixels, and for which a recipe has no field."""
MOST_STEPS, MOST_BATCH, MOST_SIDE, MOST_OPTION = 1000, 64, 4096, 4096
"""A file may be anybody's: one of some bytes must not take this machine for days."""


_ASKED = "no recipe: an image of an endpoint, which gives another one each time"


class NotKnown(AigiError):
    """Nobody recorded what made an image, or no file can hold it; the text is the reason."""


def _mark(name: str) -> str:
    if logo_of(name) is not None:
        raise ValueError("a mark that is a file, a logo, cannot be named")
    parse(name)
    return name


class Making(Checked):
    """All that made one image.

    Attributes:
        pipeline: the family of the model, of `FAMILIES`.
        options: what else decides the pixels, as the column `options` has it; empty: nothing.
        vae: Hub id of another VAE; empty: the model's own.
        tiling, slicing, compiled: how the pipeline ran, see `DiffusersSource`.
        threads: of torch.
        device: the kind of device.
        batch: images drawn at once, here all from the same prompt and seed.
        place: which of them is the image, from 0.
    """

    pipeline: str
    model: Annotated[str, matching(HUB_ID.pattern, "ORG/NAME of the Hub")]
    revision: Revision
    text: Annotated[str, Field(max_length=4096)]
    negative_prompt: Annotated[str, Field(max_length=4096)] = ""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    scheduler: str
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    width: Annotated[int, Field(ge=8, le=MOST_SIDE)]
    height: Annotated[int, Field(ge=8, le=MOST_SIDE)]
    watermark: str = "none"
    options: Annotated[str, Field(max_length=2000)] = ""
    vae: str = ""
    tiling: bool = False
    slicing: bool = False
    compiled: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    batch: Annotated[int, Field(ge=1, le=MOST_BATCH)] = 1
    place: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Making:
        if self.place >= self.batch:
            raise ValueError(f"place: {self.place} of a batch of {self.batch}")
        if self.vae and HUB_ID.fullmatch(self.vae) is None:
            raise ValueError("vae: expected ORG/NAME of the Hub")
        if self.pipeline != AUTO and self.pipeline not in FAMILIES:
            raise ValueError(f"no pipeline {self.pipeline!r}")
        if str(scheduler_of(self.scheduler)) != self.scheduler:
            raise ValueError(f"scheduler: {self.scheduler!r} is not written as rows have it")
        _mark(self.watermark)
        for name, value in parsed(self.options).items():
            if name in FILES:
                raise ValueError(
                    f"options: made with files beside the model ({name}), which a "
                    "file like this cannot name"
                )
            # A class may pad a prompt to any length that it is given.
            if isinstance(value, int | float) and abs(value) > MOST_OPTION:
                raise ValueError(f"options: {name}: at most {MOST_OPTION} in a file")
        self.spec()
        return self

    def spec(self) -> DiffusersSpec:
        """The model as `images` knows it, with its sizes checked."""
        return DiffusersSpec(
            title=self.model,
            licence="",
            splits={"test": SplitSpec(count=1, width=self.width, height=self.height)},
            kind="diffusers",
            pipeline=self.pipeline,
            model=self.model,
            revision=self.revision,
            scheduler=self.scheduler,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            negative_prompt=self.negative_prompt,
            dtype=self.dtype,
            options=options_of(self.options),
        )

    def local(self, folder: str | None) -> DiffusersSource:
        """How it runs on this machine.

        Args:
            folder: a copy of the model; None: from the Hub.
        """
        return DiffusersSource(
            folder=folder,
            batch_size=self.batch,
            vae=self.vae or None,
            vae_tiling=self.tiling,
            attention_slicing=self.slicing,
            compile=self.compiled,
        )


def making(fields: Mapping[str, Any], where: str) -> Making:
    """These fields, checked.

    Args:
        where: what they stand in, for the message.

    Raises:
        NotKnown: in one line, with the field that is wrong.
    """
    try:
        return Making.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        found = complaints.shown(first["input"]) if field else ""
        said = f"{field}: {problem}" + (f", found {found}" if found else "")
        raise NotKnown(f"{where}: no recipe: {said}") from None


def weights_digest(loaded: Mapping[str, str]) -> bytes:
    """4 bytes that tell the weights of a pipeline from others.

    Args:
        loaded: digests of the tensors of its components.
    """
    return hashlib.sha256(json.dumps(dict(loaded), sort_keys=True).encode()).digest()[:4]


class Known(Checked):
    """What is known of one image, as it goes to a codec.

    Attributes:
        making: what made it, in a batch of its own; None: `reason` says why nobody knows.
        batch: images drawn at once when it was made; None: not known.
        weights: hex of the `weights_digest` of what made it; None: not known.
        folder: this machine's copy of the model, as the workflow of its run names it; never as a
            file or a published release does.
    """

    making: Making | None = None
    reason: str = ""
    batch: Annotated[int, Field(ge=1)] | None = None
    weights: Annotated[str, matching("[0-9a-f]{8}", "8 digits 0-9 and a-f")] | None = None
    folder: str | None = None

    def certain(self) -> Making:
        """What made it.

        Raises:
            NotKnown: nobody knows.
        """
        if self.making is None:
            raise NotKnown(self.reason)
        return self.making


class Makings:
    """The rows of one release in, what made each image out.

    Args:
        store: the release.
        manifest: of it, checked.
    """

    def __init__(self, store: Store, manifest: Mapping[str, Any]) -> None:
        self.store, self.manifest = store, manifest
        self._dataset: Dataset | None = None
        # The run that it is in is this machine's, if there is one.
        self._here = places_of(store.url).get("sources") or {}

    @property
    def dataset(self) -> Dataset:
        """What the manifest specifies.

        Raises:
            NotKnown: it specifies nothing.
        """
        if self._dataset is None:
            if not self.manifest.get("specification"):
                raise NotKnown(f"{self.store.url}: no recipe: its manifest has no specification")
            url = self.store.url.rstrip("/")
            local = self.store.local
            self._dataset = specification.load(
                self.store.path(MANIFEST) if local else f"{url}/{MANIFEST}"
            )
        return self._dataset

    def of(self, row: Mapping[str, Any]) -> Making:
        """What made the image of a row, in a batch of its own.

        Args:
            row: with the columns of `COLUMNS`.

        Raises:
            NotKnown: the image is imported or of an endpoint, or was made with something that no
                file can name.
        """
        where = f"{row['source']} {row['image_id']}"
        spec = self.dataset.sources.get(row["source"])
        if isinstance(spec, HttpSpec):
            raise NotKnown(f"{where}: {_ASKED}")
        if row["path"] is not None or row["seed"] is None:
            raise NotKnown(f"{where}: no recipe: an imported image, nobody recorded what made it")
        number = spec.number_of(row) if isinstance(spec, ZooSpec) else None
        if isinstance(spec, ZooSpec) and number is not None:
            spec = spec.members[number]
        if not isinstance(spec, DiffusersSpec):
            raise NotKnown(f"{where}: no recipe: the manifest specifies no such generated source")
        workflow = workflow_of(self.manifest, row["source"])
        ran = (workflow.get("sources") or {}).get(row["source"]) or {}
        vae = ran.get("vae")
        if vae is not None and HUB_ID.fullmatch(vae) is None:
            raise NotKnown(f"{where}: no recipe: it was made with a VAE that it cannot name, {vae}")
        _refuse_unnamed(ran, where)
        tiling = ran.get("vae_tiling")
        if tiling is None:
            tiling = max(row["width"], row["height"]) >= TILE_FROM
        names = (
            "model", "revision", "text", "seed", "scheduler", "steps", "guidance_scale", "dtype",
            "width", "height", "watermark",
        )  # fmt: skip
        fields = {name: row[name] for name in names} | {
            "pipeline": spec.pipeline,
            "negative_prompt": row["negative_prompt"] or "",
            "options": row.get("options") or "",
            "vae": vae or "",
            "tiling": tiling,
            "slicing": ran.get("attention_slicing", False),
            "compiled": ran.get("compile", False),
            "threads": (workflow.get("compute") or {}).get("threads", 1),
        }
        return making(fields, where)

    def _folder(self, row: Mapping[str, Any]) -> str | None:
        """This machine's copy of the model of a row."""
        found = (self._here.get(row["source"]) or {}).get("folder")
        if found is not None and isinstance(self.dataset.sources.get(row["source"]), ZooSpec):
            return copy_in(found, row["model"])
        return None if found is None else str(found)

    def known(self, row: Mapping[str, Any]) -> Known:
        """What is known of a row (columns of `COLUMNS`), or why nothing is."""
        try:
            making = self.of(row)
        except NotKnown as error:
            return Known(reason=str(error))
        weights = _stated_weights(row)
        return Known(
            making=making,
            batch=row["batch_size"],
            weights=weights,
            folder=self._folder(row),
        )


def _refuse_unnamed(ran: Mapping[str, Any], where: str) -> None:
    """Refuse settings that decide pixels and that no recipe has a field for."""
    usual = DiffusersSource()
    for name in UNNAMED:
        value = ran.get(name, getattr(usual, name))
        if value != getattr(usual, name):
            raise NotKnown(f"{where}: no recipe: it was made with {name}: {str(value)[:40]}")


def known_of_row(row: Mapping[str, Any], where: str) -> Known:
    """What a row says that was written by hand or taken from a release.

    Args:
        row: fields of `Making`, `pipeline` among them, and any other columns of a release.
        where: its file, for messages.

    Raises:
        NotKnown: it has another field, lacks one, or its image is imported.
    """
    if strange := sorted(row.keys() - Making.model_fields.keys() - set(RELEASE.names)):
        raise NotKnown(f"{where}: no recipe: {strange[0]}: no such field")
    if row.get("path") is not None:
        raise NotKnown(f"{where}: no recipe: an imported image, nobody recorded what made it")
    if row.get("device") == ENDPOINT:
        raise NotKnown(f"{where}: {_ASKED}")
    with suppress(ValueError, RecursionError):  # `versions` of others may be anything
        said = json.loads(str(row.get("versions") or "{}"))
        settings = said.get("settings") if isinstance(said, dict) else None
        _refuse_unnamed(settings if isinstance(settings, dict) else {}, where)
    # A release's `device` names the hardware; here it is the encoder's own.
    names = Making.model_fields.keys() - {"device"}
    fields = {name: row[name] for name in names if row.get(name) is not None}
    batch = row.get("batch_size")
    return Known(
        making=making(fields, where),
        batch=batch if isinstance(batch, int) and batch > 0 else None,
        weights=_stated_weights(row),
    )


def _stated_weights(row: Mapping[str, Any]) -> str | None:
    """Hex of the `weights_digest` of what made a row, if it says so."""
    try:
        weights = json.loads(row.get("versions") or "{}").get("weights")
    except (ValueError, AttributeError):
        return None
    return weights_digest(weights).hex() if isinstance(weights, dict) and weights else None
