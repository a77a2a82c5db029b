"""A manifest and the places of this machine in, the workflow that makes the release again out.

A manifest contains every setting that decides a byte, the dataset specification with pinned
commits, what the top-up rounds added, and a digest of the plan. It contains only the names of
folders and files. `PLAN_FILE` beside it is the plan itself; without that file, prompts and plan are
made again from the captions, and must match the manifest.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any

from pipeline import AigiError
from pipeline.manifest import PLAN_FILE, plan_beside, read_manifest
from pipeline.release.recipe import Recipe
from pipeline.shown import public
from pipeline.stage import flat

_PLACE = re.compile(
    r"prompts\.sources\.\d+\.(path|photos|folder)|prompts\.filters\.blocklist"
    r"|sources\.[^.]+\.(folder|path|captions|vae)"
    r"|embeddings\.folder|quality\.safety_checker\.folder|selection\.review"
)
"""Settings that name a place on a machine; the manifest decides what must be there."""
_OPTIONAL = {
    # The specification names a model on the Hub, too; a plan that is copied has its captions.
    False: re.compile(r"sources\.[^.]+\.folder"),
    True: re.compile(r"sources\.[^.]+\.(folder|captions)"),
}


def _put(data: Any, dotted: str, value: Any) -> None:
    *above, last = dotted.split(".")
    for key in above:
        data = data[int(key)] if isinstance(data, list) else data[key]
    data[last] = value


def is_place(dotted: str, value: object) -> bool:
    """Whether a setting of a workflow names a folder or file of a machine."""
    if _PLACE.fullmatch(dotted) is None or not isinstance(value, str):
        return False
    # Another VAE may also be a Hub id, which is the same everywhere.
    return not dotted.endswith(".vae") or posixpath.isabs(value) or "://" in value


def recorded(recipe: Recipe, sources: list[str]) -> dict[str, Any]:
    """The settings of a run for its manifest; places are cut to the last part of their names.

    Args:
        sources: those that the plan has.
    """
    # A workflow has more sections, which only read a release and decide no byte of it.
    deciding = Recipe.model_fields.keys() - {"run", "compute", "release"}
    data: dict[str, Any] = public(recipe.model_dump(mode="json", include=set(deciding)))
    data["compute"] = {"threads": recipe.compute.threads}
    data["sources"] = {name: data["sources"][name] for name in sources if name in data["sources"]}
    data["plan"] = {**data["plan"], "sources": sorted(sources)}
    for name in ("dataset", "manifest"):
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
            and its places count.
        sections: of the manifest's settings, beside `plan` and `compute`; None: all.

    Raises:
        AigiError: this is no manifest, or a place that the settings need is not given.
    """
    manifest = read_manifest(location)
    data = {
        name: section
        for name, section in manifest["workflow"].items()
        if sections is None or name in (*sections, "plan", "compute")
    }
    copied = plan_beside(location, manifest) is not None
    wanted = (mine.get("plan") or {}).get("sources")
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
    if copied:
        data.pop("prompts", None)
        if data.get("selection"):
            data["selection"] = {**data["selection"], "rounds": 0}
    given = {name: value for name, value in flat(mine).items() if _PLACE.fullmatch(name)}
    missing = []
    data.setdefault("sources", {})
    for dotted, value in flat(data).items():
        if _PLACE.fullmatch(dotted) is None:
            continue
        if given.get(dotted) is not None:
            _put(data, dotted, given[dotted])
        elif isinstance(value, str) and not dotted.endswith(".vae"):
            if _OPTIONAL[copied].fullmatch(dotted):
                _put(data, dotted, None)
            else:
                missing.append(f"  --set {dotted}=...   (originally: {value})")
    for name in data["plan"]["sources"]:
        # Such a source had no settings of its own there.
        folder = given.get(f"sources.{name}.folder")
        if name not in data["sources"] and folder is not None:
            data["sources"][name] = {"folder": folder}
    if missing:
        raise AigiError(
            f"{location}: this release was made with files that this workflow does not name. Give "
            "their places here:\n"
            + "\n".join(missing)
            + "\nOr leave a source out with plan.sources." * copied
        )
    for name in ("run", "release"):
        if mine.get(name) is not None:
            data[name] = mine[name]
    data["compute"] = {**(mine.get("compute") or {}), **data["compute"]}
    return data
