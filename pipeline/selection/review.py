"""A table of people's decisions in, one decision an image out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import AigiError
from pipeline.outside import opened

DECISIONS = ("keep", "drop", "unsure")


def read_review(path: str) -> dict[str, str]:
    """Decisions of people (`image_id,decision`) from a CSV or parquet file, local or fsspec URL.

    Raises:
        AigiError: no such file, a missing column, an unknown decision, or one image twice with
            different decisions; names file and row.
    """
    try:
        with opened(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise AigiError(f"selection.review: {path}: no such file") from None
    rows: Iterable[Mapping[str, Any]]
    packed = path.endswith(".parquet")
    try:
        if packed:
            rows = pq.read_table(io.BytesIO(data), page_checksum_verification=True).to_pylist()
        else:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    except (pa.ArrowException, OSError, csv.Error, UnicodeDecodeError) as error:
        raise AigiError(
            f"selection.review: {path}: not readable as {'parquet' if packed else 'CSV'}: {error}"
        ) from error
    found: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        image, decision = row.get("image_id"), row.get("decision")
        if not image or decision not in DECISIONS:
            raise AigiError(
                f"selection.review: {path}: row {line}: expected image_id and decision "
                f"({', '.join(DECISIONS)}), found {image!r} and {decision!r}"
            )
        if found.setdefault(image, decision) != decision:
            raise AigiError(
                f"selection.review: {path}: row {line}: {image} is {decision} here and "
                f"{found[image]} further up; remove one of the two rows"
            )
    return found
