"""A table of people's decisions in, one decision an image or a prompt out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import AigiError
from pipeline.outside import opened

DECISIONS = ("keep", "drop", "unsure")
Subject = Literal["image_id", "prompt_id"]
"""The column that says what a decision is about."""
SETTINGS: dict[Subject, str] = {"image_id": "selection.review", "prompt_id": "prompts.review"}
"""Where a workflow takes decisions about it."""


def read_any(path: str) -> tuple[Subject, dict[str, str]]:
    """What the decisions of a file are about, by its columns, and these decisions.

    Raises:
        AigiError: as `read_decisions`; or it has neither column.
    """
    columns, rows = _table(path, "")
    for subject in SETTINGS:
        if subject in columns:
            return subject, _checked(rows, path, subject)
    raise AigiError(
        f"{path}: expected a column {' or '.join(SETTINGS)}, found {', '.join(columns) or 'none'}"
    )


def read_decisions(path: str, subject: Subject) -> dict[str, str]:
    """Decisions of people (`image_id,decision`) from a CSV or parquet file, local or fsspec URL.

    Raises:
        AigiError: no such file, a missing column, an unknown decision, or one image twice with
            different decisions; names setting, file and row.
    """
    _, rows = _table(path, f"{SETTINGS[subject]}: ")
    return _checked(rows, path, subject)


def _checked(rows: Iterable[Mapping[str, Any]], path: str, subject: Subject) -> dict[str, str]:
    where = f"{SETTINGS[subject]}: "
    found: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        name, decision = row.get(subject), row.get("decision")
        if not name or decision not in DECISIONS:
            raise AigiError(
                f"{where}{path}: row {line}: expected {subject} and decision "
                f"({', '.join(DECISIONS)}), found {name!r} and {decision!r}"
            )
        if found.setdefault(name, decision) != decision:
            raise AigiError(
                f"{where}{path}: row {line}: {name} is {decision} here and "
                f"{found[name]} further up; remove one of the two rows"
            )
    return found


def _table(path: str, where: str) -> tuple[list[str], Iterable[Mapping[str, Any]]]:
    """The columns and rows of a file."""
    try:
        with opened(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise AigiError(f"{where}{path}: no such file") from None
    packed = path.endswith(".parquet")
    try:
        if packed:
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            return table.column_names, table.to_pylist()
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
        rows = list(reader)
        return list(reader.fieldnames or ()), rows
    except (pa.ArrowException, OSError, csv.Error, UnicodeDecodeError) as error:
        raise AigiError(
            f"{where}{path}: not readable as {'parquet' if packed else 'CSV'}: {error}"
        ) from error
