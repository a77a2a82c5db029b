"""Plan rows of one source in, images and their provenance out, by a diffusers pipeline."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import AigiError
from pipeline.faults import MachineFault, let_through, short_of_memory
from pipeline.images.diffusion import compiled, memory, parts, schedulers
from pipeline.images.diffusion.pipelines import (
    component_kind,
    runner,
)
from pipeline.images.diffusion.places import (
    CONFIGS,
    other_vae,
    pipeline_folder,
    place_of,
    vae_folder,
)
from pipeline.images.diffusion.source import IN_ROWS, TILE_FROM, DiffusersSource
from pipeline.images.diffusion.texts import Texts
from pipeline.marks.names import embed
from pipeline.models.device import device_name, pick_device
from pipeline.models.hub import Place, loading
from pipeline.models.weights import (
    INDEX,
    Part,
    digest,
    header,
    read_index,
)
from pipeline.pixels import RGB, Container, contained, decode_threads, named, pixels_sha256
from pipeline.plan.options import options_of
from pipeline.plan.schedulers import scheduler_of
from pipeline.plan.specification import DiffusersSpec
from pipeline.retry import MISSING
from pipeline.tables import IMAGES

if TYPE_CHECKING:
    import torch


@dataclass
class _Picture:
    """One generation: uint8 HxWx3 RGB or an error, and the batch that it was made in."""

    rgb: RGB | None
    error: str | None
    batch_size: int


_GAPS = 1.25
"""Batches that may be made again in part, for each whole one that the missing rows would fill."""
Group = list[dict[str, Any]]
"""Rows of one generation: variants that differ in their watermark."""


def _missing(group: Group) -> Group:
    """The rows of a generation that are missing: all, where nothing is said of that."""
    return [row for row in group if row.get(MISSING, True)]


def _cut(groups: list[Group], size: int) -> list[list[Group]]:
    """The batches of a shard in which rows are missing.

    They are what they are for the whole shard, with rows in them that are there already: in some
    models the place in a batch, or the longest prompt of it, moves the last bit. Where that would
    be much more work, the missing rows move up.
    """
    batches = [groups[start : start + size] for start in range(0, len(groups), size)]
    wanted = [batch for batch in batches if any(map(_missing, batch))]
    missing = [group for batch in wanted for group in batch if _missing(group)]
    if len(wanted) <= 1 + _GAPS * math.ceil(len(missing) / size):
        return wanted
    return [missing[start : start + size] for start in range(0, len(missing), size)]


def _begins(batches: list[list[Group]], start: int) -> int:
    """The batch whose first missing row is `start`, if only these are counted."""
    rows = 0
    for number, batch in enumerate(batches):
        if rows == start:
            return number
        rows += sum(len(_missing(group)) for group in batch)
    raise AigiError(f"images: no batch begins at row {start + 1}")


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
        key: value for key in IN_ROWS if (value := getattr(local, key)) != getattr(usual, key)
    }
    if settings:
        found["settings"] = settings
    if compiled:
        found["compiled"] = list(compiled)
    return json.dumps(found, sort_keys=True)


class Diffuser:
    """A loaded text-to-image pipeline.

    Every image has a generator of its own, seeded on the CPU. Batches are cut from the rows as
    they come; their size is recorded, since it changes the last bit of some pixels. In some models
    so does the place in a batch, or its longest prompt: Sana, PixArt-Sigma and Qwen-Image.

    Args:
        name: the source, for messages.
        spec: what the model is.
        local: where it is stored on this machine and how it is run.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        container: what images are stored in.
        encode_threads: threads that compress images while the next batch is made.
        fill: make every batch as large as the source's `batch_size`.

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
        container: Container | None = None,
        encode_threads: int | None = None,
        fill: bool = False,
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
        # Compiled code takes no other size.
        self.fill = fill or local.compile
        self.device = pick_device(device)
        self.container = container or Container()
        self.encode_threads = decode_threads(encode_threads)
        dtype = getattr(torch, spec.dtype)
        place = place_of(name, spec, local)
        index = read_index(place, place.fetch(INDEX))
        self.run = runner(place, index, spec.pipeline)
        self.family = self.run.family
        memory.check_memory(name, local, self.device.type)
        options = {"dtype": dtype, "use_safetensors": True, **self.family.options}
        if (other := other_vae(name, local)) is not None:
            folder = vae_folder(other)
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
        denoiser = getattr(pipe, self.family.denoiser, None)
        memory.check_parts(name, local, pipe, denoiser)
        if local.attention is not None:
            memory.set_attention(denoiser, local.attention)
        pipe = memory.placed(pipe, local, self.device)
        quick = compiled.compile_parts(pipe, denoiser) if local.compile else []
        self.pipe: Any = pipe
        self.texts = Texts.of(pipe, local.batch_size)
        self.provenance = {
            "device": device_name(self.device),
            "versions": _versions(self.loaded, pipe.scheduler, local, quick),
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
            folder = place.fetch(INDEX, beside=CONFIGS)
            if told := parts.checkpoint_problems(self.name, file, self.run, index, folder):
                raise AigiError("\n".join(told))
            if parts.is_whole(header(Part(where, file), file)):
                return parts.load_checkpoint(where, self.run, file, folder, dtype, given)
            kind = component_kind(index, family.denoiser)
            denoiser = parts.load_denoiser(where, kind, file, folder, family.denoiser, dtype)
            given[family.denoiser] = options[family.denoiser] = denoiser
        folder = pipeline_folder(place, self.run, spec, given)
        quantised = memory.quantisation(self.local, family.denoiser, index)
        with loading(place.where, place), memory.current(self.device):
            return self.run.kind.from_pretrained(
                folder, variant=spec.variant, **options, **quantised
            )

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        """Yield IMAGES rows in the order of the PLAN rows, one chunk per batch.

        Args:
            rows: with a column MISSING, only those where it is true are made.
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
        batches = _cut(groups, size)
        batches, every = batches[_begins(batches, start) :], sum(map(len, batches))
        if self.texts is not None:
            whole = size if self.fill else min(size, len(groups))
            texts = (group[0]["text"] for batch in batches for group in batch)
            self.texts.expect(whole, texts)
        with ThreadPoolExecutor(self.encode_threads, "encode") as pool:
            before: list[Future[dict[str, Any]]] = []
            errors: list[str] = []
            for batch in batches:
                pictures = self.generate([group[0] for group in batch])
                errors += [picture.error for picture in pictures if picture.error]
                if len(errors) == every > 1 and not self.every_row_may_fail:
                    # Not bad rows but a bad set-up: a finished shard would hide it.
                    raise AigiError(f"sources.{self.name}: every image failed: {errors[0]}")
                if before:
                    yield self._chunk(before)
                before = [
                    pool.submit(self._encode, row, picture)
                    for group, picture in zip(batch, pictures, strict=True)
                    for row in _missing(group)
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
            "image": named(row["image_id"], contained(rgb, self.container)),
            "width": rgb.shape[1],
            "height": rgb.shape[0],
            "pixels_sha256": pixels_sha256(rgb),
        }

    def generate(self, rows: list[dict[str, Any]]) -> list[_Picture]:
        """Make one image (uint8, H x W x 3, size of its row) or an error per row, in one batch.

        A batch that runs out of memory is halved, and the rows record the smaller size.

        A batch that fails for another reason is made again one by one, so that a bad row fails
        alone.

        With `fill`, rows that lack are filled with the last one, whose images are dropped. Images
        record the filled size: with it, they are the same whatever is beside them.

        Raises:
            MachineFault: the device failed, or has too little memory for one image.
        """
        return self._generated(rows, self.local.batch_size)

    def _generated(self, rows: list[dict[str, Any]], size: int) -> list[_Picture]:
        """As `generate`.

        Args:
            size: images in a batch that is filled.
        """
        import torch

        where = f"sources.{self.name}: {self.device}"
        size = size if self.fill else len(rows)
        try:
            full = [*rows, *rows[-1:] * (size - len(rows))]
            return self._pictures(self._infer(full))[: len(rows)]
        except (MemoryError, TypeError, ValueError, RuntimeError) as error:
            if not short_of_memory(error):
                let_through(error, where)  # after it, nothing on this device can be believed
                if len(rows) == 1:
                    return [_Picture(None, f"{type(error).__name__}: {error}"[:500], size)]
                pieces, smaller = [[row] for row in rows], size
            elif size == 1:
                raise MachineFault(
                    f"{where}: out of memory with one image of {rows[0]['width']}x"
                    f"{rows[0]['height']} pixels. End what else uses the memory, or set offload, "
                    "quantise, vae_tiling or attention_slicing, or bfloat16 in the specification."
                ) from error
            else:
                half = size // 2
                pieces = [piece for piece in (rows[:half], rows[half:]) if piece]
                smaller = size - half
        # Here the error and what it holds on the device are gone.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return [picture for piece in pieces for picture in self._generated(piece, smaller)]

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
