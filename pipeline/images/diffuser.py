"""Plan rows of one source in, PNG images and their provenance out, by a diffusers pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline import AigiError
from pipeline.complaints import near
from pipeline.faults import MachineFault, let_through, short_of_memory
from pipeline.images import parts, schedulers
from pipeline.images.pipelines import (
    Runner,
    call_problems,
    component_kind,
    model_problems,
    part_problems,
    runner,
    skeleton,
)
from pipeline.marks.names import embed
from pipeline.models.device import device_name, pick_device
from pipeline.models.hub import Place, check_sha256, loading
from pipeline.models.weights import (
    Part,
    check_model,
    check_pipeline,
    digest,
    header,
    pipeline_problems,
    read_index,
)
from pipeline.pixels import RGB, PngEffort, decode_threads, pixels_sha256, png_bytes
from pipeline.plan.options import options_of
from pipeline.plan.schedulers import OWN, scheduler_of
from pipeline.plan.specification import DiffusersSpec
from pipeline.prompts.tokens import Reader, reader_of
from pipeline.settings import Count, Location, Model, Settings
from pipeline.tables import IMAGES

if TYPE_CHECKING:
    import torch


class DiffusersSource(Settings):
    """How this machine runs a text-to-image source of the specification."""

    kind: Literal["diffusers"] = "diffusers"
    folder: Location | None = Field(None, description="local copy; null: download from the Hub")
    file: Location | None = Field(
        None, description="the one .safetensors file that the specification pins"
    )
    loras: dict[str, Location] = Field(
        default_factory=dict, description="files of LoRAs on this machine, by their names"
    )
    components: dict[str, Location] = Field(
        default_factory=dict, description="folders of other components on this machine, by names"
    )
    batch_size: Count = Field(4, description="images made at once")
    vae: Model | None = Field(
        None, description="another VAE: a folder, or a Hub id as ORG/NAME@REVISION"
    )
    vae_tiling: bool | None = Field(
        None, description="decode in tiles, one image at a time; null: from 1536 pixels per side"
    )
    attention_slicing: bool = Field(False, description="less memory, slower")
    compile: bool = Field(False, description="use torch.compile for the denoiser")

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the places that came later, where there are none: records stay as they are."""
        found: dict[str, Any] = dump(self)
        return {name: value for name, value in found.items() if name not in PLACES or value}


PLACES = ("file", "loras", "components")
"""Settings that say where files are whose content the specification pins."""
INDEX = "model_index.json"
_CONFIGS = (
    "*/config.json",
    "*/scheduler_config.json",
    "*/preprocessor_config.json",
    "tokenizer*/*",
)
"""What a repository has beside its weights."""
_TOKENIZERS = ("tokenizer*/*", "processor*/*")

# Above this many pixels a side the VAE's activations dominate memory: decode in tiles.
TILE_FROM = 1536


def _place(name: str, spec: DiffusersSpec, local: DiffusersSource) -> Place:
    model, revision = spec.model, spec.revision
    if spec.config is not None:
        model, _, revision = spec.config.partition("@")
    return Place.of(f"sources.{name}", local.folder, model, revision or None)


def prompt_reader(name: str, spec: DiffusersSpec, local: DiffusersSource) -> Reader:
    """The tokenizer of a source's model that reads most of a prompt.

    Raises:
        AigiError: the model or its tokenizer is missing.
    """
    place = _place(name, spec, local)
    folder = place.fetch(INDEX, beside=_TOKENIZERS)
    run = runner(place, read_index(place, folder), spec)
    stated = run.takes.get("max_sequence_length")
    most = spec.options.get("max_sequence_length", None if stated is None else stated.default)
    templated = run.family.templated
    return reader_of(place.where, folder, most if isinstance(most, int) else None, templated)


def places(name: str, spec: DiffusersSpec, local: DiffusersSource) -> Iterator[Place]:
    """Where everything is that a source loads."""
    yield _place(name, spec, local)
    yield from parts.added_places(name, spec, local.loras, local.components)


def _other_vae(name: str, local: DiffusersSource) -> Place | None:
    """Where the VAE is that takes the place of the model's own, if there is one."""
    if local.vae is None:
        return None
    key = f"sources.{name}.vae"
    if os.path.isabs(local.vae):
        return Place(key, key, local.vae)
    repository, _, revision = local.vae.partition("@")
    return Place(key, key, None, repository, revision or None)


def _vae_folder(place: Place) -> str:
    """Its files on this machine, compared with the model."""
    import diffusers

    folder = place.fetch("config.json", "diffusion_pytorch_model.safetensors")
    check_model(Part(place.where, place, "vae"), diffusers.AutoencoderKL, folder)
    return folder


def _pipeline_folder(
    place: Place, found: Runner, spec: DiffusersSpec, given: Mapping[str, Any]
) -> str:
    """The model's files on this machine, compared with the model.

    Args:
        found: how it is run.
        given: components that do not come from there.
    """
    folder = place.folder
    if folder is None:
        with loading(place.where, place):
            # diffusers knows which of a repository's many weights it needs.
            folder = str(
                found.kind.download(
                    place.repository,
                    revision=place.revision,
                    use_safetensors=True,
                    variant=spec.variant,
                    **given,
                )
            )
    check_pipeline(place, folder, given, spec.variant)
    return folder


def check_weights(name: str, spec: DiffusersSpec, local: DiffusersSource) -> list[str]:
    """Check that the model is there and can do what the specification asks of it.

    Of a model of the Hub, hashes and configurations are looked at here: it is downloaded where it
    is run, and there its tensors are looked at before the first image.

    Returns: what is assumed of the model because nothing states it, a line each.

    Raises:
        AigiError: the folder is missing or no pipeline; a weight file is missing or changed, or
            does not have the tensors of its component; the class is none of diffusers, makes no
            images from text, or does not take what the specification gives. All of what is
            wrong is said at once, a line each.
    """
    place = _place(name, spec, local)
    if local.folder is not None:
        place.fetch(INDEX, *spec.sha256)
    found = place.sha256(INDEX, *spec.sha256)
    for file, expected in spec.sha256.items():
        if file not in found:
            raise place.lacking(file)
        check_sha256(place.where, f"{place}: {file}", found[file], expected)
    folder = place.fetch(INDEX, beside=_CONFIGS)
    index = read_index(place, folder)
    run = runner(place, index, spec)
    given = {**run.family.options, **({} if local.vae is None else {"vae": None})}
    given |= dict.fromkeys(spec.components)
    problems = [f"sources.{name}.{line}" for line in call_problems(run, spec)]
    if local.vae is not None and "vae" in spec.components:
        problems.append(f"sources.{name}.vae: the specification has another VAE; remove this")
    problems += strangers(name, spec, local)
    missing = part_problems(run, index, given)
    problems += [f"{place.where}: {place}: {line}" for line in missing]
    whole = False
    if spec.file is not None:
        with _noted(problems):
            file = parts.checkpoint(name, spec, local.file)
            whole = parts.is_whole(header(Part(f"sources.{name}.file", file), file))
            given[run.family.denoiser] = None
            if not missing:
                problems += parts.checkpoint_problems(name, file, run, index, folder)
    if local.folder is not None and not whole:
        problems += pipeline_problems(place, folder, given, spec.variant)
    bare = None if missing else skeleton(run, index, folder, bool(spec.loras))
    if bare is not None:
        problems += [f"sources.{name}.{line}" for line in model_problems(run, spec, bare)]
    problems += parts.component_problems(name, spec, local.components, index)
    problems += parts.lora_problems(name, spec, local.loras, run, bare)
    if (vae := _other_vae(name, local)) is not None and vae.folder is not None:
        with _noted(problems):
            _vae_folder(vae)
    wanted = scheduler_of(spec.scheduler)
    if str(wanted) != OWN:
        key = f"sources.{name}.scheduler"
        with _noted(problems):
            own = schedulers.own_of(key, place.fetch(schedulers.CONFIG))
            schedulers.made(key, wanted, own, spec.steps)
    if problems:
        raise AigiError("\n".join(problems))
    return [f"sources.{name}: {run.assumed}"] if run.assumed else []


def strangers(name: str, spec: DiffusersSpec, local: DiffusersSource) -> list[str]:
    """Places of files that the specification does not have, a line each."""
    known = {"loras": [lora.name for lora in spec.loras], "components": list(spec.components)}
    found = [
        f"sources.{name}.{kind}.{key}: the specification has no such one; " + near(key, names)
        for kind, names in known.items()
        for key in getattr(local, kind)
        if key not in names
    ]
    if local.file is not None and spec.file is None:
        found.append(f"sources.{name}.file: the specification pins no file; state its sha256 there")
    return found


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Keep an error as one more line."""
    try:
        yield
    except AigiError as error:
        problems.append(str(error))


@dataclass
class _Picture:
    """One generation: uint8 HxWx3 RGB or an error, and the batch that it was made in."""

    rgb: RGB | None
    error: str | None
    batch_size: int


def _begins(groups: list[list[dict[str, Any]]], size: int, start: int) -> int:
    """The group at which the batch begins whose first row is `start`."""
    rows = 0
    for place, group in enumerate(groups):
        if rows == start and place % size == 0:
            return place
        rows += len(group)
    raise AigiError(f"images: no batch of {size} begins at row {start + 1}")


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of diffusers without its notes on itself."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _versions(weights: Mapping[str, str], scheduler: Any) -> str:
    import diffusers
    import torch
    import transformers

    found = {
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": dict(weights),
        "scheduler": {"class": type(scheduler).__name__, **_public(scheduler.config)},
    }
    return json.dumps(found, sort_keys=True)


class Diffuser:
    """A loaded text-to-image pipeline.

    Every image has a generator of its own, seeded on the CPU. Batches are cut from the rows as
    they come; their size is recorded, since it changes the last bit of some pixels.

    Args:
        name: the source, for messages.
        spec: what the model is.
        local: where it is stored on this machine and how it is run.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        png: `fast` or `small`, as for `png_bytes`.
        encode_threads: threads that compress PNG while the next batch is made.

    Attributes:
        loaded: digests of the weights by component, as they were loaded in the source's dtype.
        every_row_may_fail: a shard whose images all fail is finished all the same.

    Raises:
        AigiError: the model is missing, incomplete or cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        spec: DiffusersSpec,
        local: DiffusersSource,
        device: str = "auto",
        png: PngEffort = "fast",
        encode_threads: int | None = None,
    ) -> None:
        import diffusers
        import torch
        import transformers

        # The stage has a progress line of its own.
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        # Nor is a prompt above 77 tokens news: the prompts table says `truncated`.
        diffusers.utils.logging.set_verbosity_error()
        transformers.utils.logging.set_verbosity_error()
        self.name, self.spec, self.local = name, spec, local
        self.every_row_may_fail = False
        self.device = pick_device(device)
        self.png: PngEffort = png
        self.encode_threads = decode_threads(encode_threads)
        dtype = getattr(torch, spec.dtype)
        place = _place(name, spec, local)
        index = read_index(place, place.fetch(INDEX))
        self.run = runner(place, index, spec)
        self.family = self.run.family
        options = {"dtype": dtype, "use_safetensors": True, **self.family.options}
        if (other := _other_vae(name, local)) is not None:
            folder = _vae_folder(other)
            with loading(other.where, other):
                options["vae"] = diffusers.AutoencoderKL.from_pretrained(
                    folder, dtype=dtype, use_safetensors=True, local_files_only=True
                )
        options |= parts.load_components(name, spec, local.components, index, dtype)
        pipe = self._load(place, index, options)
        parts.fuse_loras(name, spec, local.loras, pipe)
        self.loaded = {}
        for component, module in sorted(pipe.components.items()):
            if isinstance(module, torch.nn.Module):
                origin = other if other is not None and component == "vae" else place
                self.loaded[component] = digest(Part(origin.where, origin, component), module)
        pipe.scheduler = schedulers.made(
            f"sources.{name}.scheduler", scheduler_of(spec.scheduler), pipe.scheduler, spec.steps
        )
        pipe.set_progress_bar_config(disable=True)
        pipe = pipe.to(self.device)
        denoiser = getattr(pipe, self.family.denoiser, None)
        if local.attention_slicing:
            if not hasattr(denoiser, "set_attention_slice"):
                raise AigiError(
                    f"sources.{name}.attention_slicing: {type(pipe).__name__} has none. Remove it."
                )
            pipe.enable_attention_slicing()
        if local.vae_tiling and not hasattr(getattr(pipe, "vae", None), "enable_tiling"):
            raise AigiError(
                f"sources.{name}.vae_tiling: {type(pipe).__name__} has none. Remove it."
            )
        if local.compile:
            if denoiser is None:
                raise AigiError(
                    f"sources.{name}.compile: no denoiser is known of {type(pipe).__name__}. "
                    "Remove it."
                )
            denoiser.compile(dynamic=False)
        self.pipe: Any = pipe
        self.provenance = {
            "device": device_name(self.device),
            "versions": _versions(self.loaded, pipe.scheduler),
        }

    def _load(self, place: Place, index: Mapping[str, Any], options: dict[str, Any]) -> Any:
        """The pipeline, from a folder, or from one file and the configurations of a folder.

        Args:
            options: dtype, switches and components that do not come from there.
        """
        spec, family = self.spec, self.family
        dtype = options["dtype"]
        given = {key: value for key, value in options.items() if key in self.run.built}
        if spec.file is not None:
            where = f"sources.{self.name}.file"
            file = parts.checkpoint(self.name, spec, self.local.file)
            folder = place.fetch(INDEX, beside=_CONFIGS)
            if told := parts.checkpoint_problems(self.name, file, self.run, index, folder):
                raise AigiError("\n".join(told))
            if parts.is_whole(header(Part(where, file), file)):
                return parts.load_checkpoint(where, self.run, file, folder, dtype, given)
            kind = component_kind(index, family.denoiser)
            denoiser = parts.load_denoiser(where, kind, file, folder, family.denoiser, dtype)
            given[family.denoiser] = options[family.denoiser] = denoiser
        folder = _pipeline_folder(place, self.run, spec, given)
        with loading(place.where, place):
            return self.run.kind.from_pretrained(folder, variant=spec.variant, **options)

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """Yield IMAGES rows in the order of the PLAN rows, one chunk per batch.

        Args:
            start: rows of the first batches, which are made already. All batches are cut from all
                rows, so that the others are what they would be.

        Raises:
            AigiError: no batch begins at row `start`; or every image failed.
        """
        plan = rows.to_pylist()
        # Variants of one generation stand side by side and share their seed.
        groups = [
            list(group)
            for _, group in groupby(plan, key=lambda row: row["pair_id"] or row["image_id"])
        ]
        size = self.local.batch_size
        first = _begins(groups, size, start)
        with ThreadPoolExecutor(self.encode_threads, "png") as pool:
            before: list[Future[dict[str, Any]]] = []
            errors: list[str] = []
            for place in range(first, len(groups), size):
                batch = groups[place : place + size]
                pictures = self.generate([group[0] for group in batch])
                errors += [picture.error for picture in pictures if picture.error]
                if len(errors) == len(groups) > 1 and not self.every_row_may_fail:
                    # Not bad rows but a bad set-up: a finished shard would hide it.
                    raise AigiError(f"sources.{self.name}: every image failed: {errors[0]}")
                if before:
                    yield self._chunk(before)
                before = [
                    pool.submit(self._encode, row, picture)
                    for group, picture in zip(batch, pictures, strict=True)
                    for row in group
                ]
            if before:
                yield self._chunk(before)

    @staticmethod
    def _chunk(futures: list[Future[dict[str, Any]]]) -> pa.Table:
        return pa.Table.from_pylist([future.result() for future in futures], schema=IMAGES)

    def _encode(self, row: dict[str, Any], picture: _Picture) -> dict[str, Any]:
        made = {
            "image_id": row["image_id"],
            "error": picture.error,
            "batch_size": picture.batch_size,
            **self.provenance,
        }
        if picture.rgb is None:
            return made
        rgb = embed(picture.rgb, row["watermark"])
        return made | {
            "image": {
                "bytes": png_bytes(rgb, self.png),
                "path": f"{row['image_id']}.png",
            },
            "width": rgb.shape[1],
            "height": rgb.shape[0],
            "pixels_sha256": pixels_sha256(rgb),
        }

    def generate(self, rows: list[dict[str, Any]]) -> list[_Picture]:
        """Make one image (uint8, H x W x 3, size of its row) or an error per row, in one batch.

        A batch that runs out of memory is halved, and the rows record the smaller size.

        A batch that fails for another reason is made again one by one, so that a bad row fails
        alone.

        Raises:
            MachineFault: the device failed, or has too little memory for one image.
        """
        import torch

        where = f"sources.{self.name}: {self.device}"
        try:
            return self._pictures(self._infer(rows))
        except (MemoryError, TypeError, ValueError, RuntimeError) as error:
            if not short_of_memory(error):
                let_through(error, where)  # after it, nothing on this device can be believed
                if len(rows) == 1:
                    return [_Picture(None, f"{type(error).__name__}: {error}"[:500], 1)]
                parts = [[row] for row in rows]
            elif len(rows) == 1:
                raise MachineFault(
                    f"{where}: out of memory with one image of {rows[0]['width']}x"
                    f"{rows[0]['height']} pixels. End what else uses the memory, or set vae_tiling "
                    "or attention_slicing, or bfloat16 in the specification."
                ) from error
            else:
                parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        # Here the error and what it holds on the device are gone.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return [picture for part in parts for picture in self.generate(part)]

    def _infer(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        """float Bx3xHxW tensor on the device, nominally 0 to 1."""
        import torch

        first = rows[0]
        width, height = first["width"], first["height"]
        tiling = self.local.vae_tiling
        if tiling is None:
            tiling = max(width, height) >= TILE_FROM
        # Some VAEs have neither; one that was asked for them was refused before.
        vae = getattr(self.pipe, "vae", None)
        for what in ("tiling", "slicing"):  # in tiles, and one image at a time
            switch = getattr(vae, f"{'enable' if tiling else 'disable'}_{what}", None)
            if switch is not None:
                switch()
        options = options_of(first.get("options"))
        if self.family.guidance:
            options[self.family.guidance] = first["guidance_scale"]
        if self.family.negative_prompt and "negative_prompt" in self.run.takes:
            options["negative_prompt"] = [row["negative_prompt"] or "" for row in rows]
        images: torch.Tensor = self.pipe(
            prompt=[row["text"] for row in rows],
            width=width,
            height=height,
            num_inference_steps=first["steps"],
            generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in rows],
            output_type="pt",
            **options,
        ).images
        if images.shape[-2:] != (height, width):
            made = f"{images.shape[-1]}x{images.shape[-2]}"
            raise ValueError(f"{made} pixels were made, {width}x{height} are planned")
        return images

    @staticmethod
    def _pictures(images: torch.Tensor) -> list[_Picture]:
        """Round to 8 bits on the device, as diffusers does on the CPU, and look for overflow."""
        import torch

        images = images.float()
        finite = torch.isfinite(images).flatten(1).all(1).tolist()
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        found = []
        for rgb, whole in zip(pixels.cpu().numpy(), finite, strict=True):
            error = None
            if not whole:
                error = (
                    "not a number in the decoded picture: this VAE overflows in this dtype; use "
                    "bfloat16 or float32, or set vae to one that is safe in float16"
                )
            elif not rgb.any():
                error = "all black: the VAE overflowed, or the model made nothing"
            kept = np.ascontiguousarray(rgb) if error is None else None
            found.append(_Picture(kept, error, len(images)))
        return found
