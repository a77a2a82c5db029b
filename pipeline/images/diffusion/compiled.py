"""A loaded pipeline in, the same with compiled parts out, and the names of those parts."""

from __future__ import annotations

from typing import Any

BACKEND = "inductor"
DECODERS = {"AutoencoderDC", "AutoencoderKL", "AutoencoderKLFlux2"}
"""VAEs whose decoder is one pass over the latents. Those of videos loop over frames."""
SHAPES = 64
"""Shapes that a part may be compiled for: sizes of a source, batches that memory has halved.
Beyond torch's usual 8 it would go on without compiled code, and report nothing."""


def compile_parts(pipe: Any, denoiser: Any) -> list[str]:
    """Compile the denoiser and the VAE's decoder of a pipeline, in place, at their first call.

    Of a transformer the repeated blocks are compiled, which takes a fraction of the time for the
    same speed. A UNet is compiled as a whole: much of its work is between its blocks.

    Args:
        denoiser: the component that runs in every step.

    Returns: what is compiled, for the record.
    """
    import torch

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    options: dict[str, Any] = {"backend": BACKEND, "dynamic": False}
    kind = type(denoiser).__name__
    blocks = getattr(denoiser, "_repeated_blocks", None)
    if blocks and not kind.startswith("UNet"):
        denoiser.compile_repeated_blocks(**options)
        found = [f"{kind}: {', '.join(blocks)}"]
    else:
        denoiser.compile(**options)
        found = [kind]
    if type(getattr(pipe, "vae", None)).__name__ in DECODERS:
        pipe.vae.decoder.compile(**options)
        found.append(f"{type(pipe.vae).__name__}: decoder")
    return found
