"""Plan rows of one source in, PNG images and their provenance out, by a diffusers pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline import AigiError
from pipeline.faults import MachineFault, let_through, short_of_memory
from pipeline.images import compiled, memory, schedulers
from pipeline.images.pipelines import (
    Runner,
    call_problems,
    model_problems,
    part_problems,
    runner,
    skeleton,
)
from pipeline.images.texts import Texts
from pipeline.marks.names import embed
from pipeline.models.device import device_name, pick_device
from pipeline.models.hub import Place, check_sha256, loading
from pipeline.models.weights import (
    Part,
    check_model,
    check_pipeline,
    digest,
    pipeline_problems,
    read_index,
)
from pipeline.pixels import RGB, PngEffort, decode_threads, pixels_sha256, png_bytes
from pipeline.plan.options import options_of
from pipeline.plan.schedulers import OWN, scheduler_of
from pipeline.plan.specification import DiffusersSpec
from pipeline.settings import Count, Location, Model, Settings
from pipeline.tables import IMAGES

if TYPE_CHECKING:
    import torch


class DiffusersSource(Settings):
    """How this machine runs a text-to-image source of the specification."""

    kind: Literal["diffusers"] = "diffusers"
    folder: Location | None = Field(None, description="local copy; null: download from the Hub")
    batch_size: Count = Field(4, description="images made at once")
    vae: Model | None = Field(
        None, description="another VAE: a folder, or a Hub id as ORG/NAME@REVISION"
    )
    vae_tiling: bool | None = Field(
        None, description="decode in tiles, one image at a time; null: from 1536 pixels per side"
    )
    vae_slicing: bool = Field(False, description="decode one image at a time")
    attention_slicing: bool = Field(False, description="less memory, slower")
    attention: str | None = Field(
        None,
        description="backend of the denoiser's attention, as diffusers names it; null: torch's",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none",
        description="keep weights in the CPU's memory, and move to the GPU one component at a time "
        "(model) or one layer (sequential, very slow)",
    )
    quantise: Literal["none", "8bit", "4bit"] = Field(
        "none", description="hold denoiser and text encoders in fewer bits; changes the images"
    )
    compile: bool = Field(
        False, description="use torch.compile for the denoiser and the decoding of latents"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> DiffusersSource:
        if self.offload == "sequential":
            for other, set_ in (("quantise", self.quantise != "none"), ("compile", self.compile)):
                if set_:
                    raise ValueError(
                        f"offload: sequential moves single layers, which does not work with "
                        f"{other}; set offload: model, or remove {other}"
                    )
        return self

    def recorded(self) -> dict[str, Any]:
        """What can change a byte, for the record of the stage: places and moves cannot.

        Settings that came later are only in it where they differ from what was done before, so
        that a run of an earlier version is still the same run.
        """
        every = self.model_dump(mode="json", exclude={"folder", "offload"})
        usual = DiffusersSource().model_dump(mode="json")
        return {
            name: value
            for name, value in every.items()
            if name in _FIRST_RECORDED or value != usual[name]
        }


_FIRST_RECORDED = {"kind", "batch_size", "vae", "vae_tiling", "attention_slicing", "compile"}
"""Settings that every record of the stage has had, whatever their values."""
_IN_ROWS = ("vae_slicing", "attention", "offload", "quantise")
"""Settings that `versions` of every row states where they are not the usual ones."""

INDEX = "model_index.json"
_CONFIGS = (
    "*/config.json",
    "*/scheduler_config.json",
    "*/preprocessor_config.json",
    "tokenizer*/*",
)
"""What a repository has beside its weights."""

# Above this many pixels a side the VAE's activations dominate memory: decode in tiles.
TILE_FROM = 1536


def _place(name: str, spec: DiffusersSpec, local: DiffusersSource) -> Place:
    return Place.of(f"sources.{name}", local.folder, spec.model, spec.revision)


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
                    spec.model, revision=spec.revision, use_safetensors=True, **given
                )
            )
    check_pipeline(place, folder, given)
    return folder


def check_weights(
    name: str, spec: DiffusersSpec, local: DiffusersSource, device: str | None = None
) -> list[str]:
    """Check that the model is there and can do what specification and settings ask of it.

    Of a model of the Hub, hashes and configurations are looked at here: it is downloaded where it
    is run, and there its tensors are looked at before the first image.

    Returns: what is assumed of the model because nothing states it, a line each.

    Args:
        device: type of the device that will run it; None: not known here.

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
    problems = [f"sources.{name}.{line}" for line in call_problems(run, spec)]
    missing = part_problems(run, index, given)
    problems += [f"{place.where}: {place}: {line}" for line in missing]
    if local.folder is not None:
        problems += pipeline_problems(place, folder, given)
    with _noted(problems):
        memory.check_memory(name, local, device)
    if not missing and (bare := skeleton(run, index, folder)) is not None:
        problems += [f"sources.{name}.{line}" for line in model_problems(run, spec, bare)]
        with _noted(problems):
            denoiser = getattr(bare, run.family.denoiser, None)
            memory.check_parts(name, local, bare, denoiser)
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


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of diffusers without its notes on itself."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _versions(
    weights: Mapping[str, str], scheduler: Any, local: DiffusersSource, compiled: Sequence[str]
) -> str:
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
    usual = DiffusersSource()
    settings = {
        key: value for key in _IN_ROWS if (value := getattr(local, key)) != getattr(usual, key)
    }
    if settings:
        found["settings"] = settings
    if compiled:
        found["compiled"] = list(compiled)
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
        self.device = pick_device(device)
        self.png: PngEffort = png
        self.encode_threads = decode_threads(encode_threads)
        dtype = getattr(torch, spec.dtype)
        place = _place(name, spec, local)
        self.run = runner(place, read_index(place, place.fetch(INDEX)), spec)
        self.family = self.run.family
        memory.check_memory(name, local, self.device.type)
        options = {"dtype": dtype, "use_safetensors": True, **self.family.options}
        if (other := _other_vae(name, local)) is not None:
            folder = _vae_folder(other)
            with loading(other.where, other):
                options["vae"] = diffusers.AutoencoderKL.from_pretrained(
                    folder, dtype=dtype, use_safetensors=True, local_files_only=True
                )
        given = {key: options[key] for key in (*self.family.options, "vae") if key in options}
        folder = _pipeline_folder(place, self.run, spec, given)
        with loading(place.where, place), memory.current(self.device):
            pipe = self.run.kind.from_pretrained(
                folder, **options, **memory.quantisation(local, self.family.denoiser, folder)
            )
        self.loaded = {}
        for part, module in sorted(pipe.components.items()):
            if isinstance(module, torch.nn.Module):
                origin = other if other is not None and part == "vae" else place
                self.loaded[part] = digest(Part(origin.where, origin, part), module)
        pipe.scheduler = schedulers.made(
            f"sources.{name}.scheduler", scheduler_of(spec.scheduler), pipe.scheduler, spec.steps
        )
        pipe.set_progress_bar_config(disable=True)
        denoiser = getattr(pipe, self.family.denoiser, None)
        memory.check_parts(name, local, pipe, denoiser)
        if local.attention is not None:
            memory.set_attention(denoiser, local.attention)
        pipe = memory.placed(pipe, local, self.device)
        parts = compiled.compile_parts(pipe, denoiser) if local.compile else []
        self.pipe: Any = pipe
        self.texts = Texts.of(pipe, local.batch_size)
        self.provenance = {
            "device": device_name(self.device),
            "versions": _versions(self.loaded, pipe.scheduler, local, parts),
        }

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield IMAGES rows in the order of the PLAN rows, one chunk per batch."""
        plan = rows.to_pylist()
        # Variants of one generation stand side by side and share their seed.
        groups = [
            list(group)
            for _, group in groupby(plan, key=lambda row: row["pair_id"] or row["image_id"])
        ]
        size = self.local.batch_size
        if self.texts is not None:
            whole = size if self.local.compile else min(size, len(groups))
            self.texts.expect(whole, [group[0]["text"] for group in groups])
        with ThreadPoolExecutor(self.encode_threads, "png") as pool:
            before: list[Future[dict[str, Any]]] = []
            errors: list[str] = []
            for start in range(0, len(groups), size):
                batch = groups[start : start + size]
                pictures = self.generate([group[0] for group in batch])
                errors += [picture.error for picture in pictures if picture.error]
                if len(errors) == len(groups) > 1:
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

        Compiled code takes no other size of a batch: rows that lack are filled with the last one,
        whose images are dropped. Images record the filled size, which is what decides their bits.

        Raises:
            MachineFault: the device failed, or has too little memory for one image.
        """
        return self._generated(rows, self.local.batch_size)

    def _generated(self, rows: list[dict[str, Any]], size: int) -> list[_Picture]:
        """As `generate`.

        Args:
            size: images in a batch of compiled code.
        """
        import torch

        where = f"sources.{self.name}: {self.device}"
        size = size if self.local.compile else len(rows)
        try:
            full = [*rows, *rows[-1:] * (size - len(rows))]
            return self._pictures(self._infer(full))[: len(rows)]
        except (MemoryError, TypeError, ValueError, RuntimeError) as error:
            if not short_of_memory(error):
                let_through(error, where)  # after it, nothing on this device can be believed
                if len(rows) == 1:
                    return [_Picture(None, f"{type(error).__name__}: {error}"[:500], size)]
                parts, smaller = [[row] for row in rows], size
            elif size == 1:
                raise MachineFault(
                    f"{where}: out of memory with one image of {rows[0]['width']}x"
                    f"{rows[0]['height']} pixels. End what else uses the memory, or set offload, "
                    "quantise, vae_tiling or attention_slicing, or bfloat16 in the specification."
                ) from error
            else:
                half = size // 2
                parts = [part for part in (rows[:half], rows[half:]) if part]
                smaller = size - half
        # Here the error and what it holds on the device are gone.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return [picture for part in parts for picture in self._generated(part, smaller)]

    def _infer(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        """float Bx3xHxW tensor on the device, nominally 0 to 1."""
        import torch

        first = rows[0]
        width, height = first["width"], first["height"]
        tiling = self.local.vae_tiling
        if tiling is None:
            tiling = max(width, height) >= TILE_FROM
        memory.decode_in_parts(self.pipe, tiling, self.local.vae_slicing)
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
