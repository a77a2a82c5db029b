"""Published architectures with random weights in; images/s, TFLOP/s and memory of one GPU out.

    python -m tests.perf.gpu_check [--models sd21-base sd21 sdxl flux-schnell]
        [--modes eager compiled offload 8bit 4bit] [--out FILE.json]

For each model: `Diffuser` (PNG included) over a bare diffusers loop with the same prompts, seeds
and batches, first eager, then compiled. Weights are drawn on the GPU, saved, and read back by the
code that reads real ones. Needs torch, diffusers, transformers, accelerate and pyarrow, and for 8
and 4 bits torchao and bitsandbytes; no network, no Ray. FLUX.1-schnell is 34 GB on the disk.

Fewer steps are made than the dataset has (`--steps`, 10 of 50; all 4 of FLUX). TFLOP/s are of the
steps made, and the rate at full steps is derived from them. Random weights give textures, not
pictures: the arithmetic is that of the real models, the size of the PNG files (`png_bytes`) is not.

The file is written after every measurement, and whatever happens the script ends by itself after
`--limit-s` seconds with what it has.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.plan import specification
from pipeline.plan.specification import DiffusersSpec, SplitSpec
from pipeline.tables import PLAN
from tests.perf import bare, published
from tests.perf.report import GIB, machine, machine_line, markdown, number

ROOT = Path(__file__).resolve().parents[2]
SPECIFICATION = ROOT / "manifests" / "pku-aigi-500k.yaml"
BATCH = {"sd21-base": 16, "sd21": 8, "sdxl": 4, "flux-schnell": 4}
STEPS = 10
MODES: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "offload": {"offload": "model"},
    "8bit": {"quantise": "8bit"},
    "4bit": {"quantise": "4bit"},
}
"""Settings of a source by name. Compiling takes minutes: what it could cut off comes last."""
ENCODE_THREADS = 8
LIMIT_S = 570.0
# Seconds that must be left for a measurement to start: guesses, on the safe side.
NEED_S = {"compiled": 120.0}
OTHER_NEED_S = 45.0
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bf16 on tensor cores, by a part of the device's name (data sheets; H100: SXM)."""


FLUX = DiffusersSpec(
    title="FLUX.1-schnell",
    licence="Apache-2.0",
    kind="diffusers",
    pipeline="flux",
    model="black-forest-labs/FLUX.1-schnell",
    revision="random-weights",
    steps=4,
    guidance_scale=0.0,
    dtype="bfloat16",
    splits={
        "train": SplitSpec(count=1, width=1024, height=1024, unet_tflop=74.385, vae_tflop=10.472)
    },
)
"""As its card states it; TFLOP are those that `tests.perf.published` counts."""


def spec_of(model: str) -> DiffusersSpec:
    """What is made: sources of the dataset's specification, and FLUX."""
    if model == "flux-schnell":
        return FLUX
    found = specification.load(str(SPECIFICATION)).sources[model]
    assert isinstance(found, DiffusersSpec)
    return found


def tiny(architecture: published.Architecture) -> published.Architecture:
    """The same shape of pipeline, small enough for a CPU in a test."""
    texts = tuple(
        {**text, "d_model": 32, "d_ff": 37, "d_kv": 8, "num_layers": 2, "num_heads": 4}
        if "d_model" in text
        else text | {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
                     "num_hidden_layers": 2, "projection_dim": 32, "vocab_size": 2048}
        for text in architecture.texts
    )  # fmt: skip
    vae = architecture.vae | {
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    made = _tiny_flux if architecture.kind == "flux" else _tiny_unet
    denoiser = made(architecture, len(texts))
    return published.Architecture(architecture.kind, denoiser, vae, texts, architecture.scheduler)


def _tiny_flux(architecture: published.Architecture, texts: int) -> published.Config:
    return architecture.denoiser | {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    }


def _tiny_unet(architecture: published.Architecture, texts: int) -> published.Config:
    levels = len(architecture.denoiser["block_out_channels"])
    widths = tuple(16 * 2**i for i in range(levels))
    unet = architecture.denoiser | {
        "sample_size": 8,
        "block_out_channels": widths,
        "attention_head_dim": tuple(width // 8 for width in widths),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 32 * texts,
    }
    if architecture.kind == "sdxl":
        unet |= {
            "transformer_layers_per_block": (1, 1, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        }
    return unet


@dataclass
class Check:
    """What is asked for, what was found so far, and the clock."""

    models: list[str]
    batch: dict[str, int]
    steps: int
    seconds: float
    limit_s: float
    modes: list[str]
    tiny: bool
    out: Path | None
    folder: Path
    started: float = field(default_factory=time.monotonic)
    found: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds until the limit."""
        return self.limit_s - (time.monotonic() - self.started)

    def save(self) -> None:
        """Write what was found so far, whole or not at all."""
        if self.out is None:
            return
        temporary = self.out.with_name(self.out.name + ".tmp")
        temporary.write_text(json.dumps(self.found, indent=1) + "\n")
        temporary.replace(self.out)

    def say(self, text: str) -> None:
        """Print a line with the time that has gone by."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)


def device(tiny: bool) -> tuple[str, str, float | None]:
    """The device to use, its name, and its bf16 peak in TFLOP/s (None: unknown)."""
    import torch

    if tiny:
        return "cpu", "cpu", None
    if not torch.cuda.is_available():
        raise SystemExit("gpu_check: torch sees no CUDA device; --tiny tries the code on the CPU")
    name = torch.cuda.get_device_name(0)
    peak = next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
    return "cuda", name, peak


def plan_rows(spec: DiffusersSpec, side: int, count: int) -> list[dict[str, Any]]:
    """Plan rows of one source, as the plan stage writes them."""
    return [
        {
            "image_id": f"{n:032x}",
            "text": text,
            "seed": 1000 + n,
            "steps": spec.steps,
            "guidance_scale": spec.guidance_scale,
            "negative_prompt": spec.negative_prompt,
            "width": side,
            "height": side,
            "watermark": "none",
        }
        for n, text in enumerate(bare.sentences(count))
    ]


def tflop_an_image(spec: DiffusersSpec, evaluations: int) -> float | None:
    """TFLOP of one train image with so many steps; guidance may evaluate the denoiser twice."""
    train, each = spec.splits["train"], spec.evaluations
    if train.unet_tflop is None or train.vae_tflop is None or each is None:
        return None
    return evaluations * each / spec.steps * train.unet_tflop + train.vae_tflop


def _peak_gib(work: Callable[[], Any], cuda: bool) -> tuple[Any, float, float | None]:
    """The result of `work`, its seconds, and the GPU memory that it needed at most."""
    import torch

    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return result, seconds, torch.cuda.max_memory_allocated() / GIB if cuda else None


def measure(check: Check, model: str, mode: str, peak: float | None) -> dict[str, Any]:
    """Time the bare loop and `Diffuser` on one model, loaded once for both."""
    full = spec_of(model)
    made_steps = min(check.steps, full.steps)
    spec = full.model_copy(update={"steps": made_steps, "revision": "random weights"})
    side = 64 if check.tiny else full.splits["train"].width or 0
    batch = check.batch[model]
    folder, cuda = check.folder / model, not check.tiny

    started = time.perf_counter()
    diffuser = Diffuser(
        model,
        spec,
        DiffusersSource(folder=str(folder), batch_size=batch, **MODES[mode]),
        device="cuda" if cuda else "cpu",
        encode_threads=ENCODE_THREADS,
    )
    load_s = time.perf_counter() - started
    _, first_s, _ = _peak_gib(lambda: bare.batch(diffuser.pipe, plan_rows(spec, side, batch)), cuda)
    check.say(f"{model} {mode}: loaded in {load_s:.0f} s, first batch {first_s:.1f} s")

    # The second call is free of what the first one loads and compiles; it says how many fit.
    _, one_s, _ = _peak_gib(lambda: bare.batch(diffuser.pipe, plan_rows(spec, side, batch)), cuda)
    fit = min(check.seconds, max(0.0, check.left() - 10) / 3) / one_s
    batches = max(2, min(32, math.ceil(fit)))
    rows = plan_rows(spec, side, batch * batches)
    plan = pa.Table.from_pylist(rows, schema=PLAN)
    _, bare_s, bare_gib = _peak_gib(
        lambda: [len(made) for made in bare.pictures(diffuser.pipe, rows, batch)], cuda
    )
    images, ours_s, ours_gib = _peak_gib(lambda: pa.concat_tables(diffuser(plan)), cuda)

    made = images.select(["error", "batch_size"]).to_pylist()
    sizes = [len(image["bytes"]) for image in images["image"].to_pylist() if image is not None]
    # PNDM takes a step more than it is asked for: count, do not assume.
    evaluations = len(diffuser.pipe.scheduler.timesteps)
    steps_more = evaluations - made_steps
    each, whole = (
        None if check.tiny else tflop_an_image(full, steps + steps_more)
        for steps in (made_steps, full.steps)
    )
    bare_rate, ours_rate = len(rows) / bare_s, len(rows) / ours_s
    ours_tflops = None if each is None else each * ours_rate
    return {
        "model": model,
        "mode": mode,
        "width": side,
        "height": side,
        "batch": batch,
        "batches": batches,
        "steps": made_steps,
        "evaluations": evaluations,
        "images": len(rows),
        "load_s": load_s,
        "first_batch_s": first_s,
        "bare_images_per_s": bare_rate,
        "ours_images_per_s": ours_rate,
        "ratio": ours_rate / bare_rate,
        "bare_peak_gib": bare_gib,
        "ours_peak_gib": ours_gib,
        "tflop_an_image": each,
        "bare_tflops": None if each is None else each * bare_rate,
        "ours_tflops": ours_tflops,
        "share_of_peak": None if ours_tflops is None or peak is None else ours_tflops / peak,
        "full_steps": full.steps,
        "ours_images_per_s_at_full_steps": (
            None if each is None or whole is None else ours_rate * each / whole
        ),
        "png_bytes": sum(sizes) / max(1, len(sizes)),
        "errors": sorted({row["error"] for row in made if row["error"]}),
        # Smaller than `batch` where memory ran out and the batch was halved.
        "batch_sizes": sorted({row["batch_size"] for row in made}),
    }


def _try(check: Check, model: str, mode: str, peak: float | None) -> dict[str, Any]:
    """Measure, or say why not; one model that fails leaves the others their turn."""
    import torch

    left = check.left()
    if left < NEED_S.get(mode, OTHER_NEED_S) and not check.tiny:
        return {"model": model, "mode": mode, "skipped": f"only {left:.0f} s left"}
    try:
        return measure(check, model, mode, peak)
    except Exception as error:  # of any library; the report names it
        check.say(traceback.format_exc())
        return {"model": model, "mode": mode, "skipped": f"{type(error).__name__}: {error}"[:2000]}
    finally:
        if not check.tiny:
            torch.compiler.reset()
            torch.cuda.empty_cache()


def report(found: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    header = (
        *("model", "mode", "size", "batch", "steps", "bare images/s", "ours images/s", "ratio"),
        *("peak GiB", "TFLOP/s", "of peak", "images/s at full steps", "first batch s"),
    )
    lines = []
    for row in found.get("measurements", []):
        if "skipped" in row:
            note = row["skipped"].splitlines()[0][:60]
            lines.append([row["model"], row["mode"], note, *[""] * (len(header) - 3)])
            continue
        share = row["share_of_peak"]
        lines.append(
            [
                row["model"],
                row["mode"],
                f"{row['width']}x{row['height']}",
                "/".join(str(size) for size in row["batch_sizes"]),
                f"{row['steps']} of {row['full_steps']}",
                number(row["bare_images_per_s"]),
                number(row["ours_images_per_s"]),
                f"{row['ratio']:.3f}",
                number(row["ours_peak_gib"]),
                number(row["ours_tflops"]),
                "unknown" if share is None else f"{share:.0%}",
                number(row["ours_images_per_s_at_full_steps"]),
                number(row["first_batch_s"]),
            ]
        )
    return markdown(header, lines)


def _finish(check: Check, status: str) -> None:
    check.found["status"] = status
    check.found["seconds"] = time.monotonic() - check.started
    check.save()
    print(f"\n{machine_line(check.found['machine'])}, {check.found['device']}\n")
    print(report(check.found) + "\n", flush=True)


def _cut_off(check: Check) -> None:
    """End the process at the limit, from a thread: a compiler cannot be interrupted otherwise."""
    _finish(check, f"cut off after {check.limit_s:.0f} s")
    shutil.rmtree(check.folder, ignore_errors=True)
    os._exit(0)


def run(check: Check) -> None:
    """Save every model, then measure all of them in every mode."""
    torch_device, name, peak = device(check.tiny)
    check.found |= {
        "machine": machine(),
        "device": name,
        "peak_tflops": peak,
        "tiny": check.tiny,
        "models": {},
        "measurements": [],
    }
    guard = threading.Timer(check.left(), _cut_off, (check,))
    guard.daemon = True
    guard.start()
    for model in check.models:
        architecture = published.PUBLISHED[model]
        started = time.perf_counter()
        parameters = published.save(
            tiny(architecture) if check.tiny else architecture,
            check.folder / model,
            bare.sentences(16),
            torch_device,
            "bfloat16",
        )
        seconds = time.perf_counter() - started
        check.found["models"][model] = {"parameters": parameters, "save_s": seconds}
        check.say(f"{model}: {parameters / 1e9:.2f} G parameters drawn, saved in {seconds:.0f} s")
        check.save()
    for mode in sorted(check.modes, key=lambda mode: mode == "compiled"):
        for model in check.models:
            row = _try(check, model, mode, peak)
            check.found["measurements"].append(row)
            check.save()
            shown = row.get("skipped") or (
                f"bare {row['bare_images_per_s']:.2f}, ours {row['ours_images_per_s']:.2f} images/s"
            )
            check.say(f"{model} {mode}: {shown}")
    guard.cancel()
    _finish(check, "done")


def main() -> None:
    """Read the command line and run the check in a folder of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--models", nargs="+", choices=list(BATCH), default=list(BATCH))
    parser.add_argument("--batch", type=int, help=f"for every model; default: {BATCH}")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each timed side")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["eager", "compiled"])
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aigi-gpu-") as folder:
        run(
            Check(
                models=given.models,
                batch=BATCH if given.batch is None else dict.fromkeys(BATCH, given.batch),
                steps=given.steps,
                seconds=given.seconds,
                limit_s=given.limit_s,
                modes=given.modes,
                tiny=given.tiny,
                out=given.out,
                folder=Path(folder),
            )
        )


if __name__ == "__main__":
    main()
