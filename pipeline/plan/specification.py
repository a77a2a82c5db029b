"""A dataset specification (YAML, see `manifests/`) in, a checked `Dataset` out.

It states what the dataset is: sources, models, sizes, counts. The workflow states where models
and images are stored on a machine, and how they are run there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from pipeline import AigiError, gate
from pipeline.complaints import lines, near
from pipeline.gate import Sha256, matching
from pipeline.manifest import REMEDY, read_manifest
from pipeline.marks import names as watermark
from pipeline.marks import visible
from pipeline.plan import options as call_options
from pipeline.plan import zoo
from pipeline.plan.families import AUTO, FAMILIES, Family
from pipeline.plan.schedulers import OWN, scheduler_of
from pipeline.settings import Settings, Split, check, folder_of, located, read_yaml
from pipeline.shown import public_url

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$", description="ISO 639 code")]
_STEPS = "[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*"  # so never ..
Revision = Annotated[str, matching(_STEPS, "a commit, tag or branch")]
_COMMIT = re.compile("[0-9a-f]{40}")
File = Annotated[str, matching(_STEPS, "a file in the model's folder")]
# Columns of the plan have 32 bits.
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
Side = Annotated[int, Field(ge=1, le=1 << 15)]
Url = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9][\w.~:/?#@!$&*+,;=%-]*$")]


def _watermark(name: str, info: ValidationInfo) -> str:
    """The one spelling of a variant; a logo file is stored beside the specification."""
    context = info.context or {}
    base, recorded = context.get("base"), context.get("recorded", False)
    # A manifest at a URL has nothing beside it that could be read here.
    folder = None if recorded and base is None else Path(base or Path.cwd())
    return str(watermark.parse(name, folder, beside=recorded))


Watermark = Annotated[str, AfterValidator(_watermark)]


def _pipeline(name: str) -> str:
    if name != AUTO and name not in FAMILIES:
        raise ValueError(f'no "{name}"; {near(name, [AUTO, *FAMILIES])}')
    return name


Options = Annotated[dict[str, Any], AfterValidator(call_options.checked)]
SchedulerText = Annotated[str, BeforeValidator(lambda given: str(scheduler_of(given)))]


class SplitSpec(Settings):
    """Images of one source and split.

    `count` is the number of generations; each gives one image for every entry of `watermarks`.
    """

    count: int | None = Field(
        None, ge=0, le=2**31 - 1, description="null: as many as there are (imports)"
    )
    width: Side | None = Field(None, description="pixels; null: as they are (imports)")
    height: Side | None = Field(None, description="pixels; null: as they are (imports)")
    watermarks: tuple[Watermark, ...] = Field(
        ("none",), min_length=1, description="none, dwt-dct, dwt-dct-svd, visible:…"
    )
    unet_tflop: float | None = Field(None, gt=0, description="one image, one UNet evaluation")
    vae_tflop: float | None = Field(None, gt=0, description="one image, decoding")

    @model_validator(mode="after")
    def _distinct(self) -> SplitSpec:
        for name in self.watermarks:
            if self.watermarks.count(name) > 1:
                raise ValueError(f"watermarks: {name} is listed twice; remove one")
        return self

    # Rows name a logo by its hash; its content goes along to every process that makes images.
    def __getstate__(self) -> dict[Any, Any]:
        return super().__getstate__() | {"logos": visible.known_logos(self.watermarks)}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        visible.keep_logos(state.pop("logos"))
        super().__setstate__(state)

    @property
    def images(self) -> int:
        """Images in the release, variants included (0 where the count is open)."""
        return (self.count or 0) * len(self.watermarks)


def _any(captions: Any) -> Any:
    return None if captions == "any" else captions


class _SourceSpec(Settings):
    title: str = Field(description="for readers, of the card and of tables")
    licence: str = Field(description="of its images")
    licence_url: Url | None = Field(None, description="where its text is published")
    captions: Annotated[tuple[str, ...] | None, BeforeValidator(_any)] = Field(
        None, description="prompt sources that it may use; any, or null: all"
    )
    splits: dict[Split, SplitSpec] = Field(min_length=1)


Finite = Annotated[float, Field(allow_inf_nan=False)]
HubModel = Annotated[str, matching(r"[\w.-]+/[\w.-]+(@[A-Za-z0-9_./-]+)?", "ORG/NAME@REVISION")]


class Lora(Settings):
    """A LoRA that is fused into the weights of a model."""

    name: Name = Field(description="key in sources.SOURCE.loras of a workflow; of the adapter")
    model: str | None = Field(None, description="Hub id; null: the workflow has its place")
    revision: Revision | None = None
    weight_name: File | None = Field(None, description="its file in the repository")
    sha256: Sha256
    scale: Finite = 1.0


class Component(Settings):
    """A component in place of the model's own: a VAE, a text encoder."""

    model: str = Field(description="Hub id; names it even where a local copy is used")
    revision: Revision
    subfolder: File | None = Field(None, description="of the repository; a local copy has none")
    sha256: dict[File, Sha256] = Field(min_length=1, description="sha256 of its files of weights")


class DiffusersSpec(_SourceSpec):
    """A source made by a text-to-image pipeline of diffusers."""

    kind: Literal["diffusers"]
    pipeline: Annotated[str, AfterValidator(_pipeline)] = Field(
        description="family of the model; auto: the class that its model_index.json names"
    )
    model: str = Field(description="Hub id; names the model even where a local copy is used")
    revision: Revision = Field(
        description="commit of the model repository, or a name for local ones"
    )
    sha256: dict[File, Sha256] = Field(
        default_factory=dict, description="sha256 by weight file; checked before any work"
    )
    scheduler: SchedulerText = Field(
        OWN,
        description="own: what the model came with; a name or class of diffusers; with options: "
        "{name: dpm-solver++, use_karras_sigmas: true}",
    )
    steps: Number = Field(description="evaluations of the scheduler, num_inference_steps")
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        description="of classifier-free guidance; a distilled model takes 0 or 1"
    )
    negative_prompt: str = Field("", description="what images must not show")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of the weights while they run"
    )
    images_per_prompt: Number = Field(1, description="each with a seed of its own")
    options: Options = Field(
        default_factory=dict,
        description="further arguments of the pipeline's call, as its class in diffusers has them: "
        "{true_cfg_scale: 4.0}",
    )

    variant: Annotated[str, matching("[a-z0-9_]+", "fp16 or another variant")] | None = Field(
        None, description="which files of weights: NAME.VARIANT.safetensors, such as fp16"
    )
    file: Sha256 | None = Field(
        None,
        description="sha256 of one .safetensors file, which has the weights of the denoiser or of "
        "all; sources.NAME.file is its place",
    )
    config: HubModel | None = Field(
        None, description="with file: the model whose configurations and tokenizers are used"
    )
    loras: tuple[Lora, ...] = ()
    components: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], Component] = Field(
        default_factory=dict, description="in place of the model's own: {text_encoder: …}"
    )

    @property
    def family(self) -> Family | None:
        """Its row in FAMILIES; None: `auto`, which only the model itself can tell."""
        return FAMILIES.get(self.pipeline)

    @property
    def reads_clip(self) -> bool:
        """Whether its model reads what CLIP reads of a prompt, as its family tells."""
        return self.family is not None and self.family.clip

    @property
    def row_options(self) -> str | None:
        """What the column `options` of its rows has."""
        files = self.model_dump(
            mode="json", include=set(call_options.FILES), exclude_none=True, exclude_defaults=True
        )
        return call_options.text_of({**self.options, **files})

    @property
    def evaluations(self) -> int | None:
        """How often the denoiser runs for one image; None: not known before the model is."""
        if self.family is None:
            return None
        true_cfg_scale = self.options.get("true_cfg_scale", 1.0)
        return self.family.evaluations(self.steps, self.guidance_scale, true_cfg_scale)

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that came later, where they are not used: fingerprints stay."""
        found: dict[str, Any] = dump(self)
        return {name: value for name, value in found.items() if name not in _LATER or value}

    @model_validator(mode="after")
    def _fits_the_family(self) -> DiffusersSpec:
        family = self.family
        if self.config is not None and self.file is None:
            raise ValueError("config: only beside file; remove it")
        if self.file is not None and self.variant is not None:
            raise ValueError("variant: one file has none; remove it")
        names = [lora.name for lora in self.loras]
        if len(set(names)) < len(names):
            raise ValueError("loras: a name is given twice; give each one of its own")
        if family is not None and self.negative_prompt and not family.negative_prompt:
            raise ValueError(f"negative_prompt: pipeline {self.pipeline} takes none; remove it")
        if family is not None and family.guidance in self.options:
            raise ValueError(
                f"options.{family.guidance}: guidance_scale is this argument of pipeline "
                f"{self.pipeline}; set that, and remove the option"
            )
        for split, spec in self.splits.items():
            if spec.count is None or spec.width is None or spec.height is None:
                raise ValueError(f"splits.{split}: count, width and height are needed")
            multiple = 8 if family is None else family.multiple
            if spec.width % multiple or spec.height % multiple:
                raise ValueError(
                    f"splits.{split}: width and height must be multiples of {multiple}"
                )
        return self


_OURS = ("model", "prompt", "n", "size", "seed", "stream")
"""Fields of a request for images that other settings decide."""
_KEY = re.compile(r"(^|[_-])(key|token|secret|password|authorization)$", re.IGNORECASE)
_MOST_REQUEST = 2000
"""Characters of the further fields of a request: they are in every row."""


class HttpSpec(_SourceSpec):
    """A source made by an OpenAI-compatible images endpoint (POST /images/generations)."""

    kind: Literal["http"]
    model: str = Field(min_length=1, description="as the endpoint lists it")
    revision: str = Field("", description="a name for the state of the model, where one is known")
    seeds: bool = Field(
        False, description="the endpoint takes a seed: each image's own is sent, and in its row"
    )
    request: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of each request, as JSON: quality, style, response_format, "
        "num_inference_steps; part of image_id",
    )
    images_per_prompt: Number = Field(1, description="each with a seed of its own")

    @model_validator(mode="after")
    def _can_be_asked(self) -> HttpSpec:
        for split, spec in self.splits.items():
            if spec.count is None or spec.width is None or spec.height is None:
                raise ValueError(f"splits.{split}: count, width and height are needed")
        for name in self.request:
            if name in _OURS:
                raise ValueError(f"request.{name}: other settings decide this field; remove it")
            if _KEY.search(name):
                raise ValueError(
                    f"request.{name}: keys are in no file; name the environment variable that has "
                    "it in the workflow: sources.NAME.key_env"
                )
        try:
            json.dumps(self.request, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("request: expected what JSON can contain") from None
        if len(self.row_options or "") > _MOST_REQUEST:
            raise ValueError(f"request: more than {_MOST_REQUEST:,} characters")
        return self

    @property
    def row_options(self) -> str | None:
        """What the column `options` of its rows has: the further fields of a request."""
        return call_options.text_of(self.request)


_LATER = frozenset({"options", *call_options.FILES})
"""Fields of DiffusersSpec that version 1 of the stages did not have."""


OWN_MODEL, UNKNOWN_MODEL = "stated", "unknown"
"""The `model` of an imported source whose images name theirs; and that of one that does not."""


class ImportSpec(_SourceSpec):
    """A source whose images come from elsewhere (closed models)."""

    kind: Literal["import"]
    model: str = Field(
        description="name of the model; `stated`: that which the file of each image names, or "
        "`unknown`"
    )
    revision: str = ""


STATED = (
    "model",
    "revision",
    "steps",
    "guidance_scale",
    "negative_prompt",
    "scheduler",
    "dtype",
)
"""Columns of a row by a pipeline of diffusers that its specification states."""
_SHARED = ("title", "kind", "captions", "splits", "images_per_prompt")
"""Fields of a diffusers source that a zoo has for all its models."""


class ZooSpec(_SourceSpec):
    """A source made by many text-to-image models, each with its share of the images."""

    kind: Literal["zoo"]
    models: tuple[dict[str, Any], ...] = Field(
        min_length=1,
        description="a .csv or .yaml file beside the specification, or the list itself: model, and "
        "any field of a diffusers source; train, validation, test: images of this model",
    )
    images_per_model: dict[Split, Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(
        default_factory=dict, description="images of each model, where the list has no own number"
    )
    each: dict[str, Any] = Field(
        default_factory=dict, description="fields that all models have which have none of their own"
    )
    images_per_prompt: Number = Field(1, description="each with a seed of its own")
    _members: tuple[DiffusersSpec, ...] = PrivateAttr(())
    _turns: dict[str, list[int]] = PrivateAttr(default_factory=dict)
    _numbers: dict[tuple[Any, ...], int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any, info: ValidationInfo) -> Any:
        """The list in place of its file, every entry checked, and the sums of its counts."""
        if not isinstance(data, dict) or not isinstance(data.get("splits"), dict):
            return data
        models, context = data.get("models"), info.context or {}
        try:
            for size in data["splits"].values():
                SplitSpec.model_validate(size or {}, context=context)
        except ValidationError:
            models = None
        if models is None:  # pydantic reports what is missing or wrong
            return data if data.get("models") is None else {**data, "models": [{}]}
        if isinstance(models, str):
            if context.get("recorded"):
                raise ValueError("models: expected a list; a manifest names no file")
            entries = zoo.read(located(models, context.get("base")))
        else:
            entries = zoo.given(models)
        splits = {split: {**(size or {}), "count": 0} for split, size in data["splits"].items()}
        found = _entries(entries, data, splits)
        for split, size in splits.items():
            stated = (data["splits"][split] or {}).get("count")
            size["count"] = sum(member.splits[split].count or 0 for _, member in found)
            if stated not in (None, size["count"]):
                raise ValueError(
                    f"splits.{split}.count: the models make {size['count']:,} together, not "
                    f"{stated}; leave it out, images_per_model decides"
                )
        return {**data, "models": [entry for entry, _ in found], "splits": splits}

    @model_validator(mode="after")
    def _made(self) -> ZooSpec:
        shared = self.model_dump(mode="json")
        found = [member for _, member in _entries(zoo.given(self.models), shared, {**self.splits})]
        self._members = tuple(found)
        for split in self.splits:
            self._turns[split] = zoo.turns([one.splits[split].count or 0 for one in found])
        self._numbers = {_stated(member): number for number, member in enumerate(found)}
        return self

    @property
    def members(self) -> tuple[DiffusersSpec, ...]:
        """Each model as a source of its own; `count` is that of its images."""
        return self._members

    @property
    def reads_clip(self) -> bool:
        """Whether all its models read what CLIP reads of a prompt."""
        return all(member.reads_clip for member in self._members)

    def turns(self, split: str) -> list[int]:
        """The number of the model that makes each image of a split; then it begins again."""
        return self._turns[split]

    def number_of(self, row: Mapping[str, Any]) -> int | None:
        """The number of the model of a row; None: it is not in the list."""
        values = [row[name] for name in STATED]
        number = self._numbers.get((*values, row.get("options")))
        if number is None:  # the plan has the commit of a branch
            values[1] = None
            number = self._numbers.get((*values, row.get("options")))
        return number

    @property
    def row_options(self) -> str | None:
        """What the column `options` of some rows has; None: no row has any."""
        return next((text for one in self._members if (text := one.row_options)), None)

    def pinned(self, commits: Mapping[int, str]) -> ZooSpec:
        """The same with commits in place of names of revisions.

        Args:
            commits: by the number of the model.

        Raises:
            ValueError: two entries are the same then.
        """
        models = [
            {**entry, "revision": commits.get(number, entry["revision"])}
            for number, entry in enumerate(self.models)
        ]
        return ZooSpec.model_validate({**self.model_dump(mode="json"), "models": models})


def _stated(member: DiffusersSpec) -> tuple[Any, ...]:
    """What tells a model of a zoo from the others, as its rows have it.

    A name of a revision becomes a commit in rows, so it tells nothing.
    """
    found = [getattr(member, name) for name in STATED]
    if not _COMMIT.fullmatch(member.revision):
        found[1] = None
    return (*found, member.row_options)


def _entries(
    entries: list[zoo.Entry], shared: Mapping[str, Any], splits: Mapping[Any, Any]
) -> list[tuple[dict[str, Any], DiffusersSpec]]:
    """Entries of a zoo in one spelling, and each as a source of its own.

    Raises:
        ValueError: names the file, the line and the field of every wrong one.
    """
    each = shared.get("each") or {}
    usual = shared.get("images_per_model") or {}
    mine = [name for name in DiffusersSpec.model_fields if name not in _SHARED]
    zoo.check_names([("each", dict(each))], [name for name in mine if name != "model"])
    zoo.check_names(entries, [*mine, *splits])
    if len(entries) > zoo.MOST:
        raise ValueError(f"models: {len(entries):,}, at most {zoo.MOST:,}")
    found, problems = [], []
    for where, entry in entries:
        fields = {"revision": "main", **each, **entry}
        sizes: dict[str, Any] = {}
        for split, size in splits.items():
            count = fields.pop(split, usual.get(split))
            if count is None:
                problems.append(f"{where}: {split}: needed, or images_per_model.{split}")
            base = size if isinstance(size, dict) else size.model_dump()
            sizes[split] = {**base, "count": count or 0}
        whole = {
            "title": "-",
            "licence": shared.get("licence"),
            "kind": "diffusers",
            **fields,
            "splits": sizes,
        }
        try:
            member = DiffusersSpec.model_validate(whole)
        except ValidationError as error:
            problems += [f"{where}: {line}" for line in lines(DiffusersSpec, error)]
            continue
        kept = [name for name in {"model": 0, "revision": 0, **entry} if name in mine]
        given = member.model_dump(mode="json", include=set(kept))
        counted = {split: member.splits[split].count for split in splits if split in entry}
        found.append(({name: given[name] for name in kept} | counted, member))
    zoo.refuse(problems)
    zoo.check_distinct(entries, [_stated(member) for _, member in found])
    return found


PromptedSpec = DiffusersSpec | ZooSpec | HttpSpec
"""Sources whose images are made from the prompts table."""
DrawnSpec = DiffusersSpec | ZooSpec
"""Sources whose images are made here, by pipelines of diffusers."""
SourceSpec = Annotated[DiffusersSpec | ZooSpec | HttpSpec | ImportSpec, Field(discriminator="kind")]


def of_row(
    spec: SourceSpec, row: Mapping[str, Any]
) -> DiffusersSpec | HttpSpec | ImportSpec | None:
    """What a source specifies of one of its rows; None: it is of no model of the zoo."""
    if not isinstance(spec, ZooSpec):
        return spec
    number = spec.number_of(row)
    return None if number is None else spec.members[number]


class Dataset(Settings):
    """What a dataset is: name, licence, citation and its sources."""

    name: Name = Field(description="of the dataset, in names of files and folders")
    title: str = Field(description="for readers, on its card")
    licence: str = Field(description="of the whole; sources have their own")
    licence_url: Url | None = Field(None, description="where its text is published")
    language: tuple[Language, ...] = Field(
        (), description="languages of the prompts; none: not stated"
    )
    description: str = Field("", description="what it is, on its card")
    citation: str = Field("", description="BibTeX")
    sources: dict[Name, SourceSpec] = Field(
        min_length=1, description="where its images come from; each is a config of the release"
    )


def some_options(dataset: Dataset, names: Collection[str]) -> bool:
    """Whether a source has options, so that tables have a column for them."""
    found = (dataset.sources[name] for name in names)
    return any(isinstance(spec, PromptedSpec) and spec.row_options for spec in found)


def place_of(given: str | Dataset) -> str:
    """Where a specification is, for messages."""
    return given if isinstance(given, str) else "plan.dataset"


def load(given: str | Dataset) -> Dataset:
    """Read and check a dataset specification, or the one that a manifest contains.

    Args:
        given: its file; or itself, where the workflow contains it.

    Raises:
        AigiError: names the file and every wrong field; of a manifest, the first one.
    """
    if isinstance(given, Dataset):
        return given
    path = given
    data = read_yaml(path)
    if not public_url(path).endswith(".json") or "specification" not in data:
        return check(Dataset, data, path)
    context = {"base": folder_of(path), "recorded": True}
    recorded = read_manifest(path)["specification"]
    return gate.check(Dataset, recorded, path, REMEDY, "specification", context)


def check_known(given: str | Dataset, sources: Iterable[str]) -> None:
    """Refuse settings of sources that a specification does not have: they would decide nothing.

    Args:
        given: the specification, or its file.
        sources: names that a workflow has settings for.

    Raises:
        AigiError: names the first one, and the nearest name that there is.
    """
    known = load(given).sources
    for name in sources:
        if name not in known:
            raise AigiError(f"sources.{name}: no source of {place_of(given)}; {near(name, known)}")
