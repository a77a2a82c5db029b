"""Rows of a release and its specification in, the sections of a dataset card that they decide, out.

A release of one run and one that was put together have these in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline import __version__
from pipeline.manifest import MANIFEST
from pipeline.markdown import Safe, code, escape, fence, link, number, plain, table
from pipeline.plan.specification import Dataset, DrawnSpec, ImportSpec, SourceSpec
from pipeline.prompts.captions import BlipCaptions, place_of
from pipeline.prompts.texts import name_of
from pipeline.release.counts import Counts, Origin
from pipeline.release.croissant import CROISSANT
from pipeline.release.front_matter import NOT_STATED
from pipeline.release.recipe import Recipe
from pipeline.release.sheet import SHEET, Shown
from pipeline.release.words import (
    MARK_WORDS,
    asked_words,
    base_words,
    library_words,
    licence_of,
    setting_heads,
)
from pipeline.settings import SPLITS
from pipeline.tables import IMAGE, release_fields

SHOWN_SIZES = 12
"""Sizes of one config and split that stand in the card; the others are one line together."""
SHOWN_TEXT = 200
"""Characters of a prompt under the contact sheet."""


def ordered(counter: Mapping[tuple[Any, ...], int]) -> list[tuple[tuple[Any, ...], int]]:
    """By key; splits in their own order, and null before everything."""
    rank = {split: f"{number}" for number, split in enumerate(SPLITS)}

    def key(item: tuple[tuple[Any, ...], int]) -> list[tuple[bool, bool, Any]]:
        return [
            (part is not None, isinstance(part, str), rank.get(part, part) if part else "")
            for part in item[0]
        ]

    return sorted(counter.items(), key=key)


def _text(value: object) -> Safe:
    """A cell with a value of a row; nothing, where there is none."""
    if isinstance(value, float):
        return escape(f"{value:g}")
    return escape("" if value is None else value)


def _counted(configs: Mapping[str, Mapping[str, int]], dataset: Dataset) -> list[str]:
    rows = [
        [
            code(config),
            escape(dataset.sources[config].title),
            *(number(splits.get(split, 0)) for split in SPLITS),
            number(sum(splits.values())),
        ]
        for config, splits in configs.items()
    ]
    sums = [sum(splits.get(split, 0) for splits in configs.values()) for split in SPLITS]
    rows.append([Safe("all"), Safe(""), *map(number, sums), number(sum(sums))])
    heads = [Safe("config"), Safe("source"), *(Safe(split) for split in SPLITS), Safe("all")]
    return [
        "## Configs and splits",
        "",
        "One config for each source of images. A prompt is in one split only, whatever the source.",
        "",
        *table(heads, rows, right=4),
    ]


def _cut(text: str) -> str:
    text = plain(text)
    return text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT].rstrip() + "…"


def _sheet(title: str, shown: list[Shown]) -> list[str]:
    rows = [[code(one.config), code(one.split), escape(_cut(one.text))] for one in shown]
    return [
        "## Pictures",
        "",
        f"![Pictures of every config of {escape(title)}]({SHEET})",
        "",
        "Drawn by their hash, not picked. Their prompts, from left to right and top to bottom:",
        "",
        *table([Safe("config"), Safe("split"), Safe("prompt")], rows),
    ]


def use(commands: list[str], again: str, configs: Mapping[str, Mapping[str, int]]) -> list[str]:
    """How to load, check and make a release again.

    Args:
        commands: that check it and make it again.
        again: what these make again.
    """
    config, splits = next(iter(configs.items()), ("CONFIG", {"train": 0}))
    split = list(splits)[-1]
    return [
        "## Use",
        "",
        *fence(
            f"""from datasets import load_dataset

NAME = "ORG/NAME"  # the repository on the Hub, or the folder that holds this file
images = load_dataset(NAME, "{config}", split="{split}")
print(images[0]["text"], images[0]["image"].size)

# without a download first
for row in load_dataset(NAME, "{config}", split="{split}", streaming=True):
    print(row["image_id"], row["text"])
    break""",
            "python",
        ),
        "",
        f"To check every file against the manifest, and to make {again} again from it:",
        "",
        *commands,
        "",
        f"`{CROISSANT}` describes the same files for readers of Croissant metadata.",
    ]


def _fields(options: bool, counts: Counts) -> list[str]:
    rows = [
        [
            code(field.name),
            Safe("image") if field.type == IMAGE else escape(field.type),
            Safe(meaning),
        ]
        for field, meaning in release_fields(counts.formats, options)
    ]
    return [
        "## Fields",
        "",
        *table([Safe("name"), Safe("type"), Safe("meaning")], rows),
    ]


def _sources(dataset: Dataset, counts: Counts, configs: Iterable[str]) -> list[str]:
    made, how = [], []
    heads = setting_heads(any(kind.options is not None for kind in counts.kinds))
    for config in configs:
        spec = dataset.sources[config]
        for (source, model, revision), images in ordered(counts.by("source", "model", "revision")):
            if source == config:
                licence = licence_of(spec, model, revision)
                made.append(
                    [
                        code(config),
                        _text(model),
                        _text(revision or NOT_STATED),
                        licence,
                        number(images),
                    ]
                )
        settings = counts.by("source", *heads)
        for (source, *values), _ in ordered(settings):
            if source == config and isinstance(spec, DrawnSpec):
                how.append([code(config), *map(_text, values)])
    lines = [
        "## Sources",
        "",
        "Model and revision as they stand in the rows. Pictures come under the licence of their "
        "source.",
        "",
        *table(
            [
                Safe("config"), Safe("model"), Safe("revision"), Safe("licence"), Safe("images"),
            ],
            made,
            right=1,
        ),
    ]  # fmt: skip
    if how:
        lines += ["", *table([Safe(head) for head in ("config", *heads.values())], how)]
    lines += [text for words in asked_words(dataset, configs) for text in ("", words)]
    imported = [name for name in configs if isinstance(dataset.sources[name], ImportSpec)]
    if imported:
        names = ", ".join(code(name) for name in imported)
        lines += ["", f"Imported, so that only the pictures and their prompts are known: {names}."]
    return lines


def origins(recipe: Recipe, sources: Mapping[str, SourceSpec], counts: Counts) -> list[list[Safe]]:
    """Rows on where the prompts of a run come from.

    Args:
        sources: those that it made.
        counts: as it counted them.
    """
    settings = recipe.prompts.sources if recipe.prompts is not None else ()
    kinds: dict[Origin, dict[str, None]] = {}
    licences: dict[Origin, dict[str, None]] = {}
    for source in settings:
        origin = Origin(name_of(source), place_of(source))
        kind = (
            f"{source.kind} ({source.model})" if isinstance(source, BlipCaptions) else source.kind
        )
        kinds.setdefault(origin, {})[kind] = None
        licences.setdefault(origin, {})[source.licence or NOT_STATED] = None
    rows = [
        [
            escape(origin.source),
            escape(", ".join(kinds.get(origin, {NOT_STATED: None}))),
            escape(origin.place),
            escape(", ".join(licences.get(origin, {NOT_STATED: None}))),
            number(found.kept),
            number(found.used),
            number(found.images),
        ]
        for origin, found in sorted(counts.origins.items())
    ]
    rows += [
        # A plan that was copied has no prompts table; what its captions are is known all the same.
        [
            escape(origin.source),
            escape(", ".join(kinds[origin])),
            escape(origin.place),
            escape(", ".join(licences[origin])),
            *[Safe("")] * 3,
        ]
        for origin in sorted(kinds)
        if counts.copied
    ]
    images = counts.by("source")
    for name in sources:
        if name in counts.prompts and isinstance(sources[name], ImportSpec):
            local = recipe.sources.get(name)
            place = getattr(local, "captions", None) or getattr(local, "path", None)
            rows.append(
                [
                    code(name),
                    Safe("with the pictures"),
                    escape(NOT_STATED if place is None else base_words(place)),
                    Safe(NOT_STATED),
                    Safe(""),
                    number(counts.prompts[name]),
                    number(images[name,]),
                ]
            )
    return rows


def crossed(found: Mapping[tuple[str, str], int], corner: str) -> list[str]:
    """A table of counts by (column, row), most frequent row first."""
    columns = sorted({column for column, _ in found})
    sums: Counter[str] = Counter()
    for (_, row), many in found.items():
        sums[row] += many
    return table(
        [Safe(corner), *map(escape, columns)],
        [
            [escape(row), *(number(found.get((column, row), 0)) for column in columns)]
            for row, _ in sorted(sums.items(), key=lambda item: (-item[1], item[0]))
        ],
        right=len(columns),
    )


def _resolutions(counts: Counts, configs: Iterable[str]) -> list[str]:
    rows = []
    sizes = ordered(counts.by("source", "split", "width", "height"))
    for config in configs:
        for split in SPLITS:
            mine = [(key[2:], images) for key, images in sizes if key[:2] == (config, split)]
            mine.sort(key=lambda item: -item[1])
            rows += [
                [code(config), code(split), Safe(f"{width} x {height}"), number(images)]
                for (width, height), images in mine[:SHOWN_SIZES]
            ]
            others = mine[SHOWN_SIZES:]
            if others:
                rest = number(sum(images for _, images in others))
                rows.append([code(config), code(split), Safe(f"{len(others):,} others"), rest])
    heads = [Safe("config"), Safe("split"), Safe("width x height"), Safe("images")]
    return ["## Resolutions", "", *table(heads, rows, right=1)]


def _watermarks(counts: Counts, configs: Iterable[str]) -> list[str]:
    found = ordered(counts.by("source", "split", "watermark"))
    rows = [
        [code(config), code(split), escape(mark), number(images)]
        for config in configs
        for (source, split, mark), images in found
        if source == config and mark != "none"
    ]
    lines = ["## Watermarks", ""]
    if not rows:
        return [*lines, "No watermark was put on any picture: `watermark` is `none` in every row."]
    kinds = [
        kind for kind in MARK_WORDS if any(mark.split(":")[0] == kind for (*_, mark), _ in found)
    ]
    return [
        *lines,
        "`watermark` says what was put on a picture; rows that are not in this table have `none`. "
        "Rows with the same `pair_id` show the same picture, with and without.",
        "",
        *table([Safe("config"), Safe("split"), Safe("mark"), Safe("images")], rows, right=1),
        "",
        "What the marks are, and what they survive:",
        "",
        *(f"- `{kind}`: {MARK_WORDS[kind]}." for kind in kinds if kind != "none"),
        "",
        "To read them, with the chance of the same result without a mark:",
        "",
        *fence("aigi watermark detect FOLDER", "sh"),
    ]


def _made(dataset: Dataset, counts: Counts, verb: str) -> list[str]:
    rows = [
        [code(source), _text(device or NOT_STATED), escape(library_words(versions)), number(images)]
        for (source, device, versions), images in ordered(counts.by("source", "device", "versions"))
    ]
    rows.sort(key=lambda row: [f"`{name}`" for name in dataset.sources].index(row[0]))
    return [
        "## How it was made",
        "",
        f"{verb} aigi {escape(__version__)}. `{MANIFEST}` has the specification, all settings, the "
        "versions of all libraries, and rows, bytes and sha256 of every file.",
        "",
        *table([Safe("config"), Safe("device"), Safe("libraries"), Safe("images")], rows, right=1),
    ]


def _terms(dataset: Dataset) -> list[str]:
    lines = [
        "## Licence",
        "",
        f"The dataset: {link(dataset.licence, dataset.licence_url)}. Pictures come under the "
        "licences of their sources, prompts under those of their captions, see above.",
        "",
        "## Citation",
        "",
    ]
    if not plain(dataset.citation):
        return [*lines, "None is stated."]
    return [*lines, *fence(dataset.citation, "bibtex")]


def of_rows(
    dataset: Dataset,
    counts: Counts,
    shown: list[Shown],
    configs: Mapping[str, Mapping[str, int]],
    options: bool,
    verb: str = "With",
) -> dict[str, list[str]]:
    """The sections of a card that say nothing but what rows and specification give, by name.

    Args:
        options: whether rows have a column of options.
        verb: how aigi made it.
    """
    return {
        "configs": _counted(configs, dataset),
        "sheet": _sheet(dataset.title, shown),
        "fields": _fields(options, counts),
        "sources": _sources(dataset, counts, configs),
        "resolutions": _resolutions(counts, configs),
        "watermarks": _watermarks(counts, configs),
        "made": _made(dataset, counts, verb),
        "terms": _terms(dataset),
    }
