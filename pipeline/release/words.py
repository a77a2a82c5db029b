"""Settings of a run in, the sentences of the dataset card about them out."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pipeline.markdown import Safe, code, escape, link
from pipeline.models.clip import Embeddings
from pipeline.plan.specification import Dataset, HttpSpec, SourceSpec, ZooSpec
from pipeline.prompts.prompts import Prompts
from pipeline.prompts.tokens import CONTEXT
from pipeline.release.counts import Reading
from pipeline.release.front_matter import NOT_STATED
from pipeline.selection.rules import REASONS, RULES, Rule, Scored, Selection, made
from pipeline.shown import public_url
from pipeline.tables import ENDPOINT, OPTIONS

# Measured by `aigi watermark robustness` on 200 real AI pictures: the table in aigi's README.
MARK_WORDS = {
    "none": "",
    "dwt-dct": "48 bits, invisible, as diffusers puts them into SDXL pictures; of 200 pictures "
    "they were read back whole from 33.5 % as they were, from 22 % after halving and back, from "
    "none after JPEG 90",
    "dwt-dct-svd": "the same 48 bits, sturdier; of 200 pictures they were read back whole from "
    "all as they were, from 84.5 % after JPEG 90, from 28 % after JPEG 75, from none after JPEG 50",
    "visible": "drawn over the picture; it goes where that part is cut off",
}


def _said(rule: Rule, value: Any) -> list[str]:
    """What a rule drops, if it is asked for."""
    if rule.setting and (value is None or value is False):
        return []
    if isinstance(value, dict):
        return [f"{rule.words.format(name)} {most:g}" for name, most in value.items()]
    return [f"{rule.words} {rule.side} {value:g}" if rule.side else rule.words]


def rule_words(asked: Selection, scored: Scored) -> dict[str, str]:
    """Each reason of the selection, and what speaks for it in this run."""
    found = {}
    for reason in REASONS:
        rules = [rule for rule in RULES if rule.reason == reason]
        said = [
            words for rule in rules for words in _said(rule, getattr(asked, rule.setting, None))
        ]
        if not any(made(scored, rule.needs) for rule in rules):
            found[reason] = "not looked for" if reason == "duplicate" else "not measured"
        else:
            nothing = "nobody was asked" if reason == "review" else "not asked for"
            found[reason] = " or ".join(said) or nothing
    return found


def asked_words(dataset: Dataset, configs: Iterable[str]) -> list[str]:
    """How each source of an endpoint was asked, and that none of its images can be made again."""
    found = []
    for config in configs:
        spec = dataset.sources[config]
        if isinstance(spec, HttpSpec):
            fields = f", with {escape(spec.row_options)}" if spec.row_options else ""
            sent = "with the seed of each row" if spec.seeds else "without a seed"
            found.append(
                f"{code(config)}: by an endpoint for images, asked {sent}{fields}. Asked again, it "
                "gives other pictures, so none can be made again. `versions` has each request and "
                "its answer."
            )
    return found


def reads_clip(spec: SourceSpec) -> bool:
    """Whether what a source reads of a prompt may be what CLIP reads."""
    return not isinstance(spec, ZooSpec) or spec.reads_clip


def licence_of(spec: SourceSpec, model: object, revision: object) -> Safe:
    """The licence of a source, or of one model of a zoo that has its own."""
    members = spec.members if isinstance(spec, ZooSpec) else ()
    own = next((one for one in members if (one.model, one.revision) == (model, revision)), spec)
    return link(own.licence, own.licence_url)


def _score_words(prompts: Prompts) -> list[tuple[str, str]]:
    """The filters by scores; those that are off are not named, as there were none once."""
    filters, found = prompts.filters, list[tuple[str, str]]()
    if filters.max_repeated is not None:
        found.append(("words that repeat", f"at most {filters.max_repeated:.0%}"))
    if filters.languages:
        found.append(("languages", ", ".join(filters.languages)))
    if filters.personal:
        found.append(("personal data", f"none of {', '.join(filters.personal)}"))
    if filters.names is not None:
        found.append(("names", f"none of {base_words(filters.names)}"))
    if filters.max_unsafe is not None and prompts.safety:
        scorers = ", ".join(one.name for one in prompts.safety)
        found.append(("unsafe", f"at most {filters.max_unsafe:g} by {scorers}"))
    return found


_CHOICES = {
    "random": "at random",
    "diverse": "spread over the vocabulary",
    "facility_location": "those that stand best for what all are about",
}


def filter_words(prompts: Prompts) -> list[tuple[str, str]]:
    """What a caption had to be to become a prompt."""
    filters, select, near = prompts.filters, prompts.select, prompts.near_duplicates
    tokens = filters.max_tokens
    return [
        ("words", f"{filters.min_words} to {filters.max_words}"),
        ("CLIP tokens", "any number" if tokens is None else f"at most {tokens}"),
        ("ASCII among the letters", f"at least {filters.min_ascii_letters:.0%}"),
        ("addresses, tags and numbers among the words", f"at most {filters.max_noise:.0%}"),
        *_score_words(prompts),
        ("<PERSON>", f"became “{filters.person}”" if filters.person else "rejected"),
        ("blocklist", "none" if not filters.blocklist else base_words(filters.blocklist)),
        *([] if prompts.review is None else [("review", "people kept and dropped some")]),
        ("equal texts", "one stays"),
        (
            "near duplicates",
            "not looked for"
            if not near
            else f"one stays (near_duplicates: {near:g})"  # of before: a similarity of letters
            if isinstance(near, float)
            else "one of several prompts that say the same stays",
        ),
        (
            "choice",
            "all that pass"
            if select.count is None
            else f"{select.count:,} of those that pass, " + _CHOICES[select.method],
        ),
    ]


def reading_words(
    prompts: int, long: int, readings: Mapping[str, Reading], clip: Collection[str]
) -> list[str]:
    """How much of the prompts the models read, a sentence for each kind.

    Args:
        prompts: that have images.
        long: of these, those that are marked as cut.
        readings: of models with other tokenizers than CLIP's, by source.
        clip: the other generated sources.
    """

    def told(who: str, most: int, what: str, cut: int) -> str:
        ends = f"Of {prompts:,} prompts {cut:,} are longer; their ends had no say."
        return f"{who} {most:,} {what}. " + (ends if cut else "No prompt is longer.")

    if not readings:
        return [told("The models read", CONTEXT, "CLIP tokens", long)]
    found = [
        told(f"The model of {name} reads", each.most, "of its tokens", each.cut)
        for name, each in sorted(readings.items())
    ]
    others = ", ".join(sorted(clip))
    return [*found, f"Those of {others} read {CONTEXT} CLIP tokens."] if clip else found


def setting_heads(options: bool) -> dict[str, str]:
    """Columns of a release that say how images were generated, and how a table names them.

    Args:
        options: whether a row has some.
    """
    names = ("scheduler", "steps", "guidance_scale", "negative_prompt", "dtype")
    heads = {name: name.removesuffix("_scale").replace("_", " ") for name in names}
    return {**heads, OPTIONS.name: OPTIONS.name} if options else heads


def base_words(path: str) -> str:
    """The last part of a path: where a file lay is nobody's business."""
    place = public_url(path)
    return posixpath.basename(place.rstrip("/")) or place


def left_out_words(kinds: Mapping[str, int]) -> str:
    """Kinds of metadata, and of how many images each was left out."""
    return ", ".join(f"{kind} {many:,}" for kind, many in sorted(kinds.items()) if kind)


def embedder_words(settings: Embeddings) -> str:
    """The model that gave the vectors."""
    if settings.folder is not None:
        weights = f", sha256 {settings.sha256}" if settings.sha256 else ""
        return f"{base_words(settings.folder)} (a local open_clip model{weights})"
    if settings.model.startswith("hf-hub:"):
        return settings.model
    return f"{settings.model}, {settings.pretrained}"


def library_words(versions: str | None) -> str:
    """Libraries and weights of the column `versions`; all weights have one short digest here."""
    try:
        found = json.loads(versions or "")
    except (ValueError, RecursionError):
        return versions or NOT_STATED
    if not isinstance(found, dict):
        return versions or NOT_STATED
    if isinstance(asked := found.get(ENDPOINT), dict):
        found[ENDPOINT] = asked.get("host")
    if weights := found.pop("weights", None):
        text = json.dumps(weights, sort_keys=True).encode()
        found["weights"] = hashlib.sha256(text).hexdigest()[:12]
    found.pop("scheduler", None)  # settings have a table of their own
    return ", ".join(f"{name} {version}" for name, version in found.items())
