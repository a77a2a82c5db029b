"""How a source saves memory in; its pipeline set up so, or why this machine cannot do that, out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import AigiError
from pipeline.complaints import near

if TYPE_CHECKING:
    import torch

    from pipeline.images.diffusion.source import DiffusersSource


@dataclass(frozen=True)
class Weights:
    """A way to hold weights in fewer bits.

    Attributes:
        package: that does it; `pip install 'aigi[quantise]'` brings it.
        devices: on which it works.
        config: names of its configuration: class of diffusers and of transformers.
    """

    package: str
    devices: tuple[str, ...]
    config: str


QUANTISED = {
    "8bit": Weights("torchao", ("cuda", "cpu"), "TorchAoConfig"),
    "4bit": Weights("bitsandbytes", ("cuda",), "BitsAndBytesConfig"),
}
"""By the values of `quantise`: whole numbers of 8 bits, or normal floats of 4 (NF4)."""


def check_memory(name: str, local: DiffusersSource, device: str | None) -> None:
    """Check that a machine can run a source as its settings say, whatever its model is.

    Args:
        device: type of the device that will run it; None: not known here.

    Raises:
        AigiError: names the setting, and what to install or to set instead.
    """
    where = f"sources.{name}"
    if local.offload != "none" and device == "cpu":
        raise AigiError(
            f"{where}.offload: {local.offload} moves weights between a GPU and the CPU's memory, "
            "and the device here is the CPU. Remove it, or set compute.device."
        )
    if local.quantise != "none":
        way = QUANTISED[local.quantise]
        if device is not None and device not in way.devices:
            works = " or ".join(way.devices)
            other = next((key for key, one in QUANTISED.items() if device in one.devices), "none")
            raise AigiError(
                f"{where}.quantise: {local.quantise} ({way.package}) works on {works}, and the "
                f"device here is {device}. Set quantise: {other}, or another compute.device."
            )
        if importlib.util.find_spec(way.package) is None:
            raise AigiError(
                f"{where}.quantise: {local.quantise} needs the package {way.package}, which is "
                "not installed: pip install 'aigi[quantise]'"
            )
    if local.attention is not None:
        _check_attention(f"{where}.attention", local.attention)


def check_parts(name: str, local: DiffusersSource, pipe: Any, denoiser: Any) -> None:
    """Check that a model has the parts that its settings are about.

    Args:
        pipe: its pipeline, loaded or with the configurations of its parts alone.
        denoiser: the component that runs in every step; None: not known.

    Raises:
        AigiError: names the setting.
    """
    where, kind, vae = f"sources.{name}", type(pipe).__name__, getattr(pipe, "vae", None)
    has_none = {
        "attention_slicing": local.attention_slicing
        and not hasattr(denoiser, "set_attention_slice"),
        "vae_tiling": local.vae_tiling and not hasattr(vae, "enable_tiling"),
        "vae_slicing": local.vae_slicing and not hasattr(vae, "enable_slicing"),
        "offload": local.offload == "model" and pipe.model_cpu_offload_seq is None,
    }
    for setting, lacks in has_none.items():
        if lacks:
            raise AigiError(f"{where}.{setting}: {kind} has none. Remove it.")
    if denoiser is None and (local.compile or local.quantise != "none"):
        setting = "compile" if local.compile else "quantise"
        raise AigiError(f"{where}.{setting}: no denoiser is known of {kind}. Remove it.")
    if local.attention is not None and next(_choosing(denoiser), None) is None:
        raise AigiError(
            f"{where}.attention: the attention of {type(denoiser).__name__} takes no backend by "
            "name. Remove the setting: torch chooses the fastest kernel by itself."
        )


def _check_attention(where: str, backend: str) -> None:
    from diffusers.models import attention_dispatch as dispatch

    names = [one.value for one in dispatch.AttentionBackendName]
    # The others are code that is downloaded from the Hub and run: nobody has checked it.
    mine = [name for name in names if not name.endswith("_hub")]
    if backend in names and backend not in mine:
        raise AigiError(
            f"{where}: {backend} would download code from the Hub and run it, which aigi does not "
            f"do; there are {', '.join(mine)}"
        )
    if backend not in mine:
        raise AigiError(f'{where}: no "{backend}"; {near(backend, mine)}')
    try:
        dispatch._check_attention_backend_requirements(dispatch.AttentionBackendName(backend))
    except RuntimeError as error:
        raise AigiError(f"{where}: {' '.join(str(error).split())}") from error


def _choosing(model: Any) -> Iterator[Any]:
    """Those processors of attention in a model that take a backend by name."""
    for module in () if model is None else model.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            yield processor


def set_attention(model: Any, backend: str) -> None:
    """Let a denoiser compute its attention by this backend of diffusers, and no other model."""
    from diffusers.models import attention_dispatch as dispatch

    backends = dispatch._AttentionBackendRegistry
    usual = backends._active_backend
    model.set_attention_backend(backend)
    # diffusers makes it that of all models that come later, too; they have settings of their own.
    backends.set_active_backend(usual)


def quantisation(
    local: DiffusersSource, denoiser: str, index: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Arguments of `from_pretrained` that hold denoiser and text encoders in fewer bits.

    Args:
        denoiser: name of the component.
        index: content of the pipeline's `model_index.json`.
    """
    if local.quantise == "none":
        return {}
    import diffusers
    import transformers

    way = QUANTISED[local.quantise]
    libraries = {"diffusers": diffusers, "transformers": transformers}
    chosen = {}
    for part, value in index.items():
        if part == denoiser or part.startswith("text_encoder"):
            library = value[0] if isinstance(value, list) else None
            if library in libraries:
                chosen[part] = _config(way, getattr(libraries[library], way.config))
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=chosen)}


def _config(way: Weights, kind: Any) -> Any:
    if way.package == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return kind(Int8WeightOnlyConfig())
    import torch

    return kind(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make a CUDA device the current one: there, weights are quantised while they are loaded."""
    import torch

    if device.type != "cuda" or device.index is None:
        yield
        return
    with torch.cuda.device(device):
        yield


def placed(pipe: Any, local: DiffusersSource, device: torch.device) -> Any:
    """The pipeline on its device, or on the CPU with hooks that move what is needed there."""
    if local.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif local.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe = pipe.to(device)
    if local.attention_slicing:
        pipe.enable_attention_slicing()
    return pipe


def decode_in_parts(pipe: Any, tiling: bool, slicing: bool) -> None:
    """Let a VAE decode one image at a time, and each image in tiles, or all at once.

    Some VAEs have neither; one that was asked for them was refused before.
    """
    vae = getattr(pipe, "vae", None)
    for what, on in (("tiling", tiling), ("slicing", tiling or slicing)):
        switch = getattr(vae, f"{'enable' if on else 'disable'}_{what}", None)
        if switch is not None:
            switch()
