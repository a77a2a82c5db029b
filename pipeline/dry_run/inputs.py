"""A workflow in; what of its inputs is missing, wrong or too little, a line each, out.

Only what is on this machine, or at a URL that the workflow reads itself, is opened. Of models and
datasets of the Hub, the table of downloads has what the Hub says. Beginnings of files are read, and
as many captions as the plan needs; what fails far inside a file is found by the run alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pipeline import AigiError
from pipeline.shown import public_url

if TYPE_CHECKING:
    from pipeline.build import Estimate
    from pipeline.prompts.captions import CaptionSource
    from pipeline.workflow import Workflow

_LOOKED = 200
"""Rows of a file of captions that are looked at."""
_SIGMAS = 3.0
"""How far below the mean a number of prompts by chance may be expected to fall."""


def problems(workflow: Workflow, lines: list[Estimate]) -> list[str]:
    """All that will certainly fail, as things are now, a line each.

    Args:
        lines: the estimate of its plan; empty: it has none.
    """
    found: list[str] = []

    def look(check: Callable[[], object]) -> None:
        try:
            check()
        except AigiError as error:
            for line in filter(None, map(str.strip, str(error).split("\n"))):
                # A stage that is built says of a file what was said with its setting.
                if not any(line.split(": ")[0] in said for said in found):
                    found.append(line)

    for check in _checks(workflow):
        look(check)
    look(partial(_stages, workflow))
    with suppress(AigiError):  # a file that cannot be read, which is in a line above
        found += _too_few(workflow, lines)
    return found


def _stages(workflow: Workflow) -> None:
    from pipeline.build import readers, stages

    stages(workflow)
    readers(workflow)


def _checks(workflow: Workflow) -> Iterator[Callable[[], object]]:
    """What to look at, each of which raises an AigiError if it is wrong."""
    prompts = workflow.prompts
    for number, source in enumerate(() if prompts is None else prompts.sources):
        yield _named(f"prompts.sources.{number}", _captions(source))
    if prompts is not None:
        filters = prompts.filters
        for key, place in (("blocklist", filters.blocklist), ("names", filters.names)):
            if place is not None:
                yield _named(f"prompts.filters.{key}", _readable(place))
        if prompts.review is not None:
            yield _decisions(prompts.review, "prompt_id")
        if any(getattr(scorer, "folder", None) for scorer in prompts.safety):
            from pipeline.prompts import safety

            yield partial(safety.check, prompts.safety)
    if workflow.selection is not None and workflow.selection.review is not None:
        yield _decisions(workflow.selection.review, "image_id")
    yield from _sources(workflow)
    if workflow.embeddings is not None and workflow.embeddings.folder is not None:
        from pipeline.models.clip import check_weights

        yield partial(check_weights, workflow.embeddings)
    checker = None if workflow.quality is None else workflow.quality.safety_checker
    if checker is not None and checker.folder is not None:
        from pipeline.scores.safety import check_checker

        yield partial(check_checker, checker)


def _named(setting: str, check: Callable[[], object]) -> Callable[[], object]:
    """The check, whose errors name the setting."""

    def checked() -> None:
        try:
            check()
        except AigiError as error:
            raise AigiError(
                "\n".join(
                    line if line.startswith(setting) else f"{setting}: {line}"
                    for line in str(error).split("\n")
                )
            ) from error

    return checked


def _readable(place: str) -> Callable[[], object]:
    from pipeline.outside import opened

    def check() -> None:
        try:
            with opened(place) as file:
                file.read(1)
        except FileNotFoundError:
            raise AigiError(f"{public_url(place)}: no such file") from None

    return check


def _decisions(place: str, subject: str) -> Callable[[], object]:
    from pipeline.decisions import read_decisions

    return lambda: read_decisions(place, subject)  # type: ignore[arg-type]


def _captions(source: CaptionSource) -> Callable[[], object]:
    """Files of captions are there, and their first rows are of the kind that is stated."""
    from pipeline.prompts.captioner import photo_names
    from pipeline.prompts.captions import BlipCaptions, HubCaptions, files_of, read

    def check() -> None:
        if isinstance(source, HubCaptions):
            return
        if isinstance(source, BlipCaptions):
            if source.photos is not None:
                photo_names(source)
            return
        for place, _ in files_of(source):
            rows = list(islice(read(source, place or None), _LOOKED))
            if rows and all(text is None for _, text, _ in rows):
                raise AigiError(f"{public_url(place)}: no caption in its rows: {rows[0][2]}")
            if not rows:
                raise AigiError(f"{public_url(place)}: no captions in it")

    return check


def _sources(workflow: Workflow) -> Iterator[Callable[[], object]]:
    """Models of folders and files load, and imports have images."""
    from pipeline.images.diffusion.source import DiffusersSource
    from pipeline.images.images import check_sources
    from pipeline.plan import specification
    from pipeline.plan.quotas import chosen
    from pipeline.plan.specification import DrawnSpec, ImportSpec

    plan = workflow.plan
    if plan is None:
        return
    dataset = specification.load(plan.dataset)
    for name in chosen(dataset, plan):
        spec, local = dataset.sources[name], workflow.sources.get(name)
        alone = plan.model_copy(update={"sources": (name,)})
        if isinstance(spec, ImportSpec):
            yield _named(f"sources.{name}", partial(_images, workflow, name))
        elif isinstance(spec, DrawnSpec) and isinstance(local, DiffusersSource):
            if local.folder or local.file or local.loras or local.components:
                yield partial(check_sources, alone, workflow.sources, workflow.compute)
        elif isinstance(spec, DrawnSpec) and local is not None:
            yield partial(check_sources, alone, workflow.sources)
    yield from (partial(_there, place) for place in plan.reuse)


def _there(place: str) -> None:
    if "://" not in place and not os.path.isdir(place):
        raise AigiError(f"plan.reuse: {place}: no such folder")


def _images(workflow: Workflow, name: str) -> None:
    """An import has images, and what is needed of its first ones."""
    from pipeline.pictures.lists import list_captions
    from pipeline.plan.imports import local_import

    source = local_import(workflow.sources, name)
    some = list(islice(list_captions(source), _LOOKED))
    if not some:
        raise AigiError(f"{public_url(source.path)}: no images in it")
    if all(one.problem is not None for one in some):
        first = some[0]
        raise AigiError(f"{first.name}: {first.problem}; and so for all that were looked at")


# --- enough prompts ------------------------------------------------------------------------------


def _needed(lines: list[Estimate]) -> tuple[dict[str, int], int]:
    """Prompts that the plan needs: of each split, and in all."""
    splits: dict[str, int] = {}
    sources: dict[str, int] = {}
    for line in lines:
        splits[line.split] = max(splits.get(line.split, 0), line.prompts)
        sources[line.source] = sources.get(line.source, 0) + line.prompts
    return splits, max(sum(splits.values()), max(sources.values(), default=0))


def _different(sources: tuple[CaptionSource, ...], most: int) -> int | None:
    """How many different captions there are, up to a number; None: nobody knows before."""
    from pipeline.prompts.captions import BlipCaptions, GrammarCaptions, HubCaptions, different

    if any(isinstance(source, BlipCaptions | HubCaptions) for source in sources):
        return None
    drawn = sum(source.count for source in sources if isinstance(source, GrammarCaptions))
    read = (source for source in sources if not isinstance(source, GrammarCaptions))
    return drawn + different(read, most - drawn)


def _too_few(workflow: Workflow, lines: list[Estimate]) -> Iterator[str]:
    """Why the plan will lack prompts."""
    from pipeline.plan.plan import more_in

    prompts = workflow.prompts
    splits, needed = _needed(lines)
    if prompts is None or not needed:
        return
    shares = {"validation": workflow.split.validation, "test": workflow.split.test}
    shares["train"] = 1 - sum(shares.values())
    # By chance as many are in a split as its share says; more than these can be of no use.
    enough = max(
        [
            needed,
            *(
                math.ceil(2 * count / shares[name])
                for name, count in splits.items()
                if shares[name]
            ),
        ]
    )
    count = prompts.select.count
    there = _different(prompts.sources, min(enough, count or enough))
    given = min((one for one in (count, there) if one is not None), default=None)
    if given is None:
        return
    few = (
        f"prompts.select.count is {count:,}"
        if count is not None and given == count
        else f"the captions have {given:,} different ones"
    )
    for name, wanted in splits.items():
        mean, share = given * shares[name], shares[name]
        if mean + _SIGMAS * math.sqrt(mean * (1 - share)) < wanted:
            expected = f"about {mean:,.0f} of them will be in {name}" if share < 1 else "no more"
            yield (
                f"plan: {wanted:,} prompts are needed in {name}, and {few}: {expected}. Add "
                f"captions, raise prompts.select.count, {more_in(name)}, or lower plan.limit."
            )
