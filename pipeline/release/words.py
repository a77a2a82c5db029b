"""Settings of a run in, the sentences of the dataset card about them out."""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING

from pipeline.models.clip import Embeddings
from pipeline.release.front_matter import NOT_STATED
from pipeline.selection.rules import Selection

if TYPE_CHECKING:
    from pipeline.workflow import Workflow


def _bounds(*bounds: tuple[str, float | None]) -> str:
    said = [f"{words} {value:g}" for words, value in bounds if value is not None]
    return " or ".join(said) or "not asked for"


def rule_words(workflow: Workflow) -> dict[str, str]:
    """Each reason of the selection, and what speaks for it in this run."""
    rules = workflow.selection or Selection()
    found = {
        "failed": "no picture was made",
        "review": "a person said drop" if rules.review else "nobody was asked",
        "size": "not of the planned size" if rules.planned_size else "not asked for",
        "blank": _bounds(
            ("share of black pixels above", rules.max_black),
            ("share of the commonest colour above", rules.max_blank),
            ("standard deviation of the luminance below", rules.min_luminance_std),
            ("entropy in bits below", rules.min_entropy),
        ),
        "compressed": _bounds(("blockiness above", rules.max_blockiness)),
        "nsfw": _bounds(("score of the safety checker above", rules.max_nsfw)),
        "concept": _bounds(
            *((f"probability of “{name}” above", most) for name, most in rules.max_concepts.items())
        ),
        "clip_score": _bounds(("cosine of image and prompt below", rules.min_clip_score)),
        "duplicate": " or ".join(["equal pixels"] * rules.exact_duplicates) or "not asked for",
        "surplus": "good, but more than were wanted",
    }
    near = _bounds(
        ("cosine of two images at least", rules.min_similarity),
        ("share of equal bits of two hashes at least", rules.min_hash_similarity),
    )
    if near != "not asked for":
        found["duplicate"] = f"equal pixels or {near}" if rules.exact_duplicates else near
    if workflow.quality is None:
        unseen = dict.fromkeys(("size", "blank", "compressed", "concept"), "not measured")
        found |= unseen
    if workflow.quality is None or workflow.quality.safety_checker is None:
        found["nsfw"] = "not measured"
    if workflow.embeddings is None:
        found["clip_score"] = "not measured"
    if workflow.duplicates is None:
        found["duplicate"] = "not looked for"
    return found


def filter_words(workflow: Workflow) -> list[tuple[str, str]]:
    """What a caption had to be to become a prompt."""
    if workflow.prompts is None:
        return []
    filters, select = workflow.prompts.filters, workflow.prompts.select
    near = workflow.prompts.near_duplicates
    tokens = filters.max_tokens
    return [
        ("words", f"{filters.min_words} to {filters.max_words}"),
        ("CLIP tokens", "any number" if tokens is None else f"at most {tokens}"),
        ("ASCII among the letters", f"at least {filters.min_ascii_letters:.0%}"),
        ("addresses, tags and numbers among the words", f"at most {filters.max_noise:.0%}"),
        ("<PERSON>", f"became “{filters.person}”" if filters.person else "rejected"),
        ("blocklist", "none" if not filters.blocklist else base_words(filters.blocklist)),
        ("equal texts", "one stays"),
        (
            "near duplicates",
            "not looked for"
            if near is None
            else f"one stays, from a Jaccard similarity of {near:g} of character 5-grams on",
        ),
        (
            "choice",
            "all that pass"
            if select.count is None
            else f"{select.count:,} of those that pass, "
            + ("at random" if select.method == "random" else "spread over the vocabulary"),
        ),
    ]


def base_words(path: str) -> str:
    """The last part of a path: where a file lay is nobody's business."""
    return posixpath.basename(path.rstrip("/")) or path


def embedder_words(settings: Embeddings) -> str:
    """The model that gave the vectors."""
    if settings.folder is not None:
        weights = f", sha256 {settings.sha256}" if settings.sha256 else ""
        return f"{base_words(settings.folder)} (a local open_clip model{weights})"
    if settings.model.startswith("hf-hub:"):
        return settings.model
    return f"{settings.model}, {settings.pretrained}"


def library_words(versions: str | None) -> str:
    try:
        return ", ".join(
            f"{name} {version}" for name, version in json.loads(versions or "").items()
        )
    except (AttributeError, ValueError):
        return versions or NOT_STATED
