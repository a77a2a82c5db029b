"""How a source saves memory in; its pipeline set up so, or why this machine cannot do that, out."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import AigiError
from pipeline.complaints import near

if TYPE_CHECKING:
    import torch

    from pipeline.images.diffuser import DiffusersSource
    from pipeline.plan.families import Family


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


def check_memory(
    name: str, local: DiffusersSource, family: Family, device: str | None, folder: str | None
) -> None:
    """Check that a source can be run as its settings say.

    Args:
        device: type of the device that will run it; None: not known here.
        folder: of its pipeline on this machine; None: it will be downloaded.

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
        if folder is not None:
            model = _unloaded(folder, family.denoiser)
            _check_takes(f"{where}.attention", model)


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


def _unloaded(folder: str, component: str) -> Any:
    """A component of a pipeline without its weights; None where its configuration is missing."""
    import diffusers
    import torch

    path = os.path.join(folder, component)
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        kind = getattr(diffusers, config["_class_name"])
        with torch.device("meta"):
            return kind.from_config(config)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # what is wrong with it is reported where weights are checked


def _choosing(model: Any) -> Iterator[Any]:
    """Those processors of attention in a model that take a backend by name."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            yield processor


def _check_takes(where: str, model: Any) -> None:
    if model is not None and next(_choosing(model), None) is None:
        raise AigiError(
            f"{where}: the attention of {type(model).__name__} takes no backend by name; remove "
            "the setting (torch chooses the fastest kernel by itself)"
        )


def set_attention(where: str, model: Any, backend: str) -> None:
    """Let a denoiser compute its attention by this backend of diffusers, and no other model.

    Raises:
        AigiError: there is no such backend, it cannot run here, or the model takes none.
    """
    from diffusers.models import attention_dispatch as dispatch

    _check_attention(where, backend)
    _check_takes(where, model)
    registry = dispatch._AttentionBackendRegistry
    usual = registry._active_backend
    model.set_attention_backend(backend)
    # diffusers makes it that of all models that come later, too; they have settings of their own.
    registry.set_active_backend(usual)


def quantisation(local: DiffusersSource, family: Family, folder: str) -> Mapping[str, Any]:
    """Arguments of `from_pretrained` that hold denoiser and text encoders in fewer bits.

    Args:
        folder: of the pipeline on this machine.
    """
    if local.quantise == "none":
        return {}
    import diffusers
    import transformers

    with open(os.path.join(folder, "model_index.json"), encoding="utf-8") as file:
        index = json.load(file)
    way = QUANTISED[local.quantise]
    libraries = {"diffusers": diffusers, "transformers": transformers}
    chosen = {}
    for part, value in index.items():
        if part == family.denoiser or part.startswith("text_encoder"):
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


def decode_in_parts(vae: Any, tiling: bool, slicing: bool) -> None:
    """Let a VAE decode one image at a time, and each image in tiles, or all at once."""
    (vae.enable_tiling if tiling else vae.disable_tiling)()
    (vae.enable_slicing if tiling or slicing else vae.disable_slicing)()
