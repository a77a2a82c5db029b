"""A manifest in, the runs that made its sources out; and what it states of some of them alone.

A release may be put together from several runs, of several machines or teams. What is one for each
run (settings, caption files, versions) is then listed for each maker, and for no other source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline import AigiError

OWN = ("workflow", "captions", "tables", "aigi", "versions")
"""Entries of a manifest that hold of one run."""


def makers_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The makers of a release; of most, there is one, whose entries are the manifest's own."""
    if found := manifest.get("makers"):
        return list(found)
    # It may be anybody's manifest; who uses its specification checks that.
    stated = manifest["specification"].get("sources")
    sources = list(stated) if isinstance(stated, Mapping) else []
    own = {name: manifest[name] for name in OWN}
    if manifest.get("counted") is not None:
        own["counted"] = manifest["counted"]
    return [{"sources": sources, "version": manifest["version"], **own}]


def workflow_of(manifest: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The settings of the run that made a source; empty where none are stated."""
    for maker in manifest.get("makers") or ():
        if source in maker["sources"]:
            found: Mapping[str, Any] = maker["workflow"]
            return found
    return manifest.get("workflow") or {}


def only(maker: Mapping[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """A maker of fewer sources: its settings are those of these, its other entries as they were."""
    workflow = dict(maker["workflow"])
    if isinstance(workflow.get("sources"), Mapping):
        workflow["sources"] = {n: each for n, each in workflow["sources"].items() if n in sources}
    if isinstance(workflow.get("plan"), Mapping):
        workflow["plan"] = {**workflow["plan"], "sources": list(sources)}
    return {**maker, "sources": list(sources), "workflow": workflow}


def named(maker: Mapping[str, Any]) -> str:
    """A maker, for messages: its sources, and the version with which they came."""
    return f"{', '.join(maker['sources'])} ({maker['version']})"


def made_by_one(
    location: str, manifest: Mapping[str, Any], sources: Collection[str] | None
) -> dict[str, Any]:
    """A manifest with the settings of the run that made these sources.

    Args:
        location: of the manifest, for messages.
        sources: some of it; None: all.

    Raises:
        AigiError: several runs made them, each with settings of its own.
    """
    makers = makers_of(manifest)
    if len(makers) == 1:
        return dict(manifest)
    mine = [m for m in makers if sources is None or not set(sources).isdisjoint(m["sources"])]
    if len(mine) == 1:
        own = {name: mine[0][name] for name in OWN}
        return {**manifest, **own, "counted": mine[0].get("counted")}
    if not mine:
        raise AigiError(
            f"plan.sources: {location} has no source {', '.join(sorted(sources or ()))}; there "
            f"are {', '.join(name for maker in makers for name in maker['sources'])}"
        )
    raise AigiError(
        f"{location}: several runs made these sources, each with settings of its own: "
        f"{'; '.join(map(named, mine))}. Make those of one again at a time, in a run of its own: "
        f"--set 'plan.sources=[{', '.join(mine[0]['sources'])}]'"
    )
