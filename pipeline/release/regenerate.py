"""A manifest and the places of this machine in, the workflow that makes the release again out.

A manifest contains every setting that decides a byte, the dataset specification with pinned
commits, what the top-up rounds added, and a digest of the plan. It contains only the names of
folders and files. `PLAN_FILE` beside it is the plan itself; without that file, prompts and plan are
made again from the captions, and must match the manifest.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from pipeline import AigiError
from pipeline.gate import Checked, check, refused
from pipeline.makers import made_by_one
from pipeline.manifest import PLAN_FILE, REMEDY, plan_beside, read_manifest
from pipeline.plan import specification
from pipeline.plan.specification import Dataset, HttpSpec
from pipeline.prompts.prompts import as_before, as_recorded
from pipeline.release.recipe import Recipe
from pipeline.shown import public
from pipeline.stage import flat
from pipeline.store import RUN_WORKFLOW, Store

_PLACE = re.compile(
    r"prompts\.sources\.\d+\.(path|photos|folder|dataset)|prompts\.filters\.(blocklist|names)"
    r"|prompts\.safety\.\d+\.(path|folder)"
    r"|sources\.[^.]+\.(folder|path|captions|vae|file|(loras|components)\.[^.]+)"
    r"|embeddings\.folder|quality\.safety_checker\.folder|(selection|prompts)\.review"
)
"""Settings that name a place on a machine; the manifest decides what must be there."""
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
DECIDING = tuple(name for name in Recipe.model_fields if name not in ("run", "compute", "release"))
"""Sections that a manifest has, beside the threads of `compute`."""
_OPTIONAL = {
    # The specification names a model on the Hub, too; a plan that is copied has its captions.
    False: re.compile(r"sources\.[^.]+\.(folder|components\.[^.]+)|prompts\.safety\.\d+\.folder"),
    True: re.compile(r"sources\.[^.]+\.(folder|captions|components\.[^.]+)"),
}


_NOWHERE = Path(os.devnull)
"""Nothing is below it, so no name of a manifest can be taken for a file of this machine."""
_OF_MODEL = re.compile(r"sources\.[^.]+\.(folder|file|(loras|components)\.[^.]+)")
"""Settings of `_PLACE` that a generated source may have."""


def _drop(data: Any, dotted: str) -> None:
    *above, last = dotted.split(".")
    for key in above:
        data = data[key]
    del data[last]


def _put(data: Any, dotted: str, value: Any) -> None:
    *above, last = dotted.split(".")
    for key in above:
        data = data[int(key)] if isinstance(data, list) else data[key]
    data[last] = value


def is_place(dotted: str, value: object) -> bool:
    """Whether a setting of a workflow names a folder or file of a machine."""
    if _PLACE.fullmatch(dotted) is None or not isinstance(value, str):
        return False
    # Another VAE and a dataset may also be a Hub id, which is the same everywhere.
    if dotted.endswith((".vae", ".dataset")):
        return HUB_ID.fullmatch(value.partition("@")[0]) is None
    return True


class Asked(NamedTuple):
    """A place that whoever makes a release again must name, or may: `there`, it was this."""

    there: str
    optional: bool


def asked_places(settings: Mapping[str, Any], copied: bool) -> dict[str, Asked]:
    """Places that the settings of a manifest leave to the machine, by dotted name.

    Args:
        settings: the sections by dotted names (`stage.flat`).
        copied: the plan is copied from beside the manifest.
    """
    return {
        dotted: Asked(value, _OPTIONAL[copied].fullmatch(dotted) is not None)
        for dotted, value in settings.items()
        if _PLACE.fullmatch(dotted) is not None
        and isinstance(value, str)
        # No hash pins another VAE, so it is asked for wherever it is.
        and (is_place(dotted, value) or dotted.endswith(".vae"))
    }


def sections_of(location: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a manifest, checked: sections that decide a byte, and no places.

    Raises:
        AigiError: in one line, with the setting that is wrong.
    """
    recipe_of(location, manifest)
    return _sections(manifest)


def _sections(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a manifest; what is not named is as it was before there was a choice."""
    found = {name: each for name, each in manifest["workflow"].items() if each is not None}
    if isinstance(found.get("prompts"), dict):
        found["prompts"] = as_before(found["prompts"])
    return found


def recipe_of(location: str, manifest: Mapping[str, Any]) -> Recipe:
    """The same as a recipe, whose places are names without a place.

    Raises:
        AigiError: as `sections_of`.
    """
    found = _sections(manifest)
    for name in found:
        if name not in (*DECIDING, "compute"):
            problem = f"no such section of a manifest; there are {', '.join(DECIDING)}, compute"
            raise refused(location, f"workflow.{name}", problem, REMEDY)
    compute = check(_Compute, found.get("compute"), location, REMEDY, "workflow.compute")
    plan = found.get("plan")
    plan = {**plan, "dataset": location} if isinstance(plan, dict) else plan
    # Names of places are looked for nowhere: what they mean here, this machine's workflow says.
    whole = {**found, "compute": compute.model_dump(), "run": location, "plan": plan}
    recipe = check(Recipe, whole, location, REMEDY, "workflow", {"base": _NOWHERE})
    known = set(manifest["specification"].get("sources") or ())
    for field, names in (
        ("workflow.plan.sources", recipe.planned("plan").sources),
        ("workflow.sources", recipe.sources),
    ):
        if names is None:
            raise refused(location, field, "needed, but not given", REMEDY)
        if strangers := sorted(set(names) - known):
            problem = f"{strangers[0]!r} is no source of the specification"
            raise refused(location, field, problem, REMEDY)
    return recipe


class _Compute(Checked):
    """All that a manifest may say of the machine that works: the one number that changes bytes."""

    threads: Annotated[int, Field(ge=1, le=1024)]


def recorded(recipe: Recipe, sources: list[str]) -> dict[str, Any]:
    """The settings of a run for its manifest; places are cut to the last part of their names.

    Args:
        sources: those that the plan has, in the order of the specification.
    """
    # A workflow has more sections, which only read a release and decide no byte of it.
    data: dict[str, Any] = public(recipe.model_dump(mode="json", include=set(DECIDING)))
    data["compute"] = {"threads": recipe.compute.threads}
    # As in manifests of before, which have the first of each and do not name it.
    for name, usual in (("format", "png"), ("fill_batches", False)):
        if data["images"] is not None and data["images"][name] == usual:
            del data["images"][name]
    if data["prompts"] is not None:
        data["prompts"] = as_recorded(data["prompts"])
    data["sources"] = {name: data["sources"][name] for name in sources if name in data["sources"]}
    for name, source in data["sources"].items():
        if source["kind"] == "http":  # where it is and who may ask it are matters of a machine
            data["sources"][name] = {"kind": "http"}
    data["plan"] = {**data["plan"], "sources": list(sources)}
    for name in ("dataset", "manifest", "reuse"):
        data["plan"].pop(name)
    for dotted, value in flat(data).items():
        if is_place(dotted, value):
            _put(data, dotted, posixpath.basename(value.rstrip("/")))
    return data


def merged(
    location: str, mine: Mapping[str, Any], sections: Collection[str] | None = None
) -> dict[str, Any]:
    """Unchecked workflow: the settings of the manifest with the places of `mine`.

    Args:
        location: of the manifest, local path or fsspec URL.
        mine: an unchecked workflow. `run`, `compute` (but `threads`), `release`, `plan.sources`
            and its places count. Without a version in it, the release has that of the manifest.
        sections: of the manifest's settings, beside `plan` and `compute`; None: all.

    Raises:
        AigiError: this is no manifest, a place that the settings need is not given, or images of an
            endpoint would have to be made again.
    """
    wanted = (mine.get("plan") or {}).get("sources")
    names = wanted if isinstance(wanted, list | tuple) else None
    manifest = made_by_one(location, read_manifest(location), names)
    dataset = specification.load(location)
    data = {
        name: section
        for name, section in sections_of(location, manifest).items()
        if sections is None or name in (*sections, "plan", "compute")
    }
    if "images" in data:
        # What is not named there, as it was before there was a choice.
        data["images"] = {"format": "png", "fill_batches": False, **data["images"]}
    copied = plan_beside(location, manifest) is not None
    data["plan"] = {**data["plan"], "dataset": location, "manifest": location}
    if wanted is not None:
        if not copied:
            # The captions of an import can move prompts of other sources to another split.
            raise AigiError(
                f"plan.sources: {location} has no {PLAN_FILE} beside it, so the plan is made "
                "again and needs all sources. Use the manifest inside the release."
            )
        data["plan"]["sources"] = wanted
        data["sources"] = {name: each for name, each in data["sources"].items() if name in wanted}
    _refuse_endpoints(location, dataset, data["plan"]["sources"])
    if copied:
        data.pop("prompts", None)
        if data.get("selection"):
            data["selection"] = {**data["selection"], "rounds": 0}
    given = {name: value for name, value in flat(mine).items() if _PLACE.fullmatch(name)}
    missing = []
    data.setdefault("sources", {})
    known = flat(data)
    for dotted in known:
        if _PLACE.fullmatch(dotted) and given.get(dotted) is not None:
            _put(data, dotted, given[dotted])
    for dotted, asked in asked_places(known, copied).items():
        if given.get(dotted) is not None:
            continue
        if asked.optional:
            _drop(data, dotted)
        else:
            missing.append(f"  --set {dotted}=...   (originally: {asked.there})")
    known = flat(data)
    for dotted, value in given.items():
        # A source that had no such settings there: its model came from the Hub.
        if dotted not in known and value is not None and _OF_MODEL.fullmatch(dotted):
            _, name, *above, last = dotted.split(".")
            if name in data["plan"]["sources"]:
                node = data["sources"].setdefault(name, {})
                for key in above:
                    node = node.setdefault(key, {})
                node[last] = value
    if missing:
        raise AigiError(
            f"{location}: this release was made with files that this workflow does not name. Give "
            "their places here:\n"
            + "\n".join(missing)
            + "\nOr leave a source out with plan.sources." * copied
        )
    if mine.get("run") is not None:
        data["run"] = mine["run"]
    if (release := mine.get("release")) is not None:
        own = {"version": manifest["version"]}  # unless another is given
        data["release"] = {**own, **release} if isinstance(release, dict) else release
    data["compute"] = {**(mine.get("compute") or {}), **data["compute"]}
    return data


def _refuse_endpoints(location: str, dataset: Dataset, names: Collection[str]) -> None:
    """Refuse to make images of endpoints again: asked again, one gives other images."""
    asked = [name for name in names if isinstance(dataset.sources.get(name), HttpSpec)]
    if not asked:
        return
    others = ", ".join(name for name in names if name not in asked)
    leave = (
        f"Leave it out (--set 'plan.sources=[{others}]', with the manifest inside the release)"
        if others
        else "The release itself has its images"
    )
    raise AigiError(
        f"{location}: sources.{asked[0]}: its images cannot be made again: they came from an "
        f"endpoint, which gives other images each time. {leave}, or ask for new images with "
        "plan.dataset in place of plan.manifest."
    )


def places_of(target: str) -> dict[str, Any]:
    """The unchecked workflow of the run that a release folder is in; empty if it is in none.

    Not of a published one: whoever publishes could name folders of this machine.
    """
    if target.startswith(("hf://", "http://", "https://")):
        return {}
    for url in (target, os.path.dirname(target.rstrip("/"))):
        found = Store(url).read_json(RUN_WORKFLOW) if url else None
        if found is not None:
            return found
    return {}
