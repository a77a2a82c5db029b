"""A run in, one self-contained HTML file out that shows what was made, dropped, and why.

Counts cover all rows; images are a sample, drawn by image id, which is a hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import pyarrow as pa
import yaml

from pipeline.pages.build import (
    flow_section,
    images_section,
    prompts_section,
    scores_section,
    watermarks_section,
)
from pipeline.pages.gallery import dropped_section, groups_section, sheets_section
from pipeline.pages.measured import measured
from pipeline.pages.page import render
from pipeline.pages.planned import planned
from pipeline.pages.section import Section, Table, counted
from pipeline.pages.thumbnails import thumbnails
from pipeline.pages.trained import training
from pipeline.progress import duration
from pipeline.release.counts import shared_versions
from pipeline.release.words import library_words
from pipeline.selection.selection import near_pairs_of
from pipeline.status import Status, status
from pipeline.store import RUN_WORKFLOW, Store
from pipeline.training.logs import logs

SIDE = 160  # pixels of a thumbnail
MOST_PICTURES = 600
"""Most thumbnails of a page: below 12 MB even for images that compress as badly as noise."""


# --- Sections ----------------------------------------------------------------------------------


def _environment(store: Store, stages: Sequence[Status], images: pa.Table | None) -> Section | None:
    """Timings, and what made the images."""
    tables = []
    if stages:
        tables.append(
            Table(
                "Timings",
                ("stage", "state", "shards", "rows", "MB", "time", "rows/s"),
                [
                    (
                        stage.table,
                        stage.state + (f", {stage.failed:,} failed" if stage.failed else ""),
                        f"{stage.done:,} of {stage.done + stage.missing:,}",
                        counted(stage.rows),
                        f"{stage.bytes / 1e6:,.1f}",
                        duration(stage.seconds),
                        f"{stage.rows / stage.seconds:,.1f}"
                        if stage.seconds and stage.rows
                        else "",
                    )
                    for stage in stages
                ],
                5,
            )
        )
    if images is not None:
        place = images.schema.get_field_index("versions")
        images = images.set_column(place, "versions", shared_versions(images["versions"]))
        made = images.group_by(
            ["source", "device", "batch_size", "versions"], use_threads=False
        ).aggregate([([], "count_all")])
        tables.append(
            Table(
                "What made the images",
                ("source", "device", "batch", "libraries", "images"),
                sorted(
                    (
                        row["source"],
                        row["device"],
                        "" if row["batch_size"] is None else str(row["batch_size"]),
                        library_words(row["versions"]),
                        counted(row["count_all"]),
                    )
                    for row in made.to_pylist()
                    if row["device"] is not None
                ),
                1,
            )
        )
    settings = store.read_json(RUN_WORKFLOW)
    code = (
        []
        if settings is None
        else [("Complete workflow", yaml.safe_dump(settings, allow_unicode=True))]
    )
    if not tables and not code:
        return None
    return Section("environment", "Timings and environment", tables=tables, code=code)


# --- The page ----------------------------------------------------------------------------------


def _sections(store: Store, stages: Sequence[Status]) -> Iterator[Section | None]:
    images = None
    if store.shards("plan"):
        images = planned(store)
        record = store.record("selection")
        rules = {} if record is None else record.settings
        yield flow_section(store, stages, images)
        yield prompts_section(store, images)
        yield images_section(images)
        yield sheets_section(images)
        yield scores_section(images, rules, near_pairs_of(store))
        yield dropped_section(images)
        yield groups_section(images)
        yield watermarks_section(store, images)
    yield from measured(store)
    if trained := logs(store):
        yield training(trained)
    yield _environment(store, stages, images)


def _summary(stages: Sequence[Status], codecs: int) -> str:
    """One line about the progress of the run."""
    rows = {stage.table: stage.rows for stage in stages}
    told = [
        f"{rows[table]:,} {words}"
        for table, words in (
            ("prompts", "prompts"),
            ("plan", "images planned"),
            ("images", "made"),
            ("release", "released"),
            ("characteristics", "images characterised"),
            ("alignments", "images scored for alignment"),
            ("measurements", "measurements of codecs"),
        )
        if table in rows
    ]
    if codecs:
        told.append(f"{codecs:,} codec{'s' * (codecs > 1)} in training or trained")
    undone = [stage.table for stage in stages if stage.state != "done"]
    return ", ".join(told) + (f". Not finished: {', '.join(undone)}." if undone else ".")


def charts(sections: Sequence[Section]) -> dict[str, str]:
    """The charts of a report on a white ground, by file name."""
    return {
        f"{section.name}-{number:02d}.svg": svg.replace(
            'role="img"', 'role="img" style="background:#fff"', 1
        )
        for section in sections
        for number, svg in enumerate(section.charts, 1)
    }


def report(store: Store) -> tuple[str, list[Section]]:
    """The page of a run, with whatever stages it has, and the sections of the page.

    Raises:
        AigiError: there is no run, or its tables do not belong together.
    """
    stages = status(store)
    sections = [section for section in _sections(store, stages) if section is not None]
    galleries = [gallery for section in sections for gallery in section.galleries]
    # The first of every gallery, then the second: none goes without where there are too many.
    ranked = zip_longest(*(gallery.pictures for gallery in galleries))
    wanted = dict.fromkeys(shown.place for row in ranked for shown in row if shown is not None)
    small = thumbnails(store, list(wanted)[:MOST_PICTURES], SIDE, 75)
    left = len(wanted) - MOST_PICTURES
    more = f" {left:,} more examples are not drawn, to keep the page small." if left > 0 else ""
    page = render(
        "report.html",
        run=store.url,
        summary=_summary(stages, len(logs(store))) + more,
        sections=sections,
        pictures=small,
    )
    return page, sections
