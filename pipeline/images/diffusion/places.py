"""A text-to-image source in; where its files are, and all of them that does not fit, out."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline import AigiError
from pipeline.complaints import near
from pipeline.images.diffusion import memory, parts, schedulers
from pipeline.images.diffusion.pipelines import (
    Runner,
    call_problems,
    listing_problems,
    loaded_files,
    model_problems,
    part_problems,
    runner,
    skeleton,
)
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.models.hub import Place, check_sha256, loading
from pipeline.models.weights import (
    INDEX,
    Part,
    check_model,
    check_pipeline,
    header,
    pipeline_problems,
    read_index,
)
from pipeline.plan.schedulers import OWN, scheduler_of
from pipeline.plan.specification import DiffusersSpec
from pipeline.prompts.tokens import Reader, reader_of

CONFIGS = (
    "*/config.json",
    "*/scheduler_config.json",
    "*/preprocessor_config.json",
    "tokenizer*/*",
)
"""What a repository has beside its weights."""
_TOKENIZERS = ("tokenizer*/*", "processor*/*")


def place_of(name: str, spec: DiffusersSpec, local: DiffusersSource) -> Place:
    model, revision = spec.model, spec.revision
    if spec.config is not None:
        model, _, revision = spec.config.partition("@")
    return Place.of(f"sources.{name}", local.folder, model, revision or None)


def prompt_reader(name: str, spec: DiffusersSpec, local: DiffusersSource) -> Reader:
    """The tokenizer of a source's model that reads most of a prompt.

    Raises:
        AigiError: the model or its tokenizer is missing.
    """
    place = place_of(name, spec, local)
    folder = place.fetch(INDEX, beside=_TOKENIZERS)
    index = read_index(place, folder)
    run = runner(place, index, spec.pipeline)
    stated = run.takes.get("max_sequence_length")
    most = spec.options.get("max_sequence_length", None if stated is None else stated.default)
    templated = run.family.templated
    taken = most if isinstance(most, int) else None
    return reader_of(place.where, folder, index, taken, templated)


def places(name: str, spec: DiffusersSpec, local: DiffusersSource) -> Iterator[Place]:
    """Where everything is that a source loads."""
    yield place_of(name, spec, local)
    yield from parts.added_places(name, spec, local.loras, local.components)


def other_vae(name: str, local: DiffusersSource) -> Place | None:
    """Where the VAE is that takes the place of the model's own, if there is one."""
    if local.vae is None:
        return None
    key = f"sources.{name}.vae"
    if os.path.isabs(local.vae):
        return Place(key, key, local.vae)
    repository, _, revision = local.vae.partition("@")
    return Place(key, key, None, repository, revision or None)


_VAE = ("config.json", "diffusion_pytorch_model.safetensors")


def vae_folder(place: Place) -> str:
    """Its files on this machine, compared with the model."""
    import diffusers

    folder = place.fetch(*_VAE)
    check_model(Part(place.where, place, "vae"), diffusers.AutoencoderKL, folder)
    return folder


def given_of(found: Runner, spec: DiffusersSpec, local: DiffusersSource) -> dict[str, Any]:
    """Components of a pipeline that do not come from the model's own files."""
    given = {**found.family.options, **({} if local.vae is None else {"vae": None})}
    return given | dict.fromkeys(spec.components)


Chooser = Callable[[Collection[str]], Collection[str]]
"""Names of all files of a place in, those that a source loads out."""


def wanted_files(
    name: str, spec: DiffusersSpec, local: DiffusersSource
) -> Iterator[tuple[Place, Chooser]]:
    """All places that a source loads files from, with those files.

    The chooser of the model itself reads its `model_index.json`, which is downloaded if need be,
    and raises an AigiError where that is none.
    """

    def exactly(*names: str) -> Chooser:
        return lambda found: [file for file in found if file in names]

    def of_pipeline(found: Collection[str]) -> Collection[str]:
        place = place_of(name, spec, local)
        index = read_index(place, place.fetch(INDEX))
        run = runner(place, index, spec.pipeline)
        given = given_of(run, spec, local)
        if spec.file is not None:  # it has the denoiser, or all; of the rest, this is the least
            given |= dict.fromkeys([run.family.denoiser])
        return loaded_files(index, found, given, spec.variant)

    yield place_of(name, spec, local), of_pipeline
    for lora in spec.loras:
        yield parts.lora_place(name, lora, local.loras), exactly(lora.weight_name or "")
    for part, component in spec.components.items():
        lead = f"{component.subfolder}/" if component.subfolder else ""
        files = [f"{lead}{file}" for file in ("config.json", *component.sha256)]
        yield parts.component_place(name, part, component, local.components), exactly(*files)
    if (vae := other_vae(name, local)) is not None:
        yield vae, exactly(*_VAE)


def pipeline_folder(
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
    place = place_of(name, spec, local)
    if local.folder is not None:
        place.fetch(INDEX, *spec.sha256)
    found = place.sha256(INDEX, *spec.sha256)
    for file, expected in spec.sha256.items():
        if file not in found:
            raise place.lacking(file)
        check_sha256(place.where, f"{place}: {file}", found[file], expected)
    folder = place.fetch(INDEX, beside=CONFIGS)
    index = read_index(place, folder)
    run = runner(place, index, spec.pipeline)
    given = given_of(run, spec, local)
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
    with _noted(problems):
        memory.check_memory(name, local, device)
    if local.quantise != "none" and (spec.file or spec.loras or spec.components):
        problems.append(
            f"sources.{name}.quantise: works with the model's own files alone, and the "
            "specification adds others (file, loras or components). Remove it."
        )
    listed = None if local.folder is not None or whole else place.names()
    if listed is not None:
        lacking = listing_problems(index, listed, given, spec.variant)
        problems += [f"{place.where}: {place}: {line}" for line in lacking]
    bare = None if missing else skeleton(run, index, folder, bool(spec.loras))
    if bare is not None:
        problems += [f"sources.{name}.{line}" for line in model_problems(run, spec, bare)]
        with _noted(problems):
            denoiser = getattr(bare, run.family.denoiser, None)
            memory.check_parts(name, local, bare, denoiser)
    problems += parts.component_problems(name, spec, local.components, index)
    problems += parts.lora_problems(name, spec, local.loras, run, bare)
    if (vae := other_vae(name, local)) is not None and vae.folder is not None:
        with _noted(problems):
            vae_folder(vae)
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
