"""What a run stores, downloads and publishes in, tables and warnings about it out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from pipeline.build import Estimate
from pipeline.dry_run.disk import Stored, disk, peak, release_files
from pipeline.dry_run.downloads import Download, downloads
from pipeline.dry_run.limits import limits_hit
from pipeline.store import Store
from pipeline.workflow import Workflow

_SHOWN = 20  # repositories that the table lists


def shown_bytes(size: float | None) -> str:
    """A size as text, in the unit in which it has one to three digits before the point."""
    if size is None:
        return "unknown"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} B"


def storage(workflow: Workflow, lines: Sequence[Estimate]) -> Iterator[Table | str]:
    """Disk by stage and at its peak, downloads, files of the release, limits of the Hub.

    Args:
        lines: the estimate of the plan.

    Raises:
        AigiError: a record of the run is damaged, a section names a model that there is not, or
            the run cannot be reached.
    """
    stages = disk(workflow, lines)
    fetched, silent = downloads(workflow)
    yield _disk_table(stages, workflow)
    if fetched:
        yield _download_table(fetched)
    yield from _download_lines(fetched, silent)
    yield from _disk_lines(stages, fetched, workflow)
    if workflow.release is not None:
        yield from _release_lines(stages, release_files(lines, Store(workflow.run)))


def _least(known: bool) -> str:
    return "" if known else "at least "


def _disk_table(stages: Sequence[Stored], workflow: Workflow) -> Table:
    table = Table("stage", title=f"Disk of {workflow.run}")
    for heading in ("rows", "files", "bytes", "already there", "to write"):
        table.add_column(heading, justify="right")

    def number(value: int | None) -> str:
        return "" if value is None else f"{value:,}"

    def row(name: str, rows: str, files: str, size: float, there: float, known: bool) -> None:
        table.add_row(
            *(name, rows, files, _least(known) + shown_bytes(size)),
            *(shown_bytes(there), _least(known) + shown_bytes(max(0.0, size - there))),
        )

    for one in stages:
        rows, files = number(one.rows), number(one.files)
        row(one.stage, rows, files, one.bytes, one.there, one.counted)
    table.add_section()
    size, there = sum(one.bytes for one in stages), sum(one.there for one in stages)
    row("all", "", "", size, there, all(one.counted for one in stages))
    return table


def _download_table(found: Sequence[Download]) -> Table:
    table = Table("for", "from", title="Models, and datasets of captions")
    table.add_column("to download", justify="right")
    table.add_column("")
    # What is not known first, then by size.
    ordered = sorted(found, key=lambda one: (one.bytes is not None, -(one.bytes or 0)))
    for one in ordered[:_SHOWN]:
        table.add_row(one.what, one.place, shown_bytes(one.bytes), one.why)
    if rest := ordered[_SHOWN:]:
        size = (
            None if any(one.bytes is None for one in rest) else sum(one.bytes or 0 for one in rest)
        )
        table.add_row(f"{len(rest):,} others", "", shown_bytes(size), "")
    return table


def _download_lines(found: Sequence[Download], silent: str) -> Iterator[str]:
    if not found:
        yield "to download: nothing; all models are in folders of this machine"
        return
    unknown = sum(one.bytes is None for one in found)
    if unknown == len(found):
        yield "to download: unknown"
    else:
        size = shown_bytes(sum(one.bytes or 0 for one in found))
        more = f"; {unknown} of {len(found)} are unknown" * bool(unknown)
        yield f"to download: {_least(not unknown)}{size}{more}"
    if silent:
        yield f"the Hub does not answer: {silent}"


def _disk_lines(
    stages: Sequence[Stored], fetched: Sequence[Download], workflow: Workflow
) -> Iterator[str]:
    """Peak, downloads, and what does not fit on the disks of this machine."""
    known = all(one.counted for one in stages)
    most, there = peak(stages), sum(one.there for one in stages)
    yield (
        f"disk at its peak: {_least(known)}{shown_bytes(most)}, of which {shown_bytes(there)} are "
        "there already (top-up rounds, and what reads the release, come on top)"
    )
    loaded = sum(one.bytes or 0 for one in fetched if one.stored)
    needs = {
        "the run": (workflow.run, most - there),
        "the cache of the Hub": (_cache(), float(loaded)),
    }
    if workflow.duplicates is not None and workflow.duplicates.min_similarity is not None:
        vectors = next((one.bytes for one in stages if one.stage == "embeddings"), 0.0)
        needs["temporary files"] = tempfile.gettempdir(), vectors / 2
    yield from _lacking_space(needs)


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _lacking_space(needs: dict[str, tuple[str, float]]) -> Iterator[str]:
    """Free space of each disk, and a warning where it is too little.

    Args:
        needs: folder and bytes by what needs them.
    """
    disks: dict[int, tuple[Path, list[tuple[str, float]]]] = {}
    for what, (place, size) in needs.items():
        if "://" not in place and size > 0:
            folder = _present(Path(place))
            disks.setdefault(os.stat(folder).st_dev, (folder, []))[1].append((what, size))
    for folder, wanted in disks.values():
        free, size = shutil.disk_usage(folder).free, sum(each for _, each in wanted)
        parts = ", ".join(f"{what} {shown_bytes(each)}" for what, each in wanted)
        yield f"free on the disk of {folder}: {shown_bytes(free)}; needed: {parts}"
        if size > free:
            yield (
                f"WARNING: this does not fit: {folder} has {shown_bytes(free)} free, and "
                f"{shown_bytes(size)} are needed. Free {shown_bytes(size - free)}, use another "
                "disk (--set run=…, HF_HOME, TMPDIR), or lower plan.limit."
            )


def _present(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _release_lines(stages: Sequence[Stored], folders: dict[str, int]) -> Iterator[str]:
    release, documents = (
        next(one for one in stages if one.stage == name) for name in ("release", "documents")
    )
    files, beside = sum(folders.values()), documents.files or 0
    each = ", ".join(f"{name} {count:,}" for name, count in folders.items())
    known = _least(release.counted)
    yield f"files of the release: {known}{files + beside:,} ({each}; {beside} documents)"
    size = release.bytes + documents.bytes
    # Shards are alike; a tenth more for those with images that compress badly.
    largest = max(1.1 * release.bytes / files if files else 0.0, documents.bytes)
    for line in limits_hit(folders, beside, size, largest):
        yield f"WARNING: {line}"
