"""Files of weights and models in: what is missing in them, and a digest of what was loaded, out.

Libraries fill a tensor that a file does not have, or has under another name, with random numbers,
and only warn. So the names and shapes in the headers of the files are compared with those of the
model, which is built without memory for its tensors (torch's `meta` device): this takes a second
or less and reads no weights. What is then loaded has a digest, which is recorded with every row
that depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline import AigiError
from pipeline.models.hub import Place, loading

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Shapes of tensors by name."""

WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""Files of weights as diffusers and transformers name them."""
INDEX = "model_index.json"
"""The file of a pipeline that names its class and components."""
NAMED = 3  # tensors of each kind that an error names
THREADS = 4  # that hash tensors
_REMEDY = "Copy or download the model anew, or set another one."


@dataclass(frozen=True)
class Part:
    """A model or a component of one, for errors.

    Attributes:
        where: section and key of the setting.
        model: where the model is.
        name: of the component; empty: the model is one.
    """

    where: str
    model: object
    name: str = ""

    def refused(self, why: str) -> AigiError:
        """The error that it cannot be used."""
        named = f"{self.model}: {self.name}" if self.name else str(self.model)
        return AigiError(f"{self.where}: {named}: {why}. {_REMEDY}")


def header(part: Part, path: str) -> dict[str, Shape]:
    """Names and shapes of the tensors of a safetensors file; its tensors are not read.

    Raises:
        AigiError: no such file, or it is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    name = os.path.basename(path)
    try:
        with safe_open(path, "np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise part.refused(f"has no {name}") from None
    except (OSError, SafetensorError) as error:
        raise part.refused(
            f"{name} is damaged or cut short ({' '.join(str(error).split())[:200]})"
        ) from error


def stored(
    part: Part, folder: str, file: str, index_first: bool = False, variant: str | None = None
) -> dict[str, Shape]:
    """Names and shapes of the tensors of a model: of one file, or of those that its index lists.

    Args:
        file: name of the one file; the index has its name with `.index.json` behind it.
        index_first: which of the two the library takes where both are there.
        variant: which files; without any of it in the folder, the plain ones.

    Raises:
        AigiError: a file is missing, damaged or cut short; or the index lists what no file has.
    """
    path, index = os.path.join(folder, file), os.path.join(folder, f"{file}.index.json")
    if variant is not None and has_variant(folder, file, variant):
        path, index = (os.path.join(folder, name) for name in _variant_names(file, variant))
    one, several = os.path.isfile(path), os.path.isfile(index)
    if not several or (one and not index_first):
        return header(part, path)
    name = os.path.basename(index)
    try:
        with open(index, encoding="utf-8") as opened:
            listed = json.load(opened)["weight_map"]
        shards = sorted(set(listed.values()))
        if not shards or any(os.path.basename(shard) != shard for shard in shards):
            raise ValueError("its weight_map must name files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise part.refused(
            f"{name} is damaged ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    found: dict[str, Shape] = {}
    for shard in shards:
        tensors = header(part, os.path.join(folder, shard))
        absent = [key for key, place in listed.items() if place == shard and key not in tensors]
        if absent:
            raise part.refused(f"{shard} lacks {_names(absent)}, which {name} lists")
        # Libraries take what the index lists.
        found |= {key: tensors[key] for key, place in listed.items() if place == shard}
    return found


def _variant_names(file: str, variant: str) -> tuple[str, str]:
    """The one file of a variant, and the index of its files."""
    stem, dot, ending = file.rpartition(".")
    return f"{stem}.{variant}{dot}{ending}", f"{file}.index.{variant}.json"


def has_variant(folder: str, file: str, variant: str) -> bool:
    """Whether a component has weights of a variant."""
    names = _variant_names(file, variant)
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def compare(part: Part, expected: Shapes, found: Shapes) -> None:
    """Refuse weights that do not have exactly the tensors of a model.

    Args:
        expected: of the model.
        found: of its files.

    Raises:
        AigiError: some are missing, unexpected or of another shape; names the first.
    """
    _refuse(part, differences(expected, found))


def differences(expected: Shapes, found: Shapes) -> str:
    """What weights lack, have too many or have in another shape than a model; empty: nothing."""
    both = expected.keys() & found.keys()
    return _told(
        expected.keys() - found.keys(),
        found.keys() - expected.keys(),
        [
            (name, found[name], expected[name])
            for name in both
            if tuple(found[name]) != tuple(expected[name])
        ],
    )


def _told(
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Shape, Shape]],
) -> str:
    """The same in words; of those of another shape: name, shape in the file, shape in the model."""
    # Numbers from 0 on that old files hold and new models make themselves; they are no weights.
    extra = [name for name in unexpected if not name.endswith("position_ids")]
    others = [
        f"{name} of {_shape(found)} instead of {_shape(expected)}"
        for name, found, expected in mismatched
    ]
    kinds = (
        ("lack {}", list(missing)),
        ("have {} too many", extra),
        ("have {} of another shape", others),
    )
    return " and ".join(words.format(_names(names)) for words, names in kinds if names)


def _refuse(part: Part, told: str) -> None:
    if told:
        raise part.refused(f"its weights {told}: it would be another model")


def _names(names: list[str]) -> str:
    """How many tensors, and the first of them."""
    more = ", …" if len(names) > NAMED else ""
    count = f"{len(names)} tensor{'s' * (len(names) != 1)}"
    return f"{count} ({', '.join(sorted(names)[:NAMED])}{more})"


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


def shapes(state: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of the tensors of a model."""
    return {name: tuple(value.shape) for name, value in state.items()}


def check_transformers(part: Part, kind: Any, folder: str, variant: str | None = None) -> None:
    """Compare a model of transformers with its files, by the library's own rules of renaming.

    Args:
        kind: class of the model.

    Raises:
        AigiError: tensors are missing, unexpected or of another shape; a file is damaged.
    """
    from transformers.utils import logging

    stored(part, folder, "model.safetensors", variant=variant)
    if variant is not None and not has_variant(folder, "model.safetensors", variant):
        variant = None
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of many lines is the one line below
    try:
        with loading(part.where, part.model):
            _, info = kind.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(before)
    kinds = (info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    _refuse(part, _told(*kinds))


def check_diffusers(part: Part, kind: Any, folder: str, variant: str | None = None) -> None:
    """Compare a model of diffusers with its files, by the library's own rules of renaming.

    Args:
        kind: class of the model.

    Raises:
        AigiError: tensors are missing, unexpected or of another shape; a file is damaged.
    """
    import re

    import accelerate
    import torch

    file = "diffusion_pytorch_model.safetensors"
    found = stored(part, folder, file, index_first=True, variant=variant)
    with loading(part.where, part.model), accelerate.init_empty_weights():
        model = kind.from_config(kind.load_config(folder, local_files_only=True))
    used = variant is not None and has_variant(folder, file, variant)
    index = _variant_names(file, str(variant))[1] if used else f"{file}.index.json"
    if not os.path.isfile(os.path.join(folder, index)):
        # Attention layers had other names once, also in the published VAEs of today.
        empty = {name: torch.empty(shape, device="meta") for name, shape in found.items()}
        renamed = getattr(model, "_fix_state_dict_keys_on_load", None)
        if renamed is not None:
            renamed(empty)
        found = shapes(empty)
    expected = shapes(model.state_dict())
    ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()
    found = {
        name: shape
        for name, shape in found.items()
        if name in expected or not any(re.search(pattern, name) for pattern in ignored)
    }
    compare(part, expected, found)


def check_pipeline(
    place: Place, folder: str, given: Iterable[str] = (), variant: str | None = None
) -> None:
    """Compare every component of a pipeline of diffusers with its files.

    Args:
        place: of the model, for errors.
        folder: of the pipeline on this machine.
        given: components that do not come from the folder.
        variant: which files of weights; a component without any of it has the plain ones.

    Raises:
        AigiError: names every component that cannot be used, a line each, and its tensors.
    """
    if found := pipeline_problems(place, folder, given, variant):
        raise AigiError("\n".join(found))


def pipeline_problems(
    place: Place, folder: str, given: Iterable[str] = (), variant: str | None = None
) -> list[str]:
    """What is wrong with the files of the components of a pipeline, a line each.

    Args:
        as for `check_pipeline`.

    Raises:
        AigiError: it is no pipeline.
    """
    found = []
    kinds = {name: kind for name, kind in _components(place, folder).items() if name not in given}
    if variant is not None and not any(
        has_variant(os.path.join(folder, name), file, variant) for name in kinds for file in WEIGHTS
    ):
        return [f"{place.where}: {place}: has no weights of variant {variant}. Leave it out."]
    for name, kind in kinds.items():
        try:
            part = Part(place.where, place, name)
            check_model(part, kind, os.path.join(folder, name), variant)
        except AigiError as error:
            found.append(str(error))
    return found


def read_index(place: Place, folder: str) -> dict[str, Any]:
    """The content of a pipeline's `model_index.json`.

    Raises:
        AigiError: it is missing or damaged.
    """
    path = os.path.join(folder, INDEX)
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        if not isinstance(index, dict):
            raise ValueError("expected names and components")
    except (OSError, ValueError, RecursionError) as error:
        raise _no_pipeline(place, path, error) from error
    return index


def _no_pipeline(place: Place, path: str, error: Exception) -> AigiError:
    return AigiError(
        f"{place.where}: {path}: not a pipeline of diffusers ({type(error).__name__}: "
        f"{str(error)[:200]}). {_REMEDY}"
    )


def _components(place: Place, folder: str) -> dict[str, Any]:
    """Classes of the components of a pipeline that have weights, by name."""
    import diffusers
    import torch
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    found = {}
    for name, value in sorted(read_index(place, folder).items()):
        if isinstance(value, list) and value and value[0] in libraries:
            try:
                kind = getattr(libraries[value[0]], value[1])
            except (AttributeError, TypeError, LookupError) as error:
                path = os.path.join(folder, INDEX)
                raise _no_pipeline(place, path, error) from error
            if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
                found[name] = kind
    return found


def check_model(part: Part, kind: Any, folder: str, variant: str | None = None) -> None:
    """Compare a model of transformers or diffusers with its files.

    Raises:
        AigiError: as `check_transformers`.
    """
    import transformers

    of_transformers = issubclass(kind, transformers.PreTrainedModel)
    (check_transformers if of_transformers else check_diffusers)(part, kind, folder, variant)


def digest(part: Part, state: torch.nn.Module | Mapping[str, torch.Tensor]) -> str:
    """sha256 of a model's tensors as they were loaded, in hex.

    It is that of one line a tensor, sorted by name: name, dtype, shape and sha256 of its bytes.
    It does not depend on the device or on how files divide the tensors. It is taken before a
    model is moved or converted, so every device has the same one.

    Args:
        state: a model, or its tensors by name.

    Raises:
        AigiError: a weight is not a finite number.
    """
    tensors: Mapping[str, Any] = state if isinstance(state, Mapping) else state.state_dict()
    names = sorted(tensors)
    with ThreadPoolExecutor(THREADS, "weights") as pool:
        lines = list(pool.map(partial(_line, tensors), names))
    bad = [name for name, line in zip(names, lines, strict=True) if line is None]
    if bad:
        raise part.refused(f"{_names(bad)} with infinite or undefined numbers")
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _line(tensors: Mapping[str, Any], name: str) -> str | None:
    import torch

    value = tensors[name].detach()
    # Weights in fewer bits are tensors made of tensors: numbers, scales and so on.
    inner, about = getattr(value, "__tensor_flatten__", lambda: ((), None))()
    if inner:
        mine = {f"{name}.{key}": part for key in inner if (part := getattr(value, key)) is not None}
        lines = [f"{name} {about}", *(_line(mine, key) for key in mine)]
        return None if None in lines else "\n".join(map(str, lines))
    value = value.cpu().contiguous()
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        return None
    data = value.reshape(-1).view(torch.uint8).numpy()
    sha256 = hashlib.sha256(data).hexdigest()
    return f"{name} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} {sha256}"
