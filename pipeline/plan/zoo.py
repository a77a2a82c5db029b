"""A list of models (CSV or YAML) in, its entries out, each with its place: file and line.

A column or key is a field of a diffusers source, or a split: how many images a model makes there.
What the fields mean, and whether a value can be, is looked at in `specification`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import yaml

from pipeline.complaints import near
from pipeline.outside import opened
from pipeline.shown import public_url

MOST = 10_000
"""Models of a list: a plan holds the turns of all of them."""
_SHOWN = 10

Entry = tuple[str, dict[str, Any]]
"""Where an entry is, and its fields."""


def read(path: str) -> list[Entry]:
    """The entries of a list of models.

    Raises:
        ValueError: no such file, or not well formed; names file and line.
    """
    place = public_url(path)
    name = place.rpartition("/")[2]
    readers: dict[str, Callable[[str, str], list[Entry]]] = {
        "csv": _csv, "yaml": _yaml, "yml": _yaml,
    }  # fmt: skip
    reader = readers.get(name.rpartition(".")[2].lower())
    if reader is None:
        raise ValueError(f"{name}: a list of models is a .csv or .yaml file")
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{place}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not readable as UTF-8: {error}") from None
    return reader(name, text)


def _csv(name: str, text: str) -> list[Entry]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[Entry] = []
    header: list[str] = []
    try:
        for row in reader:
            where = f"{name}:{reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
                for column in header:
                    if header.count(column) > 1:
                        raise ValueError(f"{where}: the column {column!r} is there twice")
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{where}: {len(row)} fields, the header has {len(header)}; put values with "
                    "commas in double quotes"
                )
            cells = zip(header, row, strict=True)
            found.append((where, {key: _value(where, key, cell) for key, cell in cells if cell}))
    except csv.Error as error:
        raise ValueError(f"{name}:{reader.line_num}: not readable as CSV: {error}") from None
    return found


def _value(where: str, key: str, cell: str) -> Any:
    """A cell; mappings and lists are written as in YAML."""
    cell = cell.strip()
    if not cell.startswith(("{", "[")):
        return cell
    try:
        return yaml.safe_load(cell)
    except (yaml.YAMLError, RecursionError):
        raise ValueError(f"{where}: {key}: not readable as YAML: {cell[:80]}") from None


def _yaml(name: str, text: str) -> list[Entry]:
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        whole = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or type(error).__name__
        raise ValueError(f"{name}{line}: not readable as YAML: {why}") from None
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError(f"{name}: expected a list of models")
    found: list[Entry] = []
    for item, value in zip(node.value, whole, strict=True):
        where = f"{name}:{item.start_mark.line + 1}"
        if isinstance(value, str):  # a Hub id alone
            value = {"model": value}
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a Hub id, or a mapping of fields")
        if isinstance(item, yaml.MappingNode) and len(item.value) != len(value):
            raise ValueError(f"{where}: a key is given twice")
        found.append((where, {str(key): one for key, one in value.items()}))
    return found


def given(models: object) -> list[Entry]:
    """The entries of a list that is in the specification itself, or in a manifest.

    Raises:
        ValueError: it is no list of mappings.
    """
    if not isinstance(models, list | tuple):
        raise ValueError("models: expected a list, or the name of a .csv or .yaml file")
    found: list[Entry] = []
    for number, value in enumerate(models):
        where = f"models.{number}"
        if isinstance(value, str):
            value = {"model": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a Hub id, or a mapping of fields")
        found.append((where, {str(key): one for key, one in value.items()}))
    return found


def check_names(entries: list[Entry], known: list[str]) -> None:
    """Refuse a column that is no field.

    Raises:
        ValueError: names the entry.
    """
    problems = [
        f"{where}: {key}: no such field of a model; {near(key, known)}"
        for where, entry in entries
        for key in entry
        if key not in known
    ]
    # A wrong column of a CSV is wrong in every line.
    refuse(list({line.partition(": ")[2]: line for line in reversed(problems)}.values())[::-1])


def check_distinct(entries: list[Entry], keys: list[Hashable]) -> None:
    """Refuse a model that is listed twice with the same settings.

    Args:
        keys: what tells each entry from the others.

    Raises:
        ValueError: names both entries.
    """
    first: dict[Hashable, str] = {}
    problems = []
    for (where, entry), key in zip(entries, keys, strict=True):
        if key in first:
            problems.append(
                f"{where}: {entry.get('model')}: the same model with the same settings as in "
                f"{first[key]}; remove one, or give one of them another field"
            )
        first.setdefault(key, where)
    refuse(problems)


def refuse(problems: list[str]) -> None:
    """Raise a ValueError of all problems, a line each, if there are some."""
    if problems:
        more = [f"… and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        raise ValueError("\n  ".join(["", *problems[:_SHOWN], *more]).strip())


def turns(counts: list[int]) -> list[int]:
    """Whose turn each image is, so that every first part has as many of each model as it can.

    Args:
        counts: images of each model.
    """
    laps = range(max(counts, default=0))
    return [model for lap in laps for model, count in enumerate(counts) if count > lap]
