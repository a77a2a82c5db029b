"""Imports have no circle and follow the order of the data; modules are short; folders explain."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ORDER = [
    "shown", "complaints", "gate", "versions", "faults", "hub_said", "outside", "settings",
    "files", "decisions", "threads", "columns", "digests", "pixels", "metadata", "markdown",
    "progress", "charts", "tables", "parquet", "record", "folder", "lent", "store", "held",
    "intact", "freed", "retry", "loaded", "logbook", "alive", "parts", "software", "stage",
    "joining", "cluster", "shards", "running", "status", "makers", "manifest", "rows", "pictures",
    "collection", "models", "marks",
    "prompts", "plan", "images", "scores", "duplicates", "selection",  # the building side
    "release",  # the waist
    "learned", "codecs", "analysis", "training", "benchmark",  # what reads a release
    "pages", "workflow", "growth", "build", "execute", "handle", "partial", "audit",
    "dry_run", "demo", "tiny", "starts", "cli",
]  # fmt: skip
"""Rooms and single modules in the order of the data: an import may only point to the left."""
BUILDING = ORDER[ORDER.index("prompts") : ORDER.index("release")]
READING = ORDER[ORDER.index("learned") : ORDER.index("pages")]
MOST_LINES = 620


def modules() -> dict[str, Path]:
    """Dotted names of all modules of the package, with their files."""
    found = {}
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def code(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from code(child)


def imports(text: str) -> set[str]:
    """Modules of the package that a text imports, at its top or in a function."""
    found = set()
    for node in code(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return {name for name in found if name in MODULES and name != "pipeline"}


ARROWS = {name: imports(file.read_text()) for name, file in MODULES.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One circle of imports, or nothing."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(arrows[name]):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def room(module: str) -> str:
    """The folder below the package, or the module itself where it is in none."""
    return module.split(".")[1]


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"a"}}) == ["a", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_in_functions_count_and_those_for_types_do_not() -> None:
    text = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from pipeline.workflow import Workflow\n"
        "def late():\n    from pipeline import store\n"
    )
    assert imports(text) == {"pipeline.store"}


def test_no_circle() -> None:
    assert not circle(ARROWS), " -> ".join(circle(ARROWS))


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in MODULES if name != "pipeline"} == set(ORDER)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "pipeline"])
def test_imports_point_to_the_left(name: str) -> None:
    here = ORDER.index(room(name))
    assert not [other for other in ARROWS[name] if ORDER.index(room(other)) > here]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "pipeline"])
def test_what_reads_a_release_knows_nothing_of_building(name: str) -> None:
    if room(name) in READING:
        assert not [other for other in ARROWS[name] if room(other) in BUILDING]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "pipeline"])
def test_a_stage_takes_its_own_section(name: str) -> None:
    """Not the whole workflow: no room before it names that module, not even for types."""
    if ORDER.index(room(name)) < ORDER.index("workflow"):
        assert "pipeline.workflow" not in MODULES[name].read_text()


def packages(text: str) -> set[str]:
    """Top names of all that a text imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.split(".")[0])
    return found


def test_open_clip_is_loaded_in_one_module() -> None:
    loading = [name for name, file in MODULES.items() if "open_clip" in packages(file.read_text())]
    assert loading == ["pipeline.models.clip"]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_holds_one_topic(name: str) -> None:
    lines = len(MODULES[name].read_text().splitlines())
    assert lines <= MOST_LINES, f"{name} has {lines} lines: which topic of it is another module's?"


@pytest.mark.parametrize("folder", sorted({file.parent for file in MODULES.values()}))
def test_a_folder_explains_itself(folder: Path) -> None:
    assert (folder / "README.md").stat().st_size > 500


def test_the_front_door_is_short() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= 9_000
    assert len(text.splitlines()) <= 200
    assert (ROOT / "workflows" / "README.md").exists()
