"""A model's `model_index.json` in, the class of diffusers that makes its images, and how, out.

The class and its signature say which arguments a call takes and which components it needs; the
table `FAMILIES` says what a signature does not. Code that comes with a model is never run.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline import AigiError
from pipeline.complaints import near
from pipeline.models.hub import Place
from pipeline.plan.families import AUTO, FAMILIES, OTHER, Family
from pipeline.plan.options import OWN
from pipeline.plan.specification import DiffusersSpec

Parameters = Mapping[str, inspect.Parameter]
_NEEDED = ("prompt", "width", "height", "num_inference_steps", "generator", "output_type")
_VIDEO = {"num_frames", "num_videos_per_prompt", "video_length", "video"}
_IMAGES = {"image", "images", "mask_image", "strength"}
_EMPTY = inspect.Parameter.empty


@dataclass(frozen=True)
class Runner:
    """How images of a model are made.

    Attributes:
        kind: class of diffusers.
        family: its row of FAMILIES, or what is assumed of it.
        takes: arguments of its call.
        built: its components and switches.
        assumed: what nobody stated of this class, for the log; empty: it has a row.
    """

    kind: Any
    family: Family
    takes: Parameters
    built: Parameters
    assumed: str = ""

    @property
    def needed(self) -> list[str]:
        """Components without which it cannot be built."""
        optional = {*self.kind._optional_components, "self", *self.family.options}
        return [
            name
            for name, parameter in self.built.items()
            if parameter.default is _EMPTY and name not in optional
        ]


def _refused(place: Place, why: str, remedy: str) -> AigiError:
    return AigiError(f"{place.where}: {place}: {why}. {remedy}")


def runner(place: Place, index: Mapping[str, Any], pipeline: str) -> Runner:
    """How a model is run.

    Args:
        index: content of its `model_index.json`.
        pipeline: the family that it is said to be of, or auto.

    Raises:
        AigiError: in one line, why it cannot be run.
    """
    named = index.get("_class_name")
    if not isinstance(named, str):
        raise _refused(
            place,
            f"its pipeline is code of its own ({str(named)[:100]}), which is never run",
            "Take a model whose class is in diffusers.",
        )
    family = FAMILIES.get(pipeline)
    if family is not None and (named == family.pipeline or _alike(named, family)):
        return _of(_class(place, family.pipeline, index), family)
    kind = _class(place, named, index)
    found = _of(kind, next((f for f in FAMILIES.values() if f.pipeline == named), None))
    if family is not None:
        mine = next((name for name, f in FAMILIES.items() if f.pipeline == named), AUTO)
        raise _refused(
            place,
            f"a model of {named}, not of pipeline: {pipeline} (that is {family.pipeline})",
            f"Set pipeline: {mine} in the specification, or take the model of this family.",
        )
    return found


def _alike(named: str, family: Family) -> bool:
    """Whether a class has the components of a family, so that its models run as that too.

    Older folders of Stable Diffusion name a class for another task, or for distilled weights.
    """
    import diffusers

    kinds = (getattr(diffusers, name, None) for name in (named, family.pipeline))
    one, other = (_required(kind) for kind in kinds)
    return one is not None and one == other


def _required(kind: Any) -> set[str] | None:
    if not _is_pipeline(kind):
        return None
    parameters = inspect.signature(kind.__init__).parameters
    return {name for name, one in parameters.items() if one.default is _EMPTY and name != "kwargs"}


def _is_pipeline(kind: Any) -> bool:
    import diffusers

    return isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)


def _class(place: Place, name: str, index: Mapping[str, Any]) -> Any:
    """The class of diffusers of this name, if it makes images from text alone."""
    import diffusers

    kind = getattr(diffusers, name, None)
    if not _is_pipeline(kind):
        backends = getattr(kind, "_backends", None)
        if backends:  # what diffusers has in place of a class whose libraries are missing
            raise _refused(
                place, f"its {name} needs the package {', '.join(backends)}", "Install that."
            )
        known = [family.pipeline for family in FAMILIES.values()]
        raise _refused(
            place,
            f"diffusers {diffusers.__version__} has no pipeline {name}; {near(name, known)}",
            "Install the release of diffusers that has it, or take another model.",
        )
    if why := why_not(kind, index):
        raise _refused(place, f"{name} {why}: not supported now", "Take a text-to-image model.")
    return kind


def why_not(kind: Any, index: Mapping[str, Any]) -> str:
    """Why a class of diffusers makes no images from text alone; empty: it does."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    takes, built = _parameters(kind.__call__), _parameters(kind.__init__)
    if takes.keys() & _VIDEO:
        return "makes video"
    if any(name.startswith("audio") for name in takes):
        return "makes sound"
    if getattr(kind, "_load_connected_pipes", False):
        return "needs a second model before it (its prior)"
    if any(name.startswith("control") for name in (*takes, *built)):
        return "needs an image to follow (a ControlNet)"
    given = takes.keys() & _IMAGES
    listed = kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
    if given and not (listed and all(takes[name].default is not _EMPTY for name in given)):
        if "XLImg2Img" in kind.__name__ and index.get("text_encoder", [None])[0] is None:
            return "is the refiner of SDXL, which changes images"
        return "changes an image (image-to-image or inpainting)"
    if lacking := [name for name in _NEEDED if name not in takes]:
        return f"takes no {' and no '.join(lacking)}"
    return ""


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    found.pop("self", None)
    return {
        name: one
        for name, one in found.items()
        if one.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        and name != "kwargs"
    }


def _of(kind: Any, row: Family | None) -> Runner:
    takes, built = _parameters(kind.__call__), _parameters(kind.__init__)
    if row is not None:
        return Runner(kind, row, takes, built)
    guidance = next((name for name in ("guidance_scale", "true_cfg_scale") if name in takes), "")
    switches = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "watermarker": None,
        "add_watermarker": False,
    }
    row = replace(
        OTHER,
        pipeline=kind.__name__,
        options={name: value for name, value in switches.items() if name in built},
        denoiser=next((name for name in ("transformer", "unet") if name in built), ""),
        negative_prompt="negative_prompt" in takes,
        guidance=guidance,
        guided_above=OTHER.guided_above if guidance else None,
    )
    said = f"guidance_scale is its {guidance}" if guidance else "it takes no guidance"
    return Runner(kind, row, takes, built, f"{kind.__name__} has no row among the families: {said}")


def call_problems(found: Runner, spec: DiffusersSpec) -> list[str]:
    """What a specification asks of a class that its call cannot do, a line each."""
    name, takes, family = found.kind.__name__, found.takes, found.family
    problems = []
    if spec.negative_prompt and "negative_prompt" not in takes:
        problems.append(f"negative_prompt: {name} takes none; remove it")
    if not family.guidance and spec.guidance_scale:
        problems.append(f"guidance_scale: {name} takes none; set 0")
    open_names = [one for one in takes if one not in (*OWN, family.guidance)]
    for option, value in spec.options.items():
        where = f"options.{option}"
        if option == family.guidance:
            problems.append(f"{where}: guidance_scale is this argument; set that, and remove this")
        elif option not in takes:
            problems.append(f"{where}: {name} has no such argument; {near(option, open_names)}")
        elif not _like(value, default := takes[option].default):
            problems.append(f"{where}: {value!r}; expected a value like {default!r}")
        elif option in ("sigmas", "timesteps") and len(value or ()) != spec.steps:
            problems.append(f"{where}: {len(value or ())} of them, but steps is {spec.steps}")
    return problems


def _like(value: object, default: object) -> bool:
    """Whether a value is of the kind of an argument's default; None and no default: any."""
    if default in (None, _EMPTY) or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int):
        return isinstance(value, int)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list)
    return isinstance(value, str) == isinstance(default, str)


def part_problems(found: Runner, index: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Components that a class needs and a model does not name, or whose code is not the libraries'.

    Args:
        given: components that do not come from the model.
    """
    problems = []
    for name in found.needed:
        stated = index.get(name)
        if name in given:
            continue
        if not (isinstance(stated, list) and len(stated) == 2):
            problems.append(f"has no component {name}, which {found.kind.__name__} needs")
        elif stated[0] is None and name in ("vae", "scheduler", found.family.denoiser):
            problems.append(f"its component {name} is empty")
    texts = [name for name in index if name.startswith("text_encoder") and name in found.built]
    if texts and all(_empty(index[name]) and name not in given for name in texts):
        problems.append("has no text encoder")
    return problems


def listing_problems(
    index: Mapping[str, Any], names: Collection[str], given: Collection[str], variant: str | None
) -> list[str]:
    """Weights that a repository does not have, a line each.

    Args:
        names: of all its files.
        given: components that do not come from there.
    """
    parts = [name for name in index if name not in given and component_kind(index, name)]
    files = [name for name in names if name.endswith(".safetensors")]
    problems = [
        f"{part}: has no weights as safetensors; weights in pickle files are not read"
        for part in parts
        if not any(file.startswith(f"{part}/") for file in files)
    ]
    has = any(f".{variant}." in file or f".{variant}-" in file for file in files)
    if variant is not None and not has:
        problems.append(f"has no weights of variant {variant}; leave it out")
    return problems


def loaded_files(
    index: Mapping[str, Any], names: Collection[str], given: Collection[str], variant: str | None
) -> list[str]:
    """Files of a repository that its pipeline loads, which are those that diffusers downloads.

    Args:
        index: content of its `model_index.json`.
        names: of all its files.
        given: components that do not come from there.
        variant: of weights; a component without any of it has the plain ones.
    """
    found = [name for name in names if "/" not in name and name.endswith(".json")]
    for part in index:
        if part in given or _empty(index[part]):
            continue
        mine = [name for name in names if name.startswith(f"{part}/")]
        weights = [name for name in mine if ".safetensors" in name]
        if not weights:  # a scheduler, a tokenizer
            found += mine
            continue
        plain = [name for name in weights if _PLAIN.fullmatch(name.rpartition("/")[2])]
        marked = [name for name in weights if variant is not None and f".{variant}" in name]
        found += marked or plain
        found += [name for name in mine if name == f"{part}/config.json"]
    return found


_PLAIN = re.compile(
    r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
)
"""Names of files of weights that are of no variant, such as fp16 or non_ema."""


def _empty(stated: object) -> bool:
    return not isinstance(stated, list) or not stated or stated[0] is None


def component_kind(index: Mapping[str, Any], name: str) -> Any | None:
    """The class of a component that has weights; None: there is no such component."""
    import diffusers
    import torch
    import transformers

    stated = index.get(name)
    if not isinstance(stated, list) or len(stated) != 2:
        return None
    library = {"diffusers": diffusers, "transformers": transformers}.get(stated[0])
    kind = getattr(library, str(stated[1]), None)
    return kind if isinstance(kind, type) and issubclass(kind, torch.nn.Module) else None


def skeleton(
    found: Runner, index: Mapping[str, Any], folder: str, texts: bool = False
) -> Any | None:
    """The pipeline of a folder without weights: configurations, tokenizers and scheduler.

    Args:
        texts: with its text encoders.

    Returns: None for a class that cannot be built in this way.
    """
    import accelerate
    import diffusers
    import transformers

    parts: dict[str, Any] = dict.fromkeys(found.built)
    libraries = {"diffusers": diffusers, "transformers": transformers}
    try:
        for name in found.built:
            if _empty(index.get(name)) or index[name][0] not in libraries:
                continue
            kind = getattr(libraries[index[name][0]], index[name][1])
            path = os.path.join(folder, name)
            if issubclass(kind, diffusers.SchedulerMixin) or name.startswith("tokenizer"):
                parts[name] = kind.from_pretrained(path, local_files_only=True)
            elif issubclass(kind, diffusers.ModelMixin):
                with accelerate.init_empty_weights():
                    parts[name] = kind.from_config(kind.load_config(path, local_files_only=True))
            elif texts and issubclass(kind, transformers.PreTrainedModel):
                config = kind.config_class.from_pretrained(path, local_files_only=True)
                with accelerate.init_empty_weights():
                    parts[name] = kind(config)
        defaults = {
            name: index.get(name, one.default)
            for name, one in found.built.items()
            if one.default is not _EMPTY and parts[name] is None
        }
        plain = {name: value for name, value in defaults.items() if not isinstance(value, list)}
        return found.kind(**{**parts, **plain, **found.family.options})
    except Exception:  # whatever a class does without its text encoders
        return None


def model_problems(found: Runner, spec: DiffusersSpec, pipe: Any) -> list[str]:
    """What a specification asks that this model ignores or rounds, a line each.

    Args:
        pipe: the pipeline, or its skeleton.
    """
    problems = []
    multiple = size_multiple(pipe, found.family)
    for split, size in spec.splits.items():
        if (size.width or 0) % multiple or (size.height or 0) % multiple:
            problems.append(
                f"splits.{split}: {size.width}x{size.height}: this model makes sizes that are "
                f"multiples of {multiple}"
            )
    denoiser = getattr(pipe, found.family.denoiser, None)
    config = getattr(denoiser, "config", {})
    latents = getattr(getattr(pipe, "vae", None), "config", {}).get("latent_channels")
    takes = config.get("in_channels")
    if found.family.denoiser == "unet" and latents is not None and takes not in (latents, None):
        problems.append(
            f"pipeline: its UNet takes {takes} channels, of which {latents} are latents: a model "
            "that changes images, not supported now"
        )
    if found.family.guided_above is None and found.family.guidance:
        if config.get("guidance_embeds") is False and spec.guidance_scale:
            problems.append("guidance_scale: this model takes no guidance; set 0")
        if spec.negative_prompt and spec.options.get("true_cfg_scale", 1.0) <= 1:
            problems.append(
                "negative_prompt: without effect; set options.true_cfg_scale above 1, or remove it"
            )
    return problems


def size_multiple(pipe: Any, family: Family) -> int:
    """Pixels that width and height are multiples of: size of a latent, times that of a patch.

    Args:
        pipe: the pipeline; of its models, the configurations are enough.
    """
    scale = getattr(pipe, "vae_scale_factor", None)
    patch = getattr(getattr(getattr(pipe, family.denoiser, None), "config", None), "patch_size", 1)
    found = [family.multiple]
    if isinstance(scale, int) and isinstance(patch, int):
        found.append(scale * max(patch, 1))
    config = getattr(getattr(pipe, "image_processor", None), "config", None)
    factor = None if config is None else config.get("vae_scale_factor")
    if isinstance(factor, int):
        found.append(factor)
    return max(found)
