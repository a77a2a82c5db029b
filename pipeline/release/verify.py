"""A release and its manifest in, a list of every difference out (`aigi verify`)."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.manifest import CARD, PLAN_FILE, FileRecord, columns_of
from pipeline.release.croissant import CROISSANT
from pipeline.release.sheet import SHEET
from pipeline.store import Store


def _compare_file(
    store: Store, schema: list[str], record: FileRecord, size: int | None, hashes: bool
) -> list[str]:
    path = record["path"]
    # Only files that were found below the folder are opened: a name cannot lead out of it.
    if size is None:
        return [f"{path}: missing"]
    found = []
    if size != record["bytes"]:
        found.append(f"{path}: {size:,} bytes, expected {record['bytes']:,}")
    if hashes and (digest := store.sha256(path)) != record["sha256"]:
        found.append(f"{path}: sha256 {digest}, expected {record['sha256']}")
    metadata = store.metadata("", path.removesuffix(".parquet"))
    own = store.schema("", path.removesuffix(".parquet"))
    if metadata is None or own is None:
        return [*found, f"{path}: not readable as parquet"]
    if metadata.num_rows != record["rows"]:
        found.append(f"{path}: {metadata.num_rows:,} rows, expected {record['rows']:,}")
    columns = own.to_string(show_schema_metadata=False).splitlines()
    for what, lines, others in (
        ("missing", schema, columns),
        ("not expected", columns, schema),
    ):
        more = Counter(lines) - Counter(others)
        found += [
            f"{path}: column {line}: {'more than once' if line in others else what}"
            for line in more
        ]
    if not found and columns != schema:
        found.append(f"{path}: its columns are in another order than the manifest lists them")
    return found


def compare(
    store: Store, manifest: dict[str, Any], others: bool = False, hashes: bool = True
) -> list[str]:
    """One line for every file of a release that is missing, extra or differs from its manifest.

    For files on the Hub, the sha256 is the one that the Hub reports, if it reports one.

    Args:
        others: there may be other parquet files, as where the manifest lists some of them alone.
        hashes: False: parquet files are compared by size, rows and columns alone.
    """
    sizes = {f"{name}.parquet": size for name, size in store.shards("").items()}
    with ThreadPoolExecutor(8) as pool:  # round trips on the Hub, hashes on a disk
        found = [
            line
            for lines in pool.map(
                lambda r: _compare_file(
                    store, columns_of(manifest, r["config"]), r, sizes.get(r["path"]), hashes
                ),
                manifest["files"],
            )
            for line in lines
        ]
    listed = {record["path"] for record in manifest["files"]}
    if not others:
        found += [f"{path}: not in the manifest" for path in sizes if path not in listed]
    for record in manifest["documents"]:
        path, size = record["path"], store.size(record["path"])
        if size is None:
            found.append(f"{path}: missing")
        elif size != record["bytes"]:
            found.append(f"{path}: {size:,} bytes, expected {record['bytes']:,}")
        elif (digest := store.sha256(path)) != record["sha256"]:
            found.append(f"{path}: sha256 {digest}, expected {record['sha256']}")
    documents = {record["path"] for record in manifest["documents"]}
    found += [
        f"{path}: not in the manifest"
        for path in (CARD, CROISSANT, SHEET, PLAN_FILE)
        if path not in documents and store.size(path) is not None
    ]
    return found
