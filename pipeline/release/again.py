"""The settings of a run in, the commands that check its release and make it again out."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

import yaml

from pipeline.manifest import MANIFEST
from pipeline.markdown import Safe, escape, fence
from pipeline.plan.quotas import chosen
from pipeline.plan.specification import Dataset, DiffusersSpec, HttpSpec, ZooSpec
from pipeline.release.recipe import Recipe
from pipeline.release.regenerate import asked_places, recorded
from pipeline.release.trust import needs_word
from pipeline.stage import flat

_COMMIT = re.compile("[0-9a-f]{40}")
_HEAD = "RELEASE=FOLDER  # that of this file, or hf://datasets/ORG/NAME@REVISION"


def _written(value: str) -> str:
    """A text as `--set` reads it: YAML."""
    try:
        plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value, ensure_ascii=False)


def _revisions(dataset: Dataset, name: str) -> list[str]:
    spec = dataset.sources[name]
    members = spec.members if isinstance(spec, ZooSpec) else (spec,)
    return [one.revision for one in members if isinstance(one, DiffusersSpec)]


def _places(recipe: Recipe, dataset: Dataset, sources: list[str]) -> Iterator[tuple[str, str]]:
    """Settings that name files which neither the release nor the Hub has, and their names."""
    settings = {
        name: section
        for name, section in recorded(recipe, sources).items()
        if name != "prompts" and section is not None
    }
    for dotted, asked in asked_places(flat(settings), copied=True).items():
        section, name, *key = dotted.split(".")
        # A revision that is no commit is a name for a copy of one's own.
        own = (section, key) == ("sources", ["folder"]) and not all(
            _COMMIT.fullmatch(revision) for revision in _revisions(dataset, name)
        )
        if own or not asked.optional:
            yield dotted, asked.there


def commands(recipe: Recipe, dataset: Dataset) -> list[str]:
    """Lines of Markdown: the commands, and what they need.

    They are the same for the release and for one that was made by them.

    Args:
        recipe: of the release, with the names of places that its manifest states.
        dataset: its specification.
    """
    all_of_them = chosen(dataset, recipe.planned("release"))
    sources = [n for n in all_of_them if not isinstance(dataset.sources[n], HttpSpec)]
    lines = [_HEAD, 'aigi verify "$RELEASE"']
    if not sources:
        return [*fence("\n".join(lines), "sh"), "", "Its images cannot be made again, see Sources."]
    places = dict(_places(recipe, dataset, sources))
    given = [f"{dotted}={_written(there)}" for dotted, there in places.items()]
    if len(sources) < len(all_of_them):
        given.insert(0, f"plan.sources=[{', '.join(sources)}]")
    folders = [
        dotted.split(".")[1]
        for dotted in places
        if dotted.startswith("sources.") and dotted.endswith(".folder")
    ]
    run = " \\\n  ".join(
        [
            f'aigi run "$RELEASE/{MANIFEST}" --set run=again',
            *(f"--set {shlex.quote(setting)}" for setting in given),
        ]
    )
    if needs_word(recipe, dataset, folders):
        lines += [f"{run} --dry-run  # lists what it would load on this manifest's word", ""]
        run += " --trust"
    found = fence("\n".join([*lines, run]), "sh")
    if places:
        names = ", ".join(dict.fromkeys(escape(there) for there in places.values()))
        found += [
            "",
            Safe(
                f"It needs {names}, which the release does not contain. These are the names on the "
                "machine that made it: give your own places."
            ),
        ]
    return found
