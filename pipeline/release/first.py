"""A plan that is an earlier release's in; what that release states, and is so here too, out.

What is made again has other records than what was made first: no prompts table, and places of
another machine. All that was decided there is decided here by the same manifest, so the documents
say it in the same words. Versions of libraries and hashes of files are always those of this run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import __version__
from pipeline.makers import made_by_one
from pipeline.manifest import plan_beside, read_manifest
from pipeline.plan.quotas import Plan
from pipeline.release.counts import Counts
from pipeline.release.recipe import Recipe
from pipeline.release.regenerate import recipe_of
from pipeline.software import git_commit

_DECIDED = ("split", "prompts", "sources", "embeddings", "quality", "duplicates", "selection")
"""Sections in which the first release names its places, or which a copied plan leaves out."""


@dataclass(frozen=True)
class First:
    """The release that a plan is of.

    Attributes:
        location: of its manifest.
        manifest: checked.
        whole: all of its sources are made again.
        all_of_a_run: all that one of the runs made which it was put together from.
    """

    location: str
    manifest: Mapping[str, Any]
    whole: bool
    all_of_a_run: bool

    def said(self, recipe: Recipe) -> Recipe:
        """The recipe with the names of files and folders that the first release states."""
        first = recipe_of(self.location, self.manifest)
        return recipe.model_copy(update={name: getattr(first, name) for name in _DECIDED})

    def workflow(self, sources: Sequence[str]) -> dict[str, Any]:
        """The settings for the manifest: as they are there, of these sources."""
        first = self.manifest["workflow"]
        if self.whole:
            return dict(first)
        return {
            **first,
            "sources": {name: each for name, each in first["sources"].items() if name in sources},
            "plan": {**first["plan"], "sources": list(sources)},
        }

    def tables(self, found: Mapping[str, str]) -> dict[str, str]:
        """Fingerprints of the tables for the manifest.

        They hash places of a machine, too, so those of the first run stay, where nothing else that
        they hash can differ: the same aigi made all of the same sources.

        Args:
            found: those of this run.
        """
        made = {"version": __version__, "commit": git_commit()}
        same = self.whole and self.manifest["aigi"] == made
        return dict(self.manifest["tables"] if same else found)

    def counts(self, found: Counts) -> Counts:
        """The counts of this run, with those of the first of what only that one could count."""
        counted = self.manifest.get("counted")
        unasked = () if counted is None else counted["unasked"]
        found = replace(found, unasked=tuple(dict.fromkeys([*found.unasked, *unasked])))
        if plan_beside(self.location, self.manifest) is None:
            return found
        return found.again(counted if self.all_of_a_run else None)


def first_of(plan: Plan, sources: Sequence[str]) -> First | None:
    """The release that a plan is of; None: the plan is this run's own.

    Args:
        sources: those that are made.

    Raises:
        AigiError: its manifest cannot be read, or is none.
    """
    if plan.manifest is None:
        return None
    manifest = made_by_one(plan.manifest, read_manifest(plan.manifest), sources)
    stated = manifest["workflow"]["plan"]["sources"]
    # What one of several runs made is not the whole release.
    everything = set(stated) == set(sources)
    whole = not manifest.get("makers") and everything
    return First(plan.manifest, manifest, whole, everything)
