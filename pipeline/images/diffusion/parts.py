"""Files that a specification adds to a model or puts in its place in, checked and loaded ones out.

One file of weights instead of a folder of them; LoRAs, which are fused into the weights; other
components, such as a text encoder. The specification pins the content of each by its sha256, and
the workflow has its place on this machine. Libraries skip tensors that fit nothing, so names and
shapes are compared here first.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.images.diffusion.pipelines import Runner, component_kind
from pipeline.models.hub import Place, check_sha256, loading
from pipeline.models.weights import Part, Shape, check_model, differences, header, shapes
from pipeline.plan.specification import Component, DiffusersSpec, Lora

_WHOLE = ("first_stage_model.", "vae.", "conditioner.", "cond_stage_model.", "text_encoders.")
"""How names of tensors begin in a file that has all of a pipeline, and no denoiser alone."""


def lora_place(name: str, lora: Lora, places: Mapping[str, str]) -> Place:
    """Where a LoRA of a source is: the workflow's place of it, or a repository of the Hub."""
    key = f"sources.{name}.loras.{lora.name}"
    return Place(key, key, places.get(lora.name), lora.model or "", lora.revision)


def component_place(name: str, part: str, component: Component, places: Mapping[str, str]) -> Place:
    """Where another component of a source is."""
    key = f"sources.{name}.components.{part}"
    return Place(key, key, places.get(part), component.model, component.revision)


def added_places(
    name: str, spec: DiffusersSpec, loras: Mapping[str, str], components: Mapping[str, str]
) -> Iterator[Place]:
    """All places that a specification names beside that of the model."""
    for lora in spec.loras:
        yield lora_place(name, lora, loras)
    for part, component in spec.components.items():
        yield component_place(name, part, component, components)


# --- One file ------------------------------------------------------------------------------------


def checkpoint(name: str, spec: DiffusersSpec, file: str | None) -> str:
    """The one file of a source, if it is the one that the specification pins.

    Raises:
        AigiError: no place is given, it is missing, no safetensors file, or another one.
    """
    where = f"sources.{name}.file"
    if file is None:
        raise AigiError(
            f"{where}: the specification has one file with sha256 {spec.file}; set where it is"
        )
    if not os.path.isfile(file):
        raise AigiError(f"{where}: {file}: no such file. Correct the path.")
    if not file.endswith(".safetensors"):
        raise AigiError(
            f"{where}: {file}: weights in pickle files are not read. Save it as .safetensors, and "
            "state the sha256 of that."
        )
    header(Part(where, file), file)
    check_sha256(where, file, file_sha256(file), str(spec.file))
    return file


def is_whole(tensors: Mapping[str, Shape]) -> bool:
    """Whether a file has all of a pipeline; else it has the denoiser."""
    return any(key.startswith(_WHOLE) for key in tensors)


def checkpoint_problems(
    name: str, file: str, found: Runner, index: Mapping[str, Any], folder: str
) -> list[str]:
    """What a file lacks of the denoiser, and of the VAE if it has all of a pipeline, a line each.

    Args:
        folder: of the configurations.
    """
    part = Part(f"sources.{name}.file", file)
    tensors = header(part, file)
    problems = []
    for component in (found.family.denoiser, *(["vae"] if is_whole(tensors) else [])):
        kind = component_kind(index, component)
        if kind is None:
            problems.append(f"{part.where}: {file}: its configuration has no {component}")
            continue
        expected, have = _of_checkpoint(kind, os.path.join(folder, component), tensors)
        if have is not None and (
            told := differences(expected, {key: have[key] for key in have if key in expected})
        ):
            problems.append(
                f"{part.where}: {file}: {component}: its weights {told}: the file is another "
                "model than config. Give the config of this model."
            )
    return problems


def _of_checkpoint(
    kind: Any, folder: str, tensors: Mapping[str, Shape]
) -> tuple[dict[str, Shape], dict[str, Shape] | None]:
    """Tensors of a model, and those that diffusers makes of a file for it, by name.

    The latter are None where diffusers does not make them without their numbers.
    """
    import accelerate
    import torch
    from diffusers.loaders import single_file_model as single

    with accelerate.init_empty_weights():
        config = kind.load_config(folder, local_files_only=True)
        model = kind.from_config(config)
    expected = shapes(model.state_dict())
    if 2 * len(expected.keys() & tensors.keys()) > len(expected):
        return expected, dict(tensors)  # it has the names of diffusers
    empty = {key: torch.empty(shape, device="meta") for key, shape in tensors.items()}
    try:
        named = single._get_single_file_loadable_mapping_class(kind)
        rename = single.SINGLE_FILE_LOADABLE_CLASSES[named]["checkpoint_mapping_fn"]
        return expected, shapes(rename(config=config, checkpoint=empty))
    except Exception:  # what a conversion does without numbers
        return expected, None


def load_checkpoint(
    where: str, found: Runner, file: str, folder: str, dtype: Any, given: Mapping[str, Any]
) -> Any:
    """A pipeline from a file that has all of it.

    Args:
        folder: of configurations and tokenizers.
        given: components and switches that do not come from the file.
    """
    with loading(where, file):
        pipe = found.kind.from_single_file(
            file, config=folder, local_files_only=True, dtype=dtype, **given
        )
    for part, module in pipe.components.items():
        _check_filled(Part(where, file, part), module)
    return pipe


def load_denoiser(where: str, kind: Any, file: str, folder: str, part: str, dtype: Any) -> Any:
    """A denoiser from a file that has nothing else."""
    with loading(where, file):
        model = kind.from_single_file(
            file, config=folder, subfolder=part, local_files_only=True, dtype=dtype
        )
    _check_filled(Part(where, file, part), model)
    return model


def _check_filled(part: Part, module: Any) -> None:
    """Refuse a model some of whose tensors no file had: diffusers leaves them empty."""
    parameters: Any = getattr(module, "named_parameters", list)()
    empty = [name for name, parameter in parameters if parameter.is_meta]
    if empty:
        raise part.refused(f"its weights lack {', '.join(sorted(empty)[:3])}")


# --- LoRAs ---------------------------------------------------------------------------------------


def lora_file(place: Place, lora: Lora) -> str:
    """The file of a LoRA on this machine, compared with its sha256.

    Raises:
        AigiError: it is nowhere, or another one.
    """
    if place.folder is not None:
        if not os.path.isfile(place.folder):
            raise AigiError(f"{place.where}: {place.folder}: no such file. Correct the path.")
        path = place.folder
    elif lora.model is None or lora.weight_name is None:
        raise AigiError(
            f"{place.where}: the specification has a file with sha256 {lora.sha256}; set where it "
            "is, or name its model and weight_name in the specification"
        )
    else:
        path = place.file(lora.weight_name)
    header(Part(place.where, path), path)
    check_sha256(place.where, path, file_sha256(path), lora.sha256)
    return path


def lora_problems(
    name: str, spec: DiffusersSpec, places: Mapping[str, str], found: Runner, pipe: Any
) -> list[str]:
    """What of the LoRAs of a source is missing, damaged or fits no tensor of the model.

    Args:
        pipe: the skeleton of the pipeline, its text encoders included; None: only files are
            looked at.
    """
    problems = []
    if spec.loras and importlib.util.find_spec("peft") is None:
        problems.append(
            f"sources.{name}.loras: LoRAs need the package peft: pip install 'aigi[lora]'"
        )
    if spec.loras and not hasattr(found.kind, "load_lora_weights"):
        return [*problems, f"sources.{name}.loras: {found.kind.__name__} takes none. Remove them."]
    for lora in spec.loras:
        place = lora_place(name, lora, places)
        try:
            path = lora_file(place, lora)
            state = _lora_state(place, found, path)
        except AigiError as error:
            problems.append(str(error))
            continue
        if pipe is not None and (told := _misfits(state, pipe)):
            problems.append(
                f"{place.where}: {path}: {told}: it was made for another model. Take one of this "
                "model, or remove it."
            )
    return problems


def _lora_state(place: Place, found: Runner, path: str) -> dict[str, Any]:
    """Tensors of a LoRA by the names that diffusers gives them, and the scales of its layers."""
    with loading(place.where, path):
        state = found.kind.lora_state_dict(
            os.path.dirname(path), weight_name=os.path.basename(path), local_files_only=True,
            use_safetensors=True,
        )  # fmt: skip
    return dict(state[0] if isinstance(state, tuple) else state)


def _misfits(state: Mapping[str, Any], pipe: Any) -> str:
    """In words, the layers of a LoRA that the model does not have, or has in another size."""
    layers: dict[str, dict[str, Any]] = {}
    strange = []
    for key, value in state.items():
        layer, _, side = key.removesuffix(".weight").rpartition(".lora")
        if side in ("_A", ".down", "_down", "_linear_layer.down"):
            layers.setdefault(layer, {})["down"] = value
        elif side in ("_B", ".up", "_up", "_linear_layer.up"):
            layers.setdefault(layer, {})["up"] = value
        elif not key.endswith(".alpha"):
            strange.append(key)
    for layer, sides in layers.items():
        component, _, path = layer.partition(".")
        weight = getattr(_module(getattr(pipe, component, None), path), "weight", None)
        if weight is None or len(sides) != 2:
            strange.append(layer)
        elif (sides["up"].shape[0], sides["down"].shape[1]) != tuple(weight.shape[:2]):
            one = f"{sides['up'].shape[0]}x{sides['down'].shape[1]}"
            strange.append(f"{layer} of {one} instead of {weight.shape[0]}x{weight.shape[1]}")
    if not layers:
        return "it has no layers of a LoRA"
    more = ", …" if len(strange) > 3 else ""
    return f"{len(strange)} of its layers fit nothing ({', '.join(strange[:3])}{more})" * bool(
        strange
    )


def _module(model: Any, path: str) -> Any:
    """The layer of a model that LoRAs of any version of diffusers call so."""
    for name in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            return model.get_submodule(name)
        except AttributeError:
            continue
    return None


def fuse_loras(name: str, spec: DiffusersSpec, places: Mapping[str, str], pipe: Any) -> None:
    """Add the LoRAs of a source to the weights of a loaded pipeline, one after another.

    Raises:
        AigiError: a file is missing or another one, or diffusers cannot load it.
    """
    for lora in spec.loras:
        place = lora_place(name, lora, places)
        path = lora_file(place, lora)
        with loading(place.where, path):
            pipe.load_lora_weights(
                os.path.dirname(path), weight_name=os.path.basename(path), adapter_name=lora.name,
                local_files_only=True, use_safetensors=True,
            )  # fmt: skip
            pipe.fuse_lora(lora_scale=lora.scale, adapter_names=[lora.name], safe_fusing=True)
            pipe.unload_lora_weights()


# --- Other components ----------------------------------------------------------------------------


def component_folder(place: Place, component: Component, kind: Any) -> str:
    """The folder of another component, compared with its sha256 and with the model.

    Raises:
        AigiError: it is missing or another one.
    """
    sub = component.subfolder if place.folder is None else None
    lead = f"{sub}/" if sub else ""
    folder = place.fetch(f"{lead}config.json", *(f"{lead}{file}" for file in component.sha256))
    folder = os.path.join(folder, sub) if sub else folder
    for file, expected in component.sha256.items():
        path = os.path.join(folder, file)
        check_sha256(place.where, path, file_sha256(path), expected)
    check_model(Part(place.where, place), kind, folder)
    return folder


def load_components(
    name: str, spec: DiffusersSpec, places: Mapping[str, str], index: Mapping[str, Any], dtype: Any
) -> dict[str, Any]:
    """The other components of a source, by name.

    Raises:
        AigiError: as `component_folder`, or the model has no such component.
    """
    loaded = {}
    for part, component in spec.components.items():
        place = component_place(name, part, component, places)
        kind = _kind(place, index, part)
        folder = component_folder(place, component, kind)
        with loading(place.where, place):
            loaded[part] = kind.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True
            )
    return loaded


def component_problems(
    name: str, spec: DiffusersSpec, places: Mapping[str, str], index: Mapping[str, Any]
) -> list[str]:
    """What is wrong with the other components of a source, a line each."""
    problems = []
    for part, component in spec.components.items():
        place = component_place(name, part, component, places)
        try:
            component_folder(place, component, _kind(place, index, part))
        except AigiError as error:
            problems.append(str(error))
    return problems


def _kind(place: Place, index: Mapping[str, Any], part: str) -> Any:
    kind = component_kind(index, part)
    if kind is None:
        known = ", ".join(name for name in index if component_kind(index, name) is not None)
        raise AigiError(f"{place.where}: the model has no such component; it has {known}")
    return kind
