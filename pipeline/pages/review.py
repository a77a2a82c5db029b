"""A run with a selection in, a page on which a person reviews a sample of its images out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from pipeline import AigiError
from pipeline.decisions import SETTINGS, Subject
from pipeline.pages.page import render
from pipeline.pages.thumbnails import Place, Thumbnail, thumbnails
from pipeline.selection.rules import REASONS, columns_of
from pipeline.selection.sweep import SWEPT
from pipeline.shown import one_line
from pipeline.store import Store

KEPT = "kept"
"""Beside the reasons of the selection: images that it keeps."""
SIDE = 512  # pixels; 500 pictures of this size make a page of some 20 MB


class _Judged(NamedTuple):
    """The verdict of the selection on one image."""

    image_id: str
    place: Place
    source: str
    split: str
    reason: str
    duplicate_of: str | None
    similarity: float | None


def _judged(store: Store) -> dict[str, _Judged]:
    columns = ["image_id", "source", "split", "reason", "duplicate_of", "similarity"]
    found = {}
    shards = store.shards("selection")
    if not shards:
        raise AigiError(f"{store.path('selection')}: no selection table; run the workflow first")
    for shard in shards:
        for row, values in enumerate(store.read("selection", shard, columns).to_pylist()):
            found[values["image_id"]] = _Judged(
                values["image_id"],
                Place(shard, row),
                values["source"],
                values["split"],
                values["reason"] or KEPT,
                values["duplicate_of"],
                values["similarity"],
            )
    return found


Drawn = tuple[Any, ...]
"""Its `order_of`, its id, and whatever else belongs to it."""


def order_of(seed: int, name: str) -> str:
    """Where a hash puts an image or a prompt among those of its reason."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def in_turn(queues: Iterable[Iterable[Drawn]]) -> Iterator[Drawn]:
    """The entries of all queues, in their order, one of each queue in turn."""
    layers = zip_longest(*map(sorted, queues))
    return (entry for layer in layers for entry in layer if entry is not None)


def _sample(
    judged: Mapping[str, _Judged], reasons: Sequence[str], most: int, seed: int
) -> tuple[list[str], int]:
    """At most `most` ids, drawn by a hash, reason by reason; and how many of them were drawn.

    Each reason gets the same number, until the rare ones run out. A duplicate is followed by the
    image that stays in its place, which was not drawn.
    """
    queues: dict[str, list[Drawn]] = {reason: [] for reason in reasons}
    for image in judged.values():
        if image.reason in queues:
            queues[image.reason].append((order_of(seed, image.image_id), image.image_id))
    groups: list[list[str]] = []
    taken: set[str] = set()
    for entry in in_turn(queues.values()):
        twin = judged[entry[1]].duplicate_of
        group = [name for name in (entry[1], twin) if name is not None and name not in taken]
        if len(taken) + len(group) > most:
            break
        groups.append(group)
        taken.update(group)
    groups.sort(key=lambda group: reasons.index(judged[group[0]].reason) if group else -1)
    drawn = sum(judged[name].reason in queues for name in taken)
    return [name for group in groups for name in group], drawn


def _known(store: Store, images: Sequence[_Judged]) -> dict[str, dict[str, Any]]:
    """Prompt and scores of these images."""
    shards: dict[str, list[_Judged]] = defaultdict(list)
    for image in images:
        shards[image.place.shard].append(image)
    have = {table: store.shards(table) for table in ("embeddings", "quality")}
    found: dict[str, dict[str, Any]] = {image.image_id: {} for image in images}
    for shard, mine in shards.items():
        rows = [image.place.row for image in mine]
        wanted = {"plan": ["text", "path"]}
        for table in have:
            if shard in have[table]:
                wanted[table] = [*columns_of(table), *(["concepts"] if table == "quality" else [])]
        for table, columns in wanted.items():
            values = store.read(table, shard, columns).take(rows).to_pylist()
            for image, value in zip(mine, values, strict=True):
                found[image.image_id] |= value
    return found


def _facts(image: _Judged, known: dict[str, Any], rules: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("now", image.reason if image.reason == KEPT else f"dropped: {image.reason}")]
    facts += [("image", image.image_id), ("source", f"{image.source}, {image.split}")]
    if known.get("path"):
        facts.append(("file", one_line(known["path"])))
    for rule in SWEPT:
        if known.get(rule.column) is not None:
            limit, bound = rules.get(rule.setting), "least" if rule.side == "below" else "most"
            words = "" if limit is None else f" (at {bound} {limit:g})"
            facts.append((rule.column, f"{known[rule.column]:.3g}{words}"))
    for name, value in dict(known.get("concepts") or {}).items():
        most = (rules.get("max_concepts") or {}).get(name)
        facts.append(
            (one_line(name), f"{value:.3g}" + ("" if most is None else f" (at most {most:g})"))
        )
    return facts


def _veiled(image: _Judged, known: dict[str, Any], rules: dict[str, Any]) -> bool:
    """Whether to blur an image, because of its reason or its scores."""
    if image.reason in ("nsfw", "concept"):
        return True
    limits = rules.get("max_concepts") or {}
    concepts = dict(known.get("concepts") or {})
    return (known.get("nsfw") or -1.0) > 0 or any(
        value > limits.get(name, 0.5) for name, value in concepts.items()
    )


def review(
    store: Store, reasons: Sequence[str], sample: int, seed: int = 0, side: int = SIDE
) -> tuple[str, int]:
    """The review page, and the number of images on it.

    Args:
        store: a run with a finished selection.
        reasons: of the selection, or `kept`; each gets the same number of images.
        sample: most images, including those that stay in place of a duplicate.
        seed: draws the images.
        side: longest side of an image on the page, in pixels.

    Raises:
        AigiError: an unknown reason, no selection, or no such image.
    """
    allowed = [KEPT, *(reason for reason in REASONS if reason != "failed")]
    check_reasons(reasons, allowed)
    judged = _judged(store)
    total = sum(image.reason in reasons for image in judged.values())
    shown, drawn = _sample(judged, list(dict.fromkeys(reasons)), sample, seed)
    if not shown:
        raise AigiError(
            f"{store.url}: no image is {' or '.join(reasons)}, so there is nothing to review"
        )
    images = [judged[image_id] for image_id in shown]
    known = _known(store, images)
    record = store.record("selection")
    settings = {} if record is None else record.settings
    small = thumbnails(store, [image.place for image in images], side)
    number = {image_id: number for number, image_id in enumerate(shown)}
    items = []
    for image in images:
        if image.place not in small:
            raise AigiError(
                f"images: {image.image_id}: the stored image is missing; make the images again"
            )
        item = _item(image, known[image.image_id], settings, small[image.place])
        twin = image.duplicate_of
        items.append(item | {"twin": None if twin is None else number[twin]})
    return page_of(
        store, "image_id", items, reasons, drawn, total, "that stayed in place of duplicates"
    )


def check_reasons(reasons: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises AigiError: a reason is none of those that there are."""
    for reason in reasons:
        if reason not in allowed:
            raise AigiError(f"--reason {reason}: expected one of {', '.join(allowed)}")


def page_of(
    store: Store,
    subject: Subject,
    items: Sequence[Mapping[str, Any]],
    reasons: Sequence[str],
    drawn: int,
    total: int,
    beside: str,
) -> tuple[str, int]:
    """The page of these items, and how many they are.

    Args:
        subject: what its decisions are about.
        items: values that `review.js` shows.
        reasons: for which they were drawn.
        drawn, total: how many of them were drawn, of how many.
        beside: what the others are.
    """
    noun = subject.removesuffix("_id")
    said = f"This page shows {len(items):,} {noun}s: {drawn:,} of {total:,} that are "
    said += ", ".join(reasons)
    extra = len(items) - drawn
    said += f", and {extra:,} {beside}." if extra else "."
    digest = hashlib.sha256("\n".join(item["id"] for item in items).encode()).hexdigest()[:32]
    data = {
        "digest": digest,
        "items": items,
        "subject": subject,
        "noun": noun,
    }
    page = render(
        "review.html", "review.js",
        run=store.url, sampled=said, data=data, setting=SETTINGS[subject],
    )  # fmt: skip
    return page, len(items)


def _item(
    image: _Judged, known: dict[str, Any], rules: dict[str, Any], picture: Thumbnail
) -> dict[str, Any]:
    return {
        "id": image.image_id,
        "reason": image.reason,
        "text": one_line(known["text"]),
        "facts": _facts(image, known, rules),
        "veil": _veiled(image, known, rules),
        "similarity": None if image.similarity is None else round(image.similarity, 3),
        "picture": picture.address,
        "shown_width": picture.width,
        "shown_height": picture.height,
    }
