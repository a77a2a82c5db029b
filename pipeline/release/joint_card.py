"""A release that was put together in, its dataset card out.

It states what rows, plans and manifests give. What only the run of a source could count is there
as that run counted it, if all that it made is here. Why images were dropped is left out; the card
says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipeline.gate import check
from pipeline.manifest import MANIFEST, REMEDY, FileRecord
from pipeline.markdown import Safe, code, escape, number, plain, table
from pipeline.plan.specification import Dataset, DrawnSpec, HttpSpec, ImportSpec, PromptedSpec
from pipeline.release.again import commands
from pipeline.release.card_rows import crossed, of_rows, origins, use
from pipeline.release.counts import Counts
from pipeline.release.front_matter import configs_of, front_matter
from pipeline.release.recipe import Recipe
from pipeline.release.regenerate import sections_of
from pipeline.release.sheet import Shown
from pipeline.release.words import embedder_words, filter_words, left_out_words, rule_words
from pipeline.settings import SPLITS
from pipeline.versions import partials


@dataclass(frozen=True)
class Joint:
    """What a release is made of.

    Attributes:
        files: in the order of the specification.
        makers: as `pipeline.makers.makers_of` returns them.
        wanted: images by SOURCE/SPLIT, where a number was asked for.
        rows: sha256 of the ids of all images of each maker, in their order.
    """

    dataset: Dataset
    version: str
    files: list[FileRecord]
    makers: list[dict[str, Any]]
    wanted: Mapping[str, int]
    rows: Sequence[str]

    @cached_property
    def configs(self) -> dict[str, dict[str, int]]:
        """Rows of every config and split that has files."""
        return configs_of(self.dataset, self.files)

    @cached_property
    def recipes(self) -> list[Recipe]:
        """The settings of each maker; their places are only names."""
        return [recipe_of(maker, MANIFEST) for maker in self.makers]


def recipe_of(maker: Mapping[str, Any], where: str) -> Recipe:
    """The settings of a maker, checked; their places are only names.

    Args:
        where: its manifest, for messages.

    Raises:
        AigiError: in one line, with the setting that is wrong.
    """
    known = {"sources": dict.fromkeys(maker["sources"])}
    found = sections_of(where, {"workflow": maker["workflow"], "specification": known})
    plan = {**found["plan"], "dataset": MANIFEST}
    whole = {**found, "run": MANIFEST, "plan": plan}
    return check(Recipe, whole, where, REMEDY, "workflow", {"base": None})


def _names(maker: Mapping[str, Any]) -> Safe:
    return Safe(", ".join(code(name) for name in maker["sources"]))


def _made_by(joint: Joint) -> list[str]:
    if len(joint.makers) == 1:
        return []
    rows = [
        [_names(maker), escape(maker["version"]), escape(maker["aigi"]["version"])]
        for maker in joint.makers
    ]
    return [
        "## Runs",
        "",
        f"{len(joint.makers)} runs made this dataset, each its own sources with settings of its "
        f"own; `{MANIFEST}` lists them under `makers`.",
        "",
        *table([Safe("config"), Safe("came with version"), Safe("aigi")], rows),
    ]


def _use(joint: Joint) -> list[str]:
    again = "the dataset" if len(joint.makers) == 1 else "the sources of each run"
    return use(commands(joint.dataset, joint.recipes), again, joint.configs)


def _origins(joint: Joint, counts: Counts) -> list[str]:
    """Where the prompts of each run come from; numbers, where they hold of what is here."""
    lines: list[str] = []
    heads = ("source", "kind", "file or dataset", "licence", "prompts", "in the release", "images")
    for maker, recipe, rows_of in zip(joint.makers, joint.recipes, joint.rows, strict=True):
        of = replace(counts, rows=rows_of).again(maker.get("counted"))
        generated = {
            name: spec
            for name in maker["sources"]
            if isinstance(spec := joint.dataset.sources[name], PromptedSpec)
        }
        rows = origins(recipe, generated, of)
        if not rows:
            continue
        whose = "" if len(joint.makers) == 1 else f" of {_names(maker)}"
        lines += ["", f"Captions{whose}:", "", *table([Safe(h) for h in heads], rows, right=3)]
        if of.copied:
            lines += ["", "How many of them became prompts is not known of this part of a run."]
        for found, what in (
            (of.refused, "Captions that were refused"),
            (of.unplanned, "Pictures of imports that could not be planned"),
        ):
            if found:
                lines += [
                    "",
                    f"{what}{whose}, by source and reason:",
                    "",
                    *crossed(found, "reason"),
                ]
    return lines


def _prompts(joint: Joint, counts: Counts) -> list[str]:
    images = counts.by("source")
    rows = [
        [code(name), number(counts.prompts[name]), number(images[name,])] for name in joint.configs
    ]
    heads = [Safe("config"), Safe("prompts in the release"), Safe("images")]
    lines = ["## Prompts", "", *table(heads, rows, right=2), *_origins(joint, counts)]
    pairs = list(zip(joint.makers, joint.recipes, strict=True))
    imported = [n for n in joint.configs if isinstance(joint.dataset.sources[n], ImportSpec)]
    if imported:
        lines += ["", f"With the pictures: those of {', '.join(map(code, imported))}."]
    told: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for maker, recipe in pairs:
        if recipe.prompts is not None:
            told.setdefault(tuple(filter_words(recipe.prompts)), []).append(_names(maker))
    for filters, names_of in told.items():
        of = "" if len(told) == 1 else f" of {', '.join(names_of)}"
        lines += [
            "",
            f"What a caption had to be to become a prompt{of}:",
            "",
            *table(
                [Safe("filter"), Safe("setting")],
                [[escape(what), escape(value)] for what, value in filters],
            ),
        ]
    return lines


def _selection(joint: Joint, counts: Counts) -> list[str]:
    images = counts.by("source")
    rows = [
        [code(name), number(counts.planned[name]), number(images[name,])]
        for name in joint.dataset.sources
    ]
    lines = [
        "## Selection",
        "",
        f"{sum(counts.planned.values()):,} images were planned. How many were dropped for which "
        "reason was counted by the run of each source, and is not known here.",
        "",
        *table([Safe("config"), Safe("planned"), Safe("kept")], rows, right=2),
    ]
    rules = [rule_words(recipe.rules, recipe.scored) for recipe in joint.recipes]
    asked = [[code(why), *(escape(words[why]) for words in rules)] for why in rules[0]]
    lines += [
        "",
        "The rules, by reason:",
        "",
        *table([Safe("reason"), *map(_names, joint.makers)], asked),
    ]
    for maker, recipe in zip(joint.makers, joint.recipes, strict=True):
        if recipe.embeddings is not None:
            words = escape(embedder_words(recipe.embeddings))
            lines += ["", f"Vectors and cosines of {_names(maker)} by {words}."]
    return lines


def _left_open(recipe: Recipe) -> Iterator[str]:
    """What the rules of a run leave open."""
    rules = rule_words(recipe.rules, recipe.scored)
    if "below" not in rules["clip_score"]:
        yield "Nothing was dropped because a picture does not show its prompt."
    if rules["nsfw"].startswith("not"):
        yield "No safety checker decided on any picture; some may offend."
    if rules["duplicate"].startswith("not"):
        yield "Duplicates were not looked for."
    if (limit := recipe.planned("release").limit) is not None:
        yield (
            f"A part of the dataset: at most {limit:,} generations of each source and split "
            "(`plan.limit`)."
        )


def _of_rules(joint: Joint) -> list[str]:
    """The same of all runs; what holds of some names their sources."""
    said: dict[str, list[str]] = {}
    for maker, recipe in zip(joint.makers, joint.recipes, strict=True):
        for line in _left_open(recipe):
            said.setdefault(line, []).append(_names(maker))
    lines = [
        line if len(names) == len(joint.makers) else f"{', '.join(names)}: {line}"
        for line, names in said.items()
    ]
    if len(joint.makers) > 1 and "Duplicates were not looked for." not in lines:
        lines.append("Duplicates were not looked for between the sources of different runs.")
    return lines


def _limits(joint: Joint, counts: Counts) -> list[str]:
    sources = joint.dataset.sources
    lines = [
        "Every picture is synthetic. It has the errors and the prejudices of its model, and may "
        "show people, brands and places that look like real ones.",
        "A picture need not show what its prompt says.",
        *_of_rules(joint),
    ]
    asked = [name for name in joint.configs if isinstance(sources[name], HttpSpec)]
    lines += [f"{code(name)}: what drew is known by its name alone." for name in asked]
    drawn = [name for name in joint.configs if isinstance(sources[name], DrawnSpec)]
    if drawn:
        lines.append(
            "Made again on other hardware, with other versions or in other batches, some pixels "
            "differ."
        )
    found = sorted({(str(one.source), str(one.revision)) for one in counts.kinds})
    named = [
        f"{code(source)} “{escape(revision)}”"
        for source, revision in found
        if source in drawn and not re.fullmatch(r"[0-9a-f]{40}", revision)
    ]
    if named:
        lines.append(
            f"Revisions that are names, not commits: {', '.join(named)}. Where the specification "
            f"in `{MANIFEST}` has the sha256 of weights, that says which."
        )
    converted = counts.by("source", "converted")
    for name in joint.configs:
        if not isinstance(sources[name], PromptedSpec):
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
    for name in sources:
        for split in SPLITS:
            wanted = joint.wanted.get(f"{name}/{split}")
            there = joint.configs.get(name, {}).get(split, 0)
            if wanted is not None and there < wanted:
                lines.append(f"{code(name)} {code(split)}: {there:,} of {wanted:,} wanted.")
    return ["## Known limits", "", *(f"- {line}" for line in lines)]


def partial_words(version: str) -> str:
    """That a release is partial, if its version says so; else nothing."""
    whole, dash, label = version.partition("-")
    if not dash or not partials(whole, [version]):
        return ""
    return (
        f"Part {label.partition('.')[2]} of version {whole}, whose other sources are still being "
        "made. What is here may still change."
    )


def readme(joint: Joint, counts: Counts, shown: list[Shown]) -> str:
    """The dataset card: YAML for `datasets` and the Hub, then Markdown for people."""
    dataset, configs = joint.dataset, joint.configs
    size = sum(file["bytes"] for file in joint.files)
    unit, name = (1e9, "GB") if size >= 1e8 else (1e6, "MB")
    paragraphs = re.split(r"\n\s*\n", dataset.description)
    words = [*paragraphs, partial_words(joint.version)]
    about: list[list[str]] = [[escape(each)] for each in words if plain(each)]
    options = any(kind.options is not None for kind in counts.kinds)
    own = of_rows(dataset, counts, shown, configs, options, "Put together with")
    sections: list[list[str]] = [
        [f"# {escape(dataset.title)}"],
        *about,
        [
            f"{sum(sum(splits.values()) for splits in configs.values()):,} images of "
            f"{counts.prompts['']:,} prompts, {size / unit:,.1f} {name} in "
            f"{len(joint.files):,} parquet files."
        ],
        own["configs"],
        own["sheet"],
        _use(joint),
        own["fields"],
        own["sources"],
        _made_by(joint),
        _prompts(joint, counts),
        own["resolutions"],
        own["watermarks"],
        _selection(joint, counts),
        _limits(joint, counts),
        own["made"],
        own["terms"],
    ]
    sections = [section for section in sections if section]
    body = "\n\n".join("\n".join(section) for section in sections)
    return f"---\n{front_matter(dataset, joint.files)}\n---\n\n{body}\n"
