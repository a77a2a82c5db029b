"""Release tables, specification and selection in; README.md, croissant.json and sheet.webp out.

The dataset card states nothing that was not counted or read: rows of the release, reasons of the
selection, rejects, settings of the workflow, the specification.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline import __version__
from pipeline.manifest import CARD, MANIFEST, DocumentRecord, FileRecord
from pipeline.markdown import Safe, code, escape, fence, link, number, plain, table
from pipeline.plan.quotas import chosen, quotas
from pipeline.plan.specification import (
    Dataset,
    DrawnSpec,
    HttpSpec,
    ImportSpec,
    some_options,
)
from pipeline.progress import Progress
from pipeline.prompts.captions import BlipCaptions
from pipeline.prompts.prompts import name_of, place_of
from pipeline.release.again import commands
from pipeline.release.counts import Counts, Origin
from pipeline.release.croissant import CROISSANT, croissant
from pipeline.release.front_matter import NOT_STATED, TAGS, configs_of, front_matter
from pipeline.release.recipe import Recipe
from pipeline.release.sheet import SHEET, Shown, draw
from pipeline.release.words import (
    MARK_WORDS,
    asked_words,
    base_words,
    embedder_words,
    filter_words,
    left_out_words,
    library_words,
    licence_of,
    reading_words,
    reads_clip,
    rule_words,
    setting_heads,
)
from pipeline.selection.rules import REASONS
from pipeline.settings import SPLITS
from pipeline.store import Store
from pipeline.tables import IMAGE, release_fields

VERSION = 3
SHOWN_SIZES = 12
"""Sizes of one config and split that stand in the card; the others are one line together."""
SHOWN_TEXT = 200
"""Characters of a prompt under the contact sheet."""

# --- Sections ----------------------------------------------------------------------------------


def _ordered(counter: Mapping[tuple[Any, ...], int]) -> list[tuple[tuple[Any, ...], int]]:
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


def _use(recipe: Recipe, dataset: Dataset, configs: Mapping[str, Mapping[str, int]]) -> list[str]:
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
        "To check every file against the manifest, and to make the dataset again from it:",
        "",
        *commands(recipe, dataset),
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
        for (source, model, revision), images in _ordered(counts.by("source", "model", "revision")):
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
        for (source, *values), _ in _ordered(settings):
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


def _origins(recipe: Recipe, dataset: Dataset, counts: Counts) -> list[list[Safe]]:
    """Rows on where prompts come from."""
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
    for name in dataset.sources:
        if name in counts.prompts and isinstance(dataset.sources[name], ImportSpec):
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


def _crossed(found: Mapping[tuple[str, str], int], corner: str) -> list[str]:
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


def _prompts(recipe: Recipe, dataset: Dataset, counts: Counts) -> list[str]:
    heads = ("source", "kind", "file or dataset", "licence", "prompts", "in the release", "images")
    lines = [
        "## Prompts",
        "",
        *table([Safe(head) for head in heads], _origins(recipe, dataset, counts), right=3),
    ]
    if recipe.prompts is not None and counts.copied:
        lines += ["", "The plan is that of an earlier release, so prompts were not counted again."]
    filters = [] if recipe.prompts is None else filter_words(recipe.prompts)
    if filters:
        rows = [[escape(what), escape(value)] for what, value in filters]
        lines += [
            "",
            "What a caption had to be to become a prompt:",
            "",
            *table([Safe("filter"), Safe("setting")], rows),
        ]
    if counts.refused:
        lines += ["", "Captions that were refused, by source and reason:", ""]
        lines += _crossed(counts.refused, "reason")
    if counts.unplanned:
        lines += ["", "Pictures of imports that could not be planned:", ""]
        lines += _crossed(counts.unplanned, "reason")
    return lines


def _resolutions(counts: Counts, configs: Iterable[str]) -> list[str]:
    rows = []
    sizes = _ordered(counts.by("source", "split", "width", "height"))
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
    found = _ordered(counts.by("source", "split", "watermark"))
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


def _selection(recipe: Recipe, counts: Counts, configs: Iterable[str]) -> list[str]:
    # A source may have lost everything.
    sources = [*configs, *sorted(set(counts.planned) - set(configs))]
    rules = rule_words(recipe.rules, recipe.scored)
    dropped = counts.dropped
    rows = [
        [code(why), escape(rules[why]), *(number(dropped[name, why]) for name in sources)]
        for why in REASONS
    ]
    kept = [counts.planned[name] - sum(dropped[name, why] for why in REASONS) for name in sources]
    rows.append([Safe("kept"), Safe(""), *map(number, kept)])
    lines = [
        "## Selection",
        "",
        f"{sum(counts.planned.values()):,} images were planned. Each image that was dropped has "
        "one reason, the first that applies:",
        "",
        *table([Safe("reason"), Safe("rule"), *map(code, sources)], rows, right=len(sources)),
    ]
    if counts.failed:
        lines += ["", "Images that failed:", "", *_crossed(counts.failed, "reason")]
    if recipe.embeddings is not None:
        lines += ["", f"Vectors and cosines by {escape(embedder_words(recipe.embeddings))}."]
    return lines


def _limits(
    recipe: Recipe, dataset: Dataset, counts: Counts, configs: Mapping[str, Mapping[str, int]]
) -> list[str]:
    plan = recipe.planned("release")
    rules = rule_words(recipe.rules, recipe.scored)
    lines = [
        "Every picture is synthetic. It has the errors and the prejudices of its model, and may "
        "show people, brands and places that look like real ones.",
        "A picture need not show what its prompt says"
        + ("." if "below" in rules["clip_score"] else ": nothing was dropped for that."),
    ]
    if rules["nsfw"].startswith("not"):
        lines.append("No safety checker decided on any picture; some may offend.")
    else:
        lines.append("The safety checker overlooks some pictures that may offend.")
    if rules["duplicate"].startswith("not"):
        lines.append("Duplicates were not looked for.")
    generated = [name for name in configs if isinstance(dataset.sources[name], DrawnSpec)]
    asked = [name for name in configs if isinstance(dataset.sources[name], HttpSpec)]
    lines += [f"{code(name)}: what drew is known by its name alone." for name in asked]
    clip = {name for name in generated if reads_clip(dataset.sources[name])}
    prompts = sum(found.used for found in counts.origins.values())
    long = sum(found.truncated for found in counts.origins.values())
    if prompts:
        lines += reading_words(prompts, long, counts.readings, clip - {*counts.readings})
    if generated:
        lines.append(
            "Made again on other hardware, with other versions or in other batches, some pixels "
            "differ."
        )
    named = [
        f"{code(source)} “{escape(revision)}”"
        for (source, revision), _ in _ordered(counts.by("source", "revision"))
        if source in generated and not re.fullmatch(r"[0-9a-f]{40}", str(revision))
    ]
    if named:
        lines.append(
            f"Revisions that are names, not commits: {', '.join(named)}. Where the specification "
            f"in `{MANIFEST}` has the sha256 of weights, that says which."
        )
    converted = counts.by("source", "converted")
    for name in configs:
        if name not in generated and name not in asked:
            many = converted[name, True]
            lines.append(
                f"{code(name)}: imported. Seeds and settings are not known, nor what marks the "
                "model itself puts on"
                + (f"; {many:,} pictures were converted, see `note`." if many else ".")
            )
    if counts.left_out:
        lines.append(
            f"Metadata of {counts.left_out['']:,} files was left out, see `note`: "
            f"{escape(left_out_words(counts.left_out))}."
        )
    for quota in quotas(dataset, plan):
        there = configs.get(quota.source, {}).get(quota.split, 0)
        if quota.spec.count is not None and there < quota.images:
            lines.append(
                f"{code(quota.source)} {code(quota.split)}: {there:,} of {quota.images:,} wanted."
            )
    if plan.limit is not None:
        lines.append(
            f"A part of the dataset: at most {plan.limit:,} generations of each source "
            "and split (`plan.limit`)."
        )
    if counts.unasked:
        lines.append(f"Not asked for: {', '.join(map(code, counts.unasked))}.")
    return ["## Known limits", "", *(f"- {line}" for line in lines)]


def _made(dataset: Dataset, counts: Counts, verb: str = "With") -> list[str]:
    rows = [
        [code(source), _text(device or NOT_STATED), escape(library_words(versions)), number(images)]
        for (source, device, versions), images in _ordered(
            counts.by("source", "device", "versions")
        )
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
    dataset: Dataset, counts: Counts, shown: list[Shown], configs: Mapping[str, Mapping[str, int]]
) -> dict[str, list[str]]:
    """The sections of a card that say nothing but what rows and specification give, by name."""
    options = any(kind.options is not None for kind in counts.kinds)
    return {
        "configs": _counted(configs, dataset),
        "sheet": _sheet(dataset.title, shown),
        "fields": _fields(options, counts),
        "sources": _sources(dataset, counts, configs),
        "resolutions": _resolutions(counts, configs),
        "watermarks": _watermarks(counts, configs),
        "made": _made(dataset, counts, "Put together with"),
        "terms": _terms(dataset),
    }


def readme(
    recipe: Recipe,
    dataset: Dataset,
    files: list[FileRecord],
    counts: Counts,
    shown: list[Shown],
) -> str:
    """The dataset card: YAML for `datasets` and the Hub, then Markdown for people."""
    configs = configs_of(dataset, files)
    size = sum(file["bytes"] for file in files)
    unit, name = (1e9, "GB") if size >= 1e8 else (1e6, "MB")
    paragraphs = re.split(r"\n\s*\n", dataset.description)
    about = [
        *(escape(paragraph) for paragraph in paragraphs if plain(paragraph)),
        f"{sum(sum(splits.values()) for splits in configs.values()):,} images of "
        f"{counts.prompts['']:,} prompts, {size / unit:,.1f} {name} in {len(files):,} parquet "
        "files.",
    ]
    sections = [
        [f"# {escape(dataset.title)}"],
        *([paragraph] for paragraph in about),
        _counted(configs, dataset),
        _sheet(dataset.title, shown),
        _use(recipe, dataset, configs),
        _fields(some_options(dataset, chosen(dataset, recipe.planned("release"))), counts),
        _sources(dataset, counts, configs),
        _prompts(recipe, dataset, counts),
        _resolutions(counts, configs),
        _watermarks(counts, configs),
        _selection(recipe, counts, configs),
        _limits(recipe, dataset, counts, configs),
        _made(dataset, counts),
        _terms(dataset),
    ]
    body = "\n\n".join("\n".join(section) for section in sections)
    return f"---\n{front_matter(dataset, files)}\n---\n\n{body}\n"


def settings(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """What the documents say and no table depends on; with other words they are made anew."""
    words = {"title", "licence", "licence_url"}
    captions = recipe.prompts.sources if recipe.prompts is not None else ()
    return {
        "dataset": dataset.model_dump(
            mode="json", include={*words, "language", "description", "citation"}
        ),
        "sources": {
            name: spec.model_dump(mode="json", include=words)
            for name, spec in dataset.sources.items()
        },
        "captions": [source.licence for source in captions],
    }


def write(
    recipe: Recipe,
    version: str,
    dataset: Dataset,
    store: Store,
    files: list[FileRecord],
    counts: Counts,
    progress: Progress,
) -> list[DocumentRecord]:
    """Write the documents of a release beside its files, and say what they are.

    The same run gives the same bytes: nothing in them says when or where it ran.

    Args:
        version: of the release, `1.0.0`.
        files: all its parquet files, in the order of the specification.
        counts: of the release.

    Raises:
        AigiError: a shard or an image cannot be read.
    """
    options = some_options(dataset, chosen(dataset, recipe.planned("release")))
    if counts.left_out:
        progress.say(
            f"release: metadata of {counts.left_out['']:,} images was left out: "
            f"{left_out_words(counts.left_out)} (sources.NAME.keep_metadata keeps it)"
        )
    picture, shown = draw(
        store, {config: counts.samples[config] for config in configs_of(dataset, files)}
    )
    text = readme(recipe, dataset, files, counts, shown)
    metadata = croissant(dataset, version, files, list(TAGS), counts.formats, options)
    documents = {
        CARD: text.encode(),
        CROISSANT: json.dumps(metadata, indent=1, ensure_ascii=False).encode() + b"\n",
        SHEET: picture,
    }
    found: list[DocumentRecord] = []
    for path, data in documents.items():
        store.write_bytes(data, "release", path)
        digest = hashlib.sha256(data).hexdigest()
        found.append({"path": path, "bytes": len(data), "sha256": digest})
    return found
