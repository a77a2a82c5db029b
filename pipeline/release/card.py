"""Release tables, specification and selection in; README.md, croissant.json and sheet.webp out.

The dataset card states nothing that was not counted or read: rows of the release, reasons of the
selection, rejects, settings of the workflow, the specification.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.manifest import CARD, MANIFEST, DocumentRecord, FileRecord
from pipeline.markdown import Safe, code, escape, number, plain, table
from pipeline.plan.quotas import chosen, quotas
from pipeline.plan.specification import (
    Dataset,
    DrawnSpec,
    HttpSpec,
    some_options,
)
from pipeline.progress import Progress
from pipeline.release.again import commands
from pipeline.release.card_rows import crossed, of_rows, ordered, origins, use
from pipeline.release.counts import Counts
from pipeline.release.croissant import CROISSANT, croissant
from pipeline.release.front_matter import TAGS, configs_of, front_matter
from pipeline.release.recipe import Recipe
from pipeline.release.sheet import SHEET, Shown, draw
from pipeline.release.words import (
    embedder_words,
    filter_words,
    left_out_words,
    reading_words,
    reads_clip,
    rule_words,
)
from pipeline.selection.rules import REASONS
from pipeline.store import Store

VERSION = 3
# --- Sections ----------------------------------------------------------------------------------


def _prompts(recipe: Recipe, dataset: Dataset, counts: Counts) -> list[str]:
    heads = ("source", "kind", "file or dataset", "licence", "prompts", "in the release", "images")
    lines = [
        "## Prompts",
        "",
        *table([Safe(head) for head in heads], origins(recipe, dataset.sources, counts), right=3),
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
        lines += crossed(counts.refused, "reason")
    if counts.unplanned:
        lines += ["", "Pictures of imports that could not be planned:", ""]
        lines += crossed(counts.unplanned, "reason")
    return lines


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
        lines += ["", "Images that failed:", "", *crossed(counts.failed, "reason")]
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
        for (source, revision), _ in ordered(counts.by("source", "revision"))
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
    options = some_options(dataset, chosen(dataset, recipe.planned("release")))
    own = of_rows(dataset, counts, shown, configs, options)
    sections = [
        [f"# {escape(dataset.title)}"],
        *([paragraph] for paragraph in about),
        own["configs"],
        own["sheet"],
        use(commands(dataset, [recipe]), "the dataset", configs),
        own["fields"],
        own["sources"],
        _prompts(recipe, dataset, counts),
        own["resolutions"],
        own["watermarks"],
        _selection(recipe, counts, configs),
        _limits(recipe, dataset, counts, configs),
        own["made"],
        own["terms"],
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
