"""The settings of a run in, the commands that check its release and make it again out."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence

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


def commands(dataset: Dataset, recipes: Sequence[Recipe]) -> list[str]:
    """Lines of Markdown: the commands, and what they need.

    They are the same for the release and for one that was made by them.

    Args:
        dataset: the specification of the release.
        recipes: of each run that made some of its sources, with the names of places that its
            manifest states.
    """
    lines, places = [_HEAD, 'aigi verify "$RELEASE"'], dict[str, str]()
    for number, recipe in enumerate(recipes, start=1):
        run = "again" if len(recipes) == 1 else f"again-{number}"
        lines += _commands(dataset, recipe, run, len(recipes) == 1, places)
    found = fence("\n".join(lines), "sh")
    if len(lines) == 2:
        return [*found, "", "Its images cannot be made again, see Sources."]
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


def _commands(
    dataset: Dataset, recipe: Recipe, run: str, alone: bool, needed: dict[str, str]
) -> list[str]:
    """The commands that make the sources of one run again, in a run of its own.

    Args:
        alone: no other run made any of the release.
        needed: gets the settings that name places, and what they are on the first machine.
    """
    all_of_them = chosen(dataset, recipe.planned("release"))
    sources = [n for n in all_of_them if not isinstance(dataset.sources[n], HttpSpec)]
    if not sources:
        return []
    places = dict(_places(recipe, dataset, sources))
    needed |= places
    given = [f"{dotted}={_written(there)}" for dotted, there in places.items()]
    if len(sources) < len(all_of_them) or not alone:
        given.insert(0, f"plan.sources=[{', '.join(sources)}]")
    folders = [
        dotted.split(".")[1]
        for dotted in places
        if dotted.startswith("sources.") and dotted.endswith(".folder")
    ]
    command = " \\\n  ".join(
        [
            f'aigi run "$RELEASE/{MANIFEST}" --set run={run}',
            *(f"--set {shlex.quote(setting)}" for setting in given),
        ]
    )
    if not needs_word(recipe, dataset, folders):
        return [command]
    looked = f"{command} --dry-run  # lists what it would load on this manifest's word"
    return [looked, "", f"{command} --trust"]
