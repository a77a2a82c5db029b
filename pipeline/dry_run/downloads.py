"""A workflow in; what it would download of models and datasets, and how much, out.

The Hub states the bytes of each file. Where it is silent, or has no such repository, nobody knows,
and that is what is said: never nothing. Folders of this machine are not downloaded.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline import AigiError
from pipeline.images.diffusion.places import Chooser, wanted_files
from pipeline.images.images import local_diffusers
from pipeline.images.models import of_member
from pipeline.models import clip
from pipeline.models.hub import Place, hub_api, hub_errors
from pipeline.outside import Unreachable, in_short
from pipeline.plan import specification
from pipeline.plan.quotas import chosen
from pipeline.plan.specification import DiffusersSpec, ZooSpec
from pipeline.prompts import captioner
from pipeline.prompts.captions import BlipCaptions, HubCaptions
from pipeline.scores import safety
from pipeline.shown import redacted
from pipeline.threads import ahead, workers
from pipeline.workflow import Workflow

_THREADS = 8  # repositories that are asked for at once


@dataclass(frozen=True)
class Wanted:
    """Files that a workflow needs, which may be on the Hub.

    Attributes:
        what: the setting that names them.
        place: where they are.
        files: those of the repository that are fetched.
        kind: of repository.
        streamed: they are read as far as need be, and not stored.
    """

    what: str
    place: Place
    files: Chooser
    kind: str = "model"
    streamed: bool = False


@dataclass(frozen=True)
class Download:
    """What is downloaded of a place.

    Attributes:
        bytes: None: not known.
        why: that is so; or what there is to say.
        stored: on this machine, in the cache of the Hub.
    """

    what: str
    place: str
    bytes: int | None
    why: str = ""
    stored: bool = True


def matching(place: Place, needed: Sequence[str], beside: Sequence[str] = ()) -> Chooser:
    """The files of a repository that match a pattern, as `Place.fetch` gets them."""

    def choose(names: Collection[str]) -> Collection[str]:
        for pattern in needed:
            if not fnmatch.filter(names, pattern):
                raise place.lacking(pattern)
        found = (fnmatch.filter(names, pattern) for pattern in (*needed, *beside))
        return {name for some in found for name in some}

    return choose


def wanted(workflow: Workflow) -> Iterator[Wanted]:
    """All files that the building stages of a workflow read from elsewhere.

    Raises:
        AigiError: a section names a model that there is not.
    """
    prompts = workflow.prompts
    for number, source in enumerate(() if prompts is None else prompts.sources):
        what = f"prompts.sources.{number}"
        if isinstance(source, BlipCaptions):
            place = captioner.place_of(source)
            files = matching(place, captioner.FILES, captioner.BESIDE)
            yield Wanted(what, place, files)
        if isinstance(source, BlipCaptions | HubCaptions) and source.dataset is not None:
            streamed = isinstance(source, HubCaptions)
            revision = source.revision if isinstance(source, HubCaptions) else None
            place = Place.of(what, _folder(source.dataset), source.dataset, revision)
            yield Wanted(what, place, matching(place, ["*"]), "dataset", streamed)
    if workflow.plan is not None:
        dataset = specification.load(workflow.plan.dataset)
        for name in chosen(dataset, workflow.plan):
            spec = dataset.sources[name]
            if isinstance(spec, ZooSpec | DiffusersSpec):
                local = local_diffusers(workflow.sources, name)
                members = spec.members if isinstance(spec, ZooSpec) else (spec,)
                for member in members:
                    mine = of_member(local, member) if isinstance(spec, ZooSpec) else local
                    for place, files in wanted_files(name, member, mine):
                        yield Wanted(f"sources.{name}", place, files)
    if workflow.embeddings is not None:
        place, names = clip.wanted_files(workflow.embeddings)
        yield Wanted("embeddings", place, matching(place, names))
    quality = workflow.quality
    if quality is not None and quality.safety_checker is not None:
        place = safety.place_of(quality.safety_checker)
        yield Wanted("quality.safety_checker", place, matching(place, safety.CHECKER_FILES))


def _folder(dataset: str) -> str | None:
    """A dataset that is a folder of this machine."""
    return dataset if os.path.isdir(dataset) else None


def _unknown(group: Sequence[Wanted], why: str) -> Download:
    return replace(_named(group), bytes=None, why=redacted(why))


def _named(group: Sequence[Wanted]) -> Download:
    what = ", ".join(dict.fromkeys(one.what for one in group))
    return Download(what, str(group[0].place), 0, stored=not group[0].streamed)


def _asked(group: Sequence[Wanted]) -> Download:
    """What the Hub says of one repository, from which several sections may want files.

    Raises:
        Unreachable: the Hub cannot be reached, so that there is no use in asking again.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    kind, place = group[0].kind, group[0].place
    try:
        info = hub_api().repo_info(
            place.repository, repo_type=kind, revision=place.revision, files_metadata=True
        )
        sizes = {file.rfilename: file.size or 0 for file in getattr(info, "siblings", None) or ()}
        files = {name for one in group for name in one.files(sizes)}
    except hub_errors() as error:
        if isinstance(error, HfHubHTTPError | ValueError):
            return _unknown(group, in_short(error))
        raise Unreachable(in_short(error)) from error
    except AigiError as error:
        return _unknown(group, str(error))
    if not files:
        return _unknown(group, "nobody knows which of its files are needed")

    def cached(name: str) -> bool:
        found = try_to_load_from_cache(place.repository, name, revision=info.sha, repo_type=kind)
        return isinstance(found, str)

    left = {name for name in files if not cached(name)}
    why = "in the cache" if not left else "the rest is in the cache" if left < files else ""
    if kind == "dataset":
        why = "at most; read, not stored" if group[0].streamed else "at most; kept as Arrow, too"
    return replace(_named(group), bytes=sum(sizes[name] for name in left), why=why)


def downloads(workflow: Workflow) -> tuple[list[Download], str]:
    """What a workflow would download, each repository once.

    Returns: the downloads, and why the Hub did not answer; empty: it did.

    Raises:
        AigiError: as `wanted`.
    """
    asked: dict[tuple[str, str, str | None], list[Wanted]] = {}
    for one in wanted(workflow):
        if one.place.folder is None and one.place.repository:  # a LoRA may have no repository
            key = (one.kind, one.place.repository, one.place.revision)
            asked.setdefault(key, []).append(one)
    silent = ""

    def answer(group: Sequence[Wanted]) -> Download:
        nonlocal silent
        if not silent:
            try:
                return _asked(group)
            except Unreachable as error:
                silent = redacted(str(error))
        return _unknown(group, "the Hub does not answer")

    with workers(_THREADS, "sizes") as pool:
        return list(ahead(list(asked.values()), answer, pool, _THREADS)), silent
