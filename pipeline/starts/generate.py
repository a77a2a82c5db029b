"""A model, a list of prompts and a count in, a workflow that makes these images out.

What a user leaves open is what a shipped specification states of the model, else what the model
and its class in diffusers tell.
"""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.complaints import near
from pipeline.files import file_sha256, resource
from pipeline.models.hub import Place
from pipeline.outside import on_this_machine
from pipeline.plan import specification
from pipeline.plan.specification import DiffusersSpec
from pipeline.prompts.captions import TableCaptions, TextCaptions, different, read
from pipeline.rows.asked import NoColumn
from pipeline.rows.rows import ENDINGS, ending_of
from pipeline.starts.written import Comment, filled, from_file

SPECIFICATIONS = ("pku-aigi-500k", "aigi-next")
"""Shipped specifications whose models have settings that their cards state."""
COLUMNS = ("prompt", "text", "caption", "prompts", "Prompt", "TEXT", "description")
"""Names that columns of prompts have; the first one that a table has is taken."""
_LOOKED = 100
"""Rows of a table that are looked at for a column: JSON may leave fields out."""
AS_THEY_ARE: dict[str, Any] = {
    "min_words": 1, "max_words": 100_000, "min_ascii_letters": 0, "max_noise": 1,
    "max_repeated": None, "languages": None, "personal": [], "max_unsafe": None,
}  # fmt: skip
"""Filters that refuse nothing."""
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
NO_LICENCE = "not stated"


@dataclass(frozen=True)
class Wanted:
    """What a user asks for; None: as usual.

    Attributes:
        model: Hub id, and @REVISION behind it; a folder; a .safetensors file; or a source of a
            shipped specification.
        prompts: file of prompts, on this machine or at a URL.
        count: images; None: one a prompt.
        out: run directory.
        loras: each a file, ORG/NAME or ORG/NAME/FILE, and @SCALE behind it.
        size: WIDTHxHEIGHT in pixels, or one number for both.
        config: folder or Hub id of the configurations of a .safetensors file.
        column: of the prompts in a table.
    """

    model: str
    prompts: str
    out: str
    count: int | None = None
    loras: tuple[str, ...] = ()
    size: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    scheduler: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    seed: int = 0
    workers: int = 1
    config: str | None = None
    column: str | None = None
    licence: str | None = None


@dataclass
class Made:
    """A workflow as it will be written.

    Attributes:
        file: where.
        text: of the file.
        source: name of its source, a config of the release.
        said: what was chosen for the user, a line each.
    """

    file: Path
    text: str
    source: str
    said: list[str] = field(default_factory=list)


def generate(wanted: Wanted, file: Path | None = None) -> Made:
    """The workflow that makes what is wanted.

    Args:
        file: where it will be; None: beside the run directory.

    Raises:
        AigiError: a file, folder or model is missing, not readable or of another kind; names the
            option.
    """
    size = _size(wanted.size)
    file = file or file_of(wanted.out)
    captions = captions_of(wanted.prompts, wanted.column)
    prompts = different([captions], wanted.count or math.inf)
    if not prompts:
        raise AigiError(f"--prompts {wanted.prompts}: no prompt in it")
    count = wanted.count or prompts
    each = math.ceil(count / prompts)
    said = [f"images: {count:,}, prompts: {prompts:,}" + f", {each} of each" * (each > 1)]
    model = _model(wanted, said)
    if model.spec["licence"] == NO_LICENCE:
        said.append("licence: the model states none; say it with --licence before you publish")
    usual = (model.size["width"], model.size["height"])
    split = model.size if size in (None, usual) else dict(zip(_SIDES, size, strict=True))
    loras, places = _loras(wanted.loras)
    spec = {**model.spec, **({"loras": loras} if loras else {})}
    local = {
        **{key: from_file(place, file) for key, place in model.local.items()},
        **({"loras": {k: from_file(p, file) for k, p in places.items()}} if places else {}),
        **({} if wanted.batch_size is None else {"batch_size": wanted.batch_size}),
    }
    listed = captions.model_dump(mode="json", exclude_defaults=True)
    listed["path"] = from_file(listed["path"], file)
    title = f"{spec['title']}: images of {os.path.basename(wanted.prompts)}"
    text = filled(
        "generate.yaml",
        {
            "about": Comment(title),
            "title": title,
            "file": Comment(str(file)),
            "run": wanted.out if "://" in wanted.out else from_file(wanted.out, file),
            "workers": wanted.workers,
            "captions": {"kind": captions.kind, **listed},
            "filters": AS_THEY_ARE,
            "name": named(file.stem),
            "licence": spec["licence"],
            "source": model.name,
            "spec": spec,
            "images_per_prompt": each,
            "split": {"count": count, **split},
            "held_out": {"count": 40, **split},
            "seed": wanted.seed,
            "local": local,
        },
    )
    return Made(file, text, model.name, said)


def file_of(out: str) -> Path:
    """The workflow file of a run directory: beside it; of one elsewhere, in the current folder."""
    place = Path(out.rstrip("/").rpartition("/")[2]) if "://" in out else Path(out.rstrip("/"))
    return place.with_name(f"{place.name}.yaml")


def named(text: str) -> str:
    """A text as the name of a source or dataset can be."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-") or "images"


def _size(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", given)
    if found is None:
        raise AigiError(f"--size {given}: expected WIDTHxHEIGHT in pixels, such as 1024x1024")
    return int(found[1]), int(found[2] or found[1])


# --- Prompts -------------------------------------------------------------------------------------


def captions_of(place: str, column: str | None) -> TextCaptions | TableCaptions:
    """The caption source that a file is, by its ending.

    Raises:
        AigiError: no such file, of no kind that is known, or no column of prompts.
    """
    where = f"--prompts {place}"
    ending = ending_of(place)
    path = place if "://" in place else os.path.abspath(os.path.expanduser(place))
    if ending not in (".txt", *ENDINGS):
        raise AigiError(
            f"{where}: expected .txt (a prompt a line), {', '.join(ENDINGS)}; captions of other "
            "kinds are sources of a workflow: `aigi new NAME --kind generate`"
        )
    if ending == ".txt":
        if column is not None:
            raise AigiError(f"--column {column}: {place} is a text without columns; remove this")
        return TextCaptions(kind="text", path=path)
    tried = [
        TableCaptions.model_validate({"kind": ENDINGS[ending], "path": path, "column": name})
        for name in (COLUMNS if column is None else (column,))
    ]
    for found in tried:
        with suppress(NoColumn):
            if any(text is not None for _, text, _ in islice(read(found), _LOOKED)):
                return found
    try:
        different(tried[:1])  # says which columns there are
    except NoColumn as error:
        said = str(error).replace("Set column to one of", "Name it with --column, one of")
        raise AigiError(f"{where}: which column has the prompts? {said}") from None
    return tried[0]


# --- The model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """What of a model goes into a workflow: its entry in the specification, and its places."""

    name: str
    spec: dict[str, Any]
    local: dict[str, str]
    size: dict[str, Any]


def known_models() -> dict[str, DiffusersSpec]:
    """Models of shipped specifications, by the names of their sources."""
    found: dict[str, DiffusersSpec] = {}
    for file in SPECIFICATIONS:
        sources = specification.load(str(resource(f"manifests/{file}.yaml"))).sources
        for name, spec in sources.items():
            if isinstance(spec, DiffusersSpec):
                found.setdefault(name, spec)
    return found


_SIDES = ("width", "height")
_SIZES = (*_SIDES, "unet_tflop", "vae_tflop")
_STATED = (
    "licence_url", "pipeline", "model", "revision", "sha256", "variant", "scheduler", "steps",
    "guidance_scale", "dtype", "options",
)  # fmt: skip


def _model(wanted: Wanted, said: list[str]) -> _Model:
    given = wanted.model
    known = known_models()
    path = Path(os.path.expanduser(given))
    hub = _HUB.fullmatch(given)
    if path.is_file():
        return _of_file(wanted, str(path), said)
    if path.is_dir():
        return _of_place(
            wanted, named(path.resolve().name), Place("--model", "--model", given), said
        )
    if wanted.config is not None:
        raise AigiError("--config: only beside --model FILE.safetensors; remove this")
    if hub is not None and hub["id"] not in {spec.model for spec in known.values()}:
        place = Place("--model", "--model FOLDER", None, hub["id"], hub["revision"] or "main")
        return _of_place(wanted, named(hub["id"].rpartition("/")[2]), place, said)
    for name, spec in known.items():
        if given == name or (hub is not None and hub["id"] == spec.model):
            return _of_known(wanted, name, spec, hub and hub["revision"], said)
    names = [*known, *(spec.model for spec in known.values())]
    raise AigiError(
        f"--model {given}: no such folder or file, and no id of the Hub (ORG/NAME); "
        f"{near(given, names)}"
    )


def _of_known(
    wanted: Wanted, name: str, spec: DiffusersSpec, revision: str | None, said: list[str]
) -> _Model:
    """A model whose usual settings a shipped specification states."""
    every = spec.model_dump(mode="json", exclude_defaults=True)
    stated = {key: every[key] for key in _STATED if key in every}
    if revision not in (None, spec.revision):
        stated["revision"] = revision
        stated.pop("sha256", None)
    split = spec.splits["train"].model_dump(exclude_none=True)
    said.append(f"{spec.model}: settings of aigi's own specification of {spec.title}")
    return _Model(
        name,
        _entry(wanted, {"title": spec.title, "licence": spec.licence, **stated}),
        {},
        {key: split[key] for key in _SIZES if key in split},
    )


def _of_place(wanted: Wanted, name: str, place: Place, said: list[str]) -> _Model:
    """A folder or repository, whose usual settings it and its class tell."""
    from pipeline.images.diffusion.usual import DISTILLED, usual

    found = usual(place)
    open_ones = [
        option
        for option, value in (
            ("--steps", wanted.steps),
            ("--guidance-scale", wanted.guidance_scale),
        )
        if value is None
    ]
    stem = (place.folder or place.repository).rstrip("/").rpartition("/")[2]
    if open_ones and DISTILLED.search(stem):
        raise AigiError(
            f"--model {wanted.model}: by its name it is distilled, and nothing in it tells for how "
            f"many steps. Give {' and '.join(open_ones)} as its card states them."
        )
    spec = {
        "title": stem,
        "licence": found.licence or NO_LICENCE,
        "pipeline": found.pipeline,
        "model": place.repository or f"local/{name}",
        "revision": place.revision or "local",
        "steps": found.steps,
        "guidance_scale": found.guidance_scale,
        "dtype": _dtype(wanted, said),
    }
    made = _entry(wanted, spec)
    if open_ones:
        said.append(
            f"steps {made['steps']}, guidance_scale {made['guidance_scale']:g}: usual for "
            f"{found.kind} in diffusers"
        )
    local = {} if place.folder is None else {"folder": place.folder}
    return _Model(name, made, local, {"width": found.width, "height": found.height})


def _of_file(wanted: Wanted, file: str, said: list[str]) -> _Model:
    """One file of weights, with the configurations of its base model."""
    from pipeline.images.diffusion.usual import config_of

    if not file.endswith(".safetensors"):
        raise AigiError(
            f"--model {file}: weights in pickle files are not read; save it as .safetensors"
        )
    config = wanted.config or config_of("--model", file)
    if wanted.config is None:
        said.append(f"{file}: configurations of {config}")
    hub = _HUB.fullmatch(config)
    folder = config if os.path.isdir(config) else None
    if folder is None and hub is None:
        raise AigiError(f"--config {config}: no such folder, and no id of the Hub (ORG/NAME)")
    repository, revision = ("", None) if hub is None or folder else (hub["id"], hub["revision"])
    place = Place("--config", "--config", folder, repository, revision)
    name = named(Path(file).stem)
    base = _of_place(wanted, name, place, said)
    model = base.spec | {
        "title": Path(file).stem,
        "licence": wanted.licence or NO_LICENCE,
        "model": f"local/{name}",
        "revision": "local",
        "file": file_sha256(file),
        "config": "local/config" if folder else f"{repository}@{revision or 'main'}",
    }
    return _Model(name, model, {**base.local, "file": file}, base.size)


def _entry(wanted: Wanted, spec: dict[str, Any]) -> dict[str, Any]:
    """An entry of a specification with what the user asks for in it."""
    asked = {
        "steps": wanted.steps,
        "guidance_scale": wanted.guidance_scale,
        "negative_prompt": wanted.negative_prompt or None,
        "scheduler": wanted.scheduler,
        "dtype": wanted.dtype,
        "licence": wanted.licence,
    }
    title, licence = spec["title"], wanted.licence or spec["licence"]
    given = {key: value for key, value in asked.items() if value is not None}
    return {"title": title, "licence": licence, "kind": "diffusers", **spec, **given}


def _dtype(wanted: Wanted, said: list[str]) -> str:
    """bfloat16 where a GPU will run it, else float32."""
    if wanted.dtype is not None:
        return wanted.dtype
    from pipeline.models.device import pick_device

    found = "bfloat16" if pick_device().type == "cuda" else "float32"
    said.append(f"dtype {found}: for the device of this machine; --dtype sets another")
    return found


# --- LoRAs ---------------------------------------------------------------------------------------


def _loras(given: tuple[str, ...]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Entries of the specification for LoRAs, and the places of those that are files here."""
    entries: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    for text in given:
        place, scale = _scaled(text)
        if os.path.isfile(path := os.path.expanduser(place)):
            name = _fresh(named(Path(path).stem), entries)
            places[name] = path
            entries.append({"name": name, "sha256": file_sha256(on_this_machine(path))})
        else:
            entries.append(_hub_lora(text, place, entries))
        if scale is not None:
            entries[-1]["scale"] = scale
    return entries, places


def _scaled(text: str) -> tuple[str, float | None]:
    place, at, scale = text.rpartition("@")
    if not at:
        return text, None
    try:
        found = float(scale)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise AigiError(f"--lora {text}: {scale}: expected a number behind @, such as @0.8")
    return place, found


def _fresh(name: str, entries: list[dict[str, Any]]) -> str:
    taken = {entry["name"] for entry in entries}
    return next(one for one in (name, *(f"{name}-{n}" for n in range(2, 99))) if one not in taken)


def _hub_lora(text: str, place: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A LoRA of the Hub, its file and the hash of that."""
    parts = place.split("/")
    if len(parts) < 2 or place.startswith((".", "/", "~")):
        raise AigiError(f"--lora {text}: no such file, and no id of the Hub (ORG/NAME)")
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    hub = Place(f"--lora {text}", "--lora FILE", None, repository)
    if not file:
        files = [name for name in hub.names() or () if name.endswith(".safetensors")]
        if len(files) != 1:
            listed = ", ".join(files) or "none, or the Hub does not answer"
            raise AigiError(f"--lora {text}: which file of it? ORG/NAME/FILE; there are: {listed}")
        file = files[0]
    if (sha256 := hub.sha256(file).get(file)) is None:
        sha256 = file_sha256(hub.file(file))
    name = _fresh(named(repository.rpartition("/")[2]), entries)
    return {"name": name, "model": repository, "weight_name": file, "sha256": sha256}
