"""The beginning of a word in, the words that a shell may complete it to out.

Files are completed in every place that takes one; beside them, names that only aigi knows. What
takes long to import is imported when its word is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import typer


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def places(incomplete: str) -> list[str]:
    """Files and folders; a folder ends in a slash, so that completion goes on."""
    folder, name = os.path.split(incomplete)
    found = []
    with suppress(OSError):
        for entry in os.scandir(os.path.expanduser(folder) or "."):
            if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
                found.append(os.path.join(folder, entry.name) + "/" * entry.is_dir())
    return sorted(found)


def workflows(incomplete: str) -> list[str]:
    """Names of workflows that came with aigi, and files."""
    from pipeline.workflow import shipped

    return [*_begun(shipped(), incomplete), *places(incomplete)]


def models(incomplete: str) -> list[str]:
    """Models of aigi's specifications, and files."""
    from pipeline.starts.generate import known_models

    return [*_begun(known_models(), incomplete), *places(incomplete)]


def codecs(incomplete: str) -> list[str]:
    """Codecs that came with aigi, and folders."""
    from pipeline.learned.shipped import shipped

    return [*_begun(shipped(), incomplete), *places(incomplete)]


def kinds(incomplete: str) -> list[str]:
    """Kinds of workflows to begin with."""
    from pipeline.starts.new import KINDS

    return _begun(KINDS, incomplete)


def sources(context: typer.Context, incomplete: str) -> list[str]:
    """Sources of the run or release that the command names."""
    from pipeline import AigiError
    from pipeline.manifest import open_release

    # Of a command that is not finished, all words may still be unread.
    words = [word for word in context.args if not word.startswith("-")]
    place = context.params.get("run_folder") or (words[0] if words else None)
    with suppress(AigiError, OSError):
        _, manifest = open_release(str(place))
        return _begun(manifest["specification"]["sources"], incomplete)
    return []


def settings(incomplete: str) -> list[str]:
    """Keys for `--set`, one level at a time; behind a key that has names for values, those."""
    key, equals, value = incomplete.partition("=")
    if equals:
        values = _VALUES.get(key)
        before, bracket, last = value.rpartition("[" if "," not in value else ",")
        lead = f"{key}={before}{bracket}"
        return [] if values is None else [lead + name for name in _begun(values(), last.strip())]
    from pipeline.workflow import Workflow

    schema = Workflow.model_json_schema()
    above, _, name = key.rpartition(".")
    node: Any = {"properties": schema["properties"]}
    for part in filter(None, above.split(".")):
        node = _of(schema, node).get(part, {})
    lead = f"{above}." if above else ""
    found = []
    for field, inner in _of(schema, node).items():
        if field.startswith(name):
            found.append(lead + field + ("." if _of(schema, inner) else "="))
    return found


def _of(schema: Any, node: Any) -> dict[str, Any]:
    """What settings a node of the schema has."""
    if "$ref" in node:
        return _of(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    found: dict[str, Any] = dict(node.get("properties", {}))
    for one in node.get("anyOf", ()):
        found |= _of(schema, one)
    return found


def _codecs() -> Iterable[str]:
    from pipeline.codecs.table import CODECS
    from pipeline.learned.shipped import shipped

    return [*CODECS, *shipped()]


def _networks() -> Iterable[str]:
    from pipeline.learned.sizes import NETWORKS

    return NETWORKS


def _models() -> Iterable[str]:
    from pipeline.starts.generate import known_models

    return known_models()


_VALUES: dict[str, Callable[[], Iterable[str]]] = {
    "benchmark.anchor": _codecs,
    "benchmark.codecs": _codecs,
    "plan.sources": _models,
    "train.anchors": _codecs,
    "train.network": _networks,
}
"""Names that values of a setting may have."""
