"""The JSON schema of a workflow in, a table of settings for each of its sections out, as Markdown.

python -m pipeline.cli.reference workflows/README.md    # put between the two marks in that file
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.markdown import Safe, table

FIRST, LAST = "<!-- settings -->\n", "<!-- /settings -->"
HEADINGS = (Safe("key"), Safe("type; default"), Safe("meaning"))
PLAIN = {"string": "text", "integer": "whole number", "boolean": "true or false"}
LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "pattern": "of the form `{}`",
}

Node = dict[str, Any]
"""A part of a JSON schema."""


class Row(NamedTuple):
    """Cells of one setting."""

    key: str
    kind: str
    meaning: str


def reference(schema: Node) -> str:
    """All settings of a workflow: a heading, a sentence and a table for each section."""
    tables = _Tables(schema)
    return "\n".join(line for name in schema["properties"] for line in tables.section(name))


def filled(text: str, settings: str) -> str:
    """A text with these settings between its two marks."""
    before, _, rest = text.partition(FIRST)
    return f"{before}{FIRST}{settings}{LAST}{rest.partition(LAST)[2]}"


class _Tables:
    def __init__(self, schema: Node) -> None:
        self.schema = schema
        self.sections: dict[str, str] = {
            name: place
            for place, node in schema["properties"].items()
            for name in _within(place, node)[1]
        }

    def section(self, place: str) -> Iterator[str]:
        node = self.schema["properties"][place]
        rows = self._rows(place, node, place in self.schema["required"])
        yield f"### {place}\n"
        # The heading takes the place of the row of a whole section.
        if _within(place, node)[1] and (meaning := next(rows).meaning):
            yield f"{meaning}\n"
        yield from table(HEADINGS, [_cells(row) for row in rows])
        yield ""

    def _rows(self, key: str, node: Node, required: bool) -> Iterator[Row]:
        """The row of a setting, and those of the settings in it."""
        place, names = _within(key, node)
        default = self._default(node, names, required)
        meaning = node.get("description") or (self._meaning(names[0]) if len(names) == 1 else "")
        yield Row(key, "; ".join(filter(None, (self._kind(key, node), default))), meaning)
        if not all(self._elsewhere(key, name) for name in names):
            yield from self._fields(place, names)

    def _fields(self, place: str, names: list[str]) -> Iterator[Row]:
        """Rows of what may be at a place; what only some kinds of it have is marked so."""
        if len(names) == 1:
            node = self.schema["$defs"][names[0]]
            for field, inner in node["properties"].items():
                yield from self._rows(f"{place}.{field}", inner, field in node.get("required", ()))
            return
        kinds: list[str] = []
        meanings: list[str] = []
        default = "required"
        found: dict[Row, list[str]] = {}
        for name in names:
            kind = self.schema["$defs"][name]["properties"]["kind"]
            own = _choice(kind)
            kinds.append(own)
            meanings.append(f"{own}: {self._meaning(name).rstrip('.')}")
            default = f"`{kind['default']}`" if "default" in kind else default
            for row in self._fields(place, [name]):
                if row.key != f"{place}.kind":
                    found.setdefault(row, []).append(own)
        yield Row(f"{place}.kind", f"{', '.join(kinds)}; {default}", "; ".join(meanings))
        for row, some in found.items():
            only = "" if some == kinds else f"of {', '.join(some)}"
            yield row._replace(meaning=": ".join(filter(None, (only, row.meaning))))

    def _kind(self, key: str, node: Node) -> str:
        """What a value must be."""
        options = node.get("anyOf") or node.get("oneOf") or ()
        if options:
            return " or ".join(dict.fromkeys(self._kind(key, one) for one in options))
        if "$ref" in node:
            name = _within(key, node)[1][0]
            return f"as `{self.sections[name]}`" if self._elsewhere(key, name) else "settings"
        if "enum" in node or "const" in node:
            return _choice(node)
        if node["type"] == "array":
            return f"list of {self._kind(key, node['items'])}"
        if node["type"] == "object":
            values = _values(node)
            return "settings" if values is True else f"by name: {self._kind(key, values)}"
        limits = [text.format(node[limit]) for limit, text in LIMITS.items() if limit in node]
        return f"{PLAIN.get(node['type'], node['type'])} {', '.join(limits)}".strip()

    def _default(self, node: Node, names: list[str], required: bool) -> str:
        if required:
            return "required"
        value = node.get("default", {})
        if isinstance(value, dict) and names and "default" in node:
            usual = self.schema["$defs"][names[0]]["properties"]
            value = {key: own for key, own in value.items() if own != usual[key].get("default")}
            if not value:
                return ""  # those of the settings in it
        return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"

    def _meaning(self, name: str) -> str:
        """The first paragraph that documents a class."""
        text: str = self.schema["$defs"][name].get("description", "")
        return " ".join(text.split("\n\n")[0].split())

    def _elsewhere(self, key: str, name: str) -> bool:
        """Whether a class is explained in a section of its own."""
        return self.sections.get(name, key.split(".")[0]) != key.split(".")[0]


def _values(node: Node) -> Any:
    """What the values of a mapping must be, whatever its names must be."""
    by_name = node.get("patternProperties")
    return next(iter(by_name.values())) if by_name else node.get("additionalProperties")


def _choice(node: Node) -> str:
    return ", ".join(f"`{one}`" for one in node.get("enum", [node.get("const")]))


def _within(key: str, node: Node) -> tuple[str, list[str]]:
    """The place of the settings that a setting holds, and the classes that may be there."""
    if "$ref" in node:
        return key, [node["$ref"].rpartition("/")[2]]
    if node.get("type") == "array":
        return _within(f"{key}.N", node["items"])
    if isinstance(values := _values(node), dict):
        return _within(f"{key}.NAME", values)
    inner = [_within(key, one) for one in node.get("anyOf") or node.get("oneOf") or ()]
    names = [name for _, found in inner for name in found]
    return next((place for place, found in inner if found), key), names


def _cells(row: Row) -> list[Safe]:
    """Our own words in cells of a table: code stays code, and nothing is taken for HTML."""
    cells = []
    for text in row._replace(key=f"`{row.key}`"):
        parts = text.split("`")
        shown = (part if at % 2 else part.replace("<", r"\<") for at, part in enumerate(parts))
        cells.append(Safe("`".join(shown).replace("|", r"\|")))
    return cells


if __name__ == "__main__":
    from pipeline.workflow import Workflow

    for path in map(Path, sys.argv[1:]):
        settings = reference(Workflow.model_json_schema())
        path.write_text(filled(path.read_text(encoding="utf-8"), settings), encoding="utf-8")
