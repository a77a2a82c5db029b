"""A workflow whose settings are a manifest's in, what it would load on that word alone out.

Nothing has to be confirmed that a person of this machine chose already: models in a folder that the
workflow names, models that aigi takes by default, and commits that are in the cache of the Hub, so
those of one's own runs. Local files cannot be named at all, see `regenerate`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from pipeline import AigiError
from pipeline.gate import refused
from pipeline.images.diffusion.places import places
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.images.images import local_diffusers
from pipeline.images.models import of_member
from pipeline.manifest import MANIFEST, REMEDY
from pipeline.marks.visible import logo_of
from pipeline.models.clip import Embeddings, in_hub
from pipeline.models.hub import Place
from pipeline.plan import specification
from pipeline.plan.quotas import chosen
from pipeline.plan.specification import Dataset, DiffusersSpec, DrawnSpec, ZooSpec
from pipeline.prompts.captions import BlipCaptions, HubCaptions
from pipeline.release.recipe import Recipe
from pipeline.release.regenerate import HUB_ID
from pipeline.scores.safety import SafetyChecker


def asked(recipe: Recipe) -> list[str]:
    """What a manifest would have this machine load, one line each; none without a manifest.

    Args:
        recipe: the sections of the manifest with the places of this machine.

    Raises:
        AigiError: the manifest names something that cannot be the id of a model or dataset.
    """
    if recipe.plan is None or recipe.plan.manifest is None:
        return []
    places = [*_pictures(recipe), *_scores(recipe), *_prompts(recipe)]
    found = []
    for kind, place in places:
        _check_id(recipe.plan.manifest, place)
        if not place.held():
            found.append(f"{kind} {place} ({place.where})")
    dataset = specification.load(recipe.plan.dataset)
    return list(dict.fromkeys([*found, *_logos(dataset, chosen(dataset, recipe.plan))]))


def needs_word(recipe: Recipe, dataset: Dataset, folders: Collection[str]) -> bool:
    """Whether some machine would load something on the word of a manifest of this recipe.

    Args:
        folders: sources whose models are in a folder that the workflow names.
    """
    names = chosen(dataset, recipe.planned("sources"))
    drawn = any(isinstance(dataset.sources[n], DrawnSpec) and n not in folders for n in names)
    return drawn or any(_scores(recipe)) or any(_logos(dataset, names))


def _check_id(location: str, place: Place) -> None:
    if place.folder is not None:
        return
    if not HUB_ID.fullmatch(place.repository):
        problem = f"{place.repository!r}: expected ORG/NAME of the Hub"
        raise refused(location, place.where, problem, REMEDY)
    if os.path.exists(place.repository):
        # Some libraries would take the folder.
        problem = f"{place.repository}: here, this is a folder; run the command in another folder"
        raise refused(location, place.where, problem, REMEDY)
    if ".." in (place.revision or "") or not (place.revision or "x").isprintable():
        raise refused(location, place.where, f"no revision {place.revision!r}", REMEDY)


def _pictures(recipe: Recipe) -> Iterator[tuple[str, Place]]:
    plan = recipe.planned("sources")
    dataset = specification.load(plan.dataset)
    for name in chosen(dataset, plan):
        spec = dataset.sources[name]
        if isinstance(spec, DiffusersSpec):
            yield from _loaded(name, spec, local_diffusers(recipe.sources, name))
        elif isinstance(spec, ZooSpec):
            local = local_diffusers(recipe.sources, name)
            for member in spec.members:
                yield from _loaded(name, member, of_member(local, member))


def _loaded(name: str, spec: DiffusersSpec, local: DiffusersSource) -> Iterator[tuple[str, Place]]:
    for place in places(name, spec, local):
        if place.folder is not None or place.repository:  # the file of a LoRA has none
            yield "model", place


def _scores(recipe: Recipe) -> Iterator[tuple[str, Place]]:
    clip = recipe.embeddings
    if clip is not None and clip.folder is None:
        usual = Embeddings()
        if (repository := in_hub(clip)) is not None:
            yield "model", Place.of("embeddings", None, repository)
        elif (clip.model, clip.pretrained) != (usual.model, usual.pretrained):
            # Of the list that open_clip carries in itself.
            yield "model", Place.of("embeddings", None, f"open_clip/{clip.model}", clip.pretrained)
    checker = None if recipe.quality is None else recipe.quality.safety_checker
    usual_checker = SafetyChecker()
    if checker is not None and (checker.model, checker.revision) != (
        usual_checker.model,
        usual_checker.revision,
    ):
        where = "quality.safety_checker"
        yield "model", Place.of(where, checker.folder, checker.model, checker.revision)


def _prompts(recipe: Recipe) -> Iterator[tuple[str, Place]]:
    for number, source in enumerate(() if recipe.prompts is None else recipe.prompts.sources):
        where = f"prompts.sources.{number}"
        if isinstance(source, BlipCaptions):
            usual = BlipCaptions.model_fields["model"].default
            if (source.model, source.revision) != (usual, None):
                yield "model", Place.of(where, source.folder, source.model, source.revision)
        if isinstance(source, BlipCaptions | HubCaptions) and source.dataset is not None:
            revision = source.revision if isinstance(source, HubCaptions) else None
            key = f"{where}.dataset"
            yield "dataset", Place(key, key, None, source.dataset, revision)


def _logos(dataset: Dataset, names: Collection[str]) -> Iterator[str]:
    for name in names:
        for spec in dataset.sources[name].splits.values():
            for variant in spec.watermarks:
                if (logo := logo_of(variant)) is not None:
                    yield f"logo {logo}, the file beside {MANIFEST} (specification.sources.{name})"


def confirm(recipe: Recipe, trusted: bool) -> None:
    """Go on only if everything that a manifest asks for is here, or was confirmed.

    Raises:
        AigiError: lists what is not.
    """
    found = asked(recipe)
    if found and not trusted:
        assert recipe.plan is not None
        raise AigiError(
            f"{recipe.plan.manifest}: this manifest would have this machine load:\n"
            + "".join(f"  {line}\n" for line in found)
            + "If you trust whoever made it, give --trust. Or name copies of your own, for "
            "example --set sources.NAME.folder=FOLDER."
        )
